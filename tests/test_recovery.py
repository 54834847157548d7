"""A run whose files were cut off, emptied, tampered with or copied goes on, or says in one line why not."""

import json
import shutil
import threading
from datetime import UTC, datetime, timedelta
from functools import cache
from io import StringIO

import optuna
import pytest
import yaml
from ablation_study import STUDY as ABLATION
from rich.console import Console
from test_study import STUDY as TEST_STUDY
from test_study import Workers

from nas.analysis import results
from nas.errors import InputError
from nas.report.live.progress import Progress
from nas.runs import description, records
from nas.runs import directory as rundir
from nas.runs.directory import open_run
from nas.runs.storage.journal import open_storage
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.study import launch
from nas.study import run as study

STUDY = TEST_STUDY.replace("rule: halving", "rule: none").replace("trials: 6", "trials: 3")


@cache
def space():
    return SearchSpace.load("mobilediffusion")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs the search (with overrides) below one root and returns its run; `.said` is what it printed."""
    monkeypatch.setattr(study, "Workers", Workers)
    monkeypatch.setattr(Workers, "fail", {})
    monkeypatch.setattr(Workers, "ran", [])
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)

    def execute(*overrides, text=None):
        if text is not None:
            path.write_text(text)
        loaded, said = study_file.load(path, overrides), StringIO()
        directory, _ = open_run(loaded, tmp_path / "runs", say=lambda line: said.write(line + "\n"))
        progress = Progress(Console(file=said, width=1000))
        proposer = launch.proposer_of(loaded, None if loaded.ablation else space())
        running = study.Run(loaded, proposer, directory, progress)
        running.execute()
        (directory.path / "report.html").touch()
        running.said = said.getvalue()
        return running

    return execute


def told(running):
    """What a trial was and gave, without the times."""
    return {
        number: {name: value for name, value in record.items() if name not in ("started", "finished")}
        for number, record in running.records.items()
    }


def trained(running):
    return [r["trial"] for r in running.records.values() if r["state"] in ("complete", "stopped")]


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


SPOIL = {
    "empty": lambda path: path.write_text(""),
    "cut off": lambda path: path.write_text(path.read_text()[:200]),
    "a list": lambda path: path.write_text("[]"),
    "no trial": lambda path: change(path, trial=None),
    "another trial": lambda path: change(path, trial=1_000_000),
    "text as score": lambda path: change(
        path, rungs=[{"rung": 0, "images_seen": 1, "metrics": {"fid_efficientnet_lite0": "1"}}]
    ),
    "no score": lambda path: change(path, rungs=[{"rung": 0, "images_seen": 1, "metrics": {}}]),
    "bad date": lambda path: change(path, finished="soon"),
    "unknown axis": lambda path: change(path, choices={"depht": 2}),
    "unknown choice": lambda path: change(path, choices={"depth": 2_000}),
}


MISFITS = (
    "no score",
    "unknown axis",
    "unknown choice",
)  # seen by who runs the study, and not by who only looks for a run


@pytest.mark.parametrize("how", SPOIL)
def test_a_damaged_record_is_put_aside_and_its_trial_trained_again(run, how):
    before = run()
    number = trained(before)[1]
    path = records.path_of(before.directory.path, number)
    (path.parent / "weights.safetensors").write_text("of the first time")
    SPOIL[how](path)
    if how in MISFITS:
        (before.directory.path / "report.html").unlink()
    Workers.ran.clear()
    after = run()
    assert after.directory.path == before.directory.path and told(after) == told(before)
    assert {trial for trial, _ in Workers.ran} == {number}
    assert str(path) in after.said and f"its folder is now {number:04d}.damaged" in after.said
    assert not (path.parent / "weights.safetensors").exists()
    assert (path.parents[1] / f"{number:04d}.damaged" / "weights.safetensors").exists()
    assert results.records(after.directory.path) == list(after.records.values())
    assert all(each.state.is_finished() for each in after.ledger.stored.get_trials())


def test_what_was_not_to_be_trained_is_not_trained_again(run):
    before = run()
    refused = next(r["trial"] for r in before.records.values() if r["state"] == "over_budget")
    records.path_of(before.directory.path, refused).write_text("")
    Workers.ran.clear()
    after = run()
    assert told(after) == told(before) and not Workers.ran


def test_a_trial_that_nobody_knows_any_more_is_replaced_by_another(run):
    """Its record is damaged, and the journal has lost it too."""
    before = run()
    last = max(before.records)
    assert before.records[last]["state"] in ("complete", "stopped")
    records.path_of(before.directory.path, last).write_text("")
    (before.directory.path / "journal.log").unlink()
    after = run()
    assert len(trained(after)) == 3 and "Optuna does not know that trial" in after.said
    assert {n: r for n, r in told(after).items() if n < last} == {n: r for n, r in told(before).items() if n < last}


def test_a_record_that_is_older_than_the_journal_goes_on(run):
    """The disk lost the last record of a trial, but not what Optuna was told of it."""
    before = run()
    number = trained(before)[0]
    change(records.path_of(before.directory.path, number), state="running", rungs=[], finished=None)
    after = run()
    assert told(after) == told(before) and after.directory.path == before.directory.path


def test_a_damaged_record_of_an_ablation_is_trained_again_as_the_same_trial(run):
    before = run(text=ABLATION.replace("  maximise: [clip_score]\n", ""))
    assert len(before.records) == 8
    records.path_of(before.directory.path, 2).write_text('{"trial": 2}')
    Workers.ran.clear()
    after = run()
    assert told(after) == told(before) and {trial for trial, _ in Workers.ran} == {2}


# --- the journal -----------------------------------------------------------------------------------------------------


def trials_of(journal, name="small"):
    """Parameters, states and values by number, as the journal has them."""
    found = optuna.load_study(study_name=name, storage=open_storage(None, journal, name)).get_trials()
    return {each.number: (each.params, each.state, each.values, each.constraints) for each in found}


@pytest.mark.parametrize(
    "content", [b"garbage\n{}\n", b"5\n", b"[]\n[]\n", b'{"op_code": 99}\n', b'{"op_code": 4}\n', b"\n\n{}\n"]
)
def test_a_garbled_journal_names_the_way_on_which_loses_nothing(run, content):
    before = run()
    journal = before.directory.path / "journal.log"
    known = trials_of(journal)
    (before.directory.path / "report.html").unlink()
    journal.write_bytes(content)
    with pytest.raises(InputError) as error:
        run()
    said = str(error.value)
    assert said.startswith(f"{journal}: not a journal of Optuna") and "move the file somewhere else" in said
    assert "\n" not in said and journal.read_bytes() == content
    journal.rename(journal.with_suffix(".old"))
    Workers.ran.clear()
    after = run()
    assert told(after) == told(before) and not Workers.ran and trials_of(journal) == known


@pytest.mark.parametrize("end", [b"\n", b"\n\n\n", b"  \n", b"\r\n", b'\n{"op_code": 5, "wor', b"\n" * 10_000])
def test_a_journal_that_ends_in_blank_or_half_lines_goes_on(tmp_path, end):
    journal = tmp_path / "journal.log"
    made = optuna.create_study(storage=open_storage(None, journal, "s"), study_name="s")
    made.tell(made.ask(), 1.0)
    whole = journal.read_bytes()
    journal.write_bytes(whole + end)
    again = optuna.load_study(study_name="s", storage=open_storage(None, journal, "s"))
    again.tell(again.ask(), 2.0)
    assert journal.read_bytes().startswith(whole) and b"\n\n" not in journal.read_bytes()
    assert [
        each.value for each in optuna.load_study(study_name="s", storage=open_storage(None, journal, "s")).trials
    ] == [1.0, 2.0]


# --- which run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """What `nas.runs.directory` takes for the time; set `.now`."""

    class Clock(datetime):
        now_ = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)

        @classmethod
        def now(cls, tz=None):
            return cls.now_

    monkeypatch.setattr(rundir, "datetime", Clock)
    return Clock


@pytest.fixture
def opened(tmp_path):
    """A function that opens the run of the search, and of its settings with overrides."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)

    def execute(*overrides, new=False, say=lambda text: None):
        directory, continued = open_run(study_file.load(path, overrides), tmp_path / "runs", new, say)
        return directory.path, continued

    return execute


def test_runs_are_named_in_utc_and_the_last_one_continued_where_the_clock_goes_back(opened, clock, tmp_path):
    first, _ = opened()
    assert first.name == "2026-10-25_01-30-00"
    (first / "report.html").touch()
    clock.now_ -= timedelta(hours=1)
    second, continued = opened()
    assert not continued and description.began(second) > description.began(first)
    assert description.find(tmp_path / "runs" / "small") == second and opened() == (second, True)
    third, _ = opened(new=True)
    assert third not in (first, second) and opened() == (third, True)


def test_the_latest_run_is_the_one_that_began_last_whatever_its_folder_is_called(opened, clock, tmp_path):
    first, _ = opened()
    clock.now_ += timedelta(hours=1)
    second, _ = opened(new=True)
    second.rename(second.with_name("0 the good one"))
    assert description.find(tmp_path / "runs" / "small").name == "0 the good one"
    assert opened() == (second.with_name("0 the good one"), True)


def test_two_runs_that_begin_in_one_second_are_one_run(opened, clock, monkeypatch, tmp_path):
    """The second meets the folder of the first; with --new it gets one of its own."""
    describe, waited = rundir.describe, threading.Event()

    def slowly(directory, resolved):
        waited.set()
        assert described.wait(60)
        describe(directory, resolved)

    described, found = threading.Event(), []
    monkeypatch.setattr(rundir, "describe", slowly)
    first = threading.Thread(target=lambda: found.append(opened()))
    first.start()
    assert waited.wait(60)
    monkeypatch.setattr(rundir, "describe", describe)
    monkeypatch.setattr(rundir.time, "sleep", lambda seconds: (described.set(), first.join(60)))
    assert opened() == (tmp_path / "runs" / "small" / "2026-10-25_01-30-00", True)
    assert found == [(tmp_path / "runs" / "small" / "2026-10-25_01-30-00", False)]
    another, continued = opened(new=True)
    assert not continued and another.name == "2026-10-25_01-30-02"


TORN = {
    "empty": lambda text: "",
    "cut in a key": lambda text: text[: text.index("trials:") + 3],
    "cut between keys": lambda text: text[: text.index("stopping:")],
    "cut in provenance": lambda text: text[: text.index("  versions:")],
    "cut in the time": lambda text: text.rstrip()[:-8],
    "a list": lambda text: "- 1\n",
    "a section is a number": lambda text: yaml.safe_dump({**yaml.safe_load(text), "search": 5}),
    "trials in words": lambda text: yaml.safe_dump({**yaml.safe_load(text), "search": {"trials": "many"}}),
    "no text": lambda text: "\x00\x01",
}


@pytest.mark.parametrize("how", TORN)
def test_settings_that_were_cut_off_are_one_line_and_no_second_run(opened, how, tmp_path):
    first, _ = opened()
    path = first / "resolved.yaml"
    path.write_text(TORN[how](path.read_text()))
    with pytest.raises(InputError) as error:
        opened()
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert list(first.parent.iterdir()) == [first]
    second, continued = opened(new=True)
    assert not continued and second != first


def test_a_run_with_other_settings_is_said_to_be_left(opened):
    said = []
    first, _ = opened()
    second, continued = opened("training.batch=32", "search.sampler=tpe", say=said.append)
    assert not continued and said == [f"{first} ran with other settings (training, search): a new run begins"]
    assert opened("training.batch=32", "search.sampler=tpe", "workers=1", say=said.append) == (second, True)
    assert len(said) == 1


def test_a_run_that_another_process_holds_is_not_described_anew(opened):
    first, _ = opened()
    before = (first / "resolved.yaml").read_text()
    with rundir.RunDirectory(first).lock(), pytest.raises(InputError, match="another process is running this study"):
        opened("search.trials=9")
    assert (first / "resolved.yaml").read_text() == before


# --- front/ ----------------------------------------------------------------------------------------------------------


def test_front_links_are_made_again_where_a_copy_has_folders(tmp_path):
    for number in range(4):
        (tmp_path / "trials" / f"{number:04d}").mkdir(parents=True)
        (tmp_path / "trials" / f"{number:04d}" / "weights.safetensors").write_text(str(number))
    launch._write_front(tmp_path, [1, 2])
    copy = tmp_path.parent / "copy"
    shutil.copytree(tmp_path, copy, symlinks=False)
    (copy / "front" / "mine").mkdir()
    (copy / "front" / "0002").joinpath("weights.safetensors").write_text("old")
    (copy / "front" / "0003").write_text("../trials/0003")  # git without links writes such files
    launch._write_front(copy, [2, 3])
    held = {path.name: path.is_symlink() for path in (copy / "front").iterdir()}
    assert held == {"0002": True, "0003": True, "mine": False}
    assert (copy / "front" / "0002" / "weights.safetensors").read_text() == "2"
    assert [path.name for path in (copy / "trials").iterdir()] and (copy / "trials" / "0001").is_dir()


def test_front_is_copied_where_no_links_can_be_made(tmp_path, monkeypatch):
    def refused(self, target):
        raise PermissionError(1, "Operation not permitted", str(self))

    (tmp_path / "trials" / "0001").mkdir(parents=True)
    (tmp_path / "trials" / "0001" / "samples.png").write_text("drawn")
    monkeypatch.setattr(type(tmp_path), "symlink_to", refused)
    for _ in range(2):
        launch._write_front(tmp_path, [1])
        assert (tmp_path / "front" / "0001" / "samples.png").read_text() == "drawn"
