"""What a search tries first."""

import json
import shutil
from pathlib import Path

import free_study
import pytest
import yaml
from at_once import AtOnce
from free_study import coordinate, free

from nas.errors import InputError
from nas.networks import backbones
from nas.settings import study_file
from nas.space import screen
from nas.space.search_space import SearchSpace
from nas.study import launch
from nas.study.candidates import Candidates
from nas.trial.given import starts

STUDY = free_study.search("started", "random", 4)


@pytest.fixture(scope="module")
def space():
    return SearchSpace.load("mobilediffusion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("started")
    (path / "study.yaml").write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def earlier(folder):
    """A run of four trials."""
    return coordinate(folder / "study.yaml", folder / "runs")


def found(folder, space, *given):
    return starts.members(study_file.load(folder / "study.yaml", [f"search.start={list(given)}"]), space)


def test_a_preset_a_file_and_the_trials_of_a_run_are_members_each_once(folder, space, earlier):
    preset = backbones.presets()["mobilediffusion"].canonical()
    assert found(folder, space, "mobilediffusion", "mobilediffusion") == [screen.position(space, preset)]
    run = earlier.directory.path
    trained = [record["choices"] for record in earlier.records.values() if record["state"] == "complete"]
    assert len(trained) == 4 and found(folder, space, str(run)) == trained
    assert found(folder, space, str(run.parent)) == trained  # the study's latest run
    complete = next(number for number, record in earlier.records.items() if record["state"] == "complete")
    assert found(folder, space, str(earlier.directory.trial(complete))) == [earlier.records[complete]["choices"]]
    (run / "front").mkdir(exist_ok=True)
    (run / "front" / f"{complete:04d}").symlink_to(run / "trials" / f"{complete:04d}")
    assert found(folder, space, str(run / "front")) == [earlier.records[complete]["choices"]]


def test_they_are_trained_first_and_once_however_often_the_search_is_interrupted(folder, earlier, tmp_path):
    last = [r["key"] for r in earlier.records.values() if r["state"] == "complete"][::-1][:2]
    paths = [str(earlier.directory.trial(n)) for key in last for n, r in earlier.records.items() if r["key"] == key]
    start = f"search.start={['mobilediffusion', *paths]}"
    root = tmp_path / "runs"
    coordinate(folder / "study.yaml", root, overrides=["seed=1", "search.trials=3", start])
    done = coordinate(folder / "study.yaml", root, overrides=["seed=1", "search.trials=5", start])
    keys = [record["key"] for record in done.records.values() if record["state"] == "complete"]
    assert keys[:3] == [backbones.presets()["mobilediffusion"].canonical().key, *last]
    assert len(keys) == len(set(keys)) == 5


def test_the_time_is_said_from_networks_that_come_next(folder, tmp_path, monkeypatch):
    timed = []
    whole = Candidates.workload

    def watched(self, workers):
        timed.append(set(self._coming()))
        return whole(self, workers)

    monkeypatch.setattr(Candidates, "workload", watched)
    given = ["seed=2", "search.start=[mobilediffusion]"]
    first = coordinate(folder / "study.yaml", tmp_path, overrides=[*given, "search.trials=3"])
    keys = [record["key"] for record in first.records.values() if record["state"] == "complete"]
    assert len(keys) == 3 and timed == [set(keys)]
    then = coordinate(folder / "study.yaml", tmp_path, overrides=[*given, "search.trials=7"])
    more = [record["key"] for record in then.records.values() if record["state"] == "complete"][3:]
    assert len(more) == 4 and timed[1] == set(more)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["mobildiffusion"], "search.start.0: unknown network 'mobildiffusion'; did you mean 'mobilediffusion'?"),
        (["mobilediffusion", "sd15"], "search.start.1: 'sd15' is not a member of space 'mobilediffusion'"),
        (["nowhere.yaml"], "search.start.0: nowhere.yaml"),
        (["."], "search.start.0: .: not a run directory"),
    ],
)
def test_what_is_no_start_is_one_line(folder, space, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        found(folder, space, *given)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_a_start_over_budget_or_beyond_the_trials_is_refused(folder, space, earlier):
    tight = study_file.load(folder / "study.yaml", ["budget.macs=150G", "search.start=[mobilediffusion]"])
    with pytest.raises(InputError, match="^search.start.0: 'mobilediffusion' is over budget: macs"):
        starts.members(tight, space)
    many = [f"search.start=['{earlier.directory.path}']", "search.trials=3"]
    with pytest.raises(InputError, match="^search.start: 4 networks, but search.trials is 3$"):
        starts.members(study_file.load(folder / "study.yaml", many), space)


def test_a_damaged_record_is_named(folder, space, earlier, tmp_path):
    trial = tmp_path / "0000"
    shutil.copytree(earlier.directory.trial(0), trial)
    (trial / "record.json").write_text("{}")
    with pytest.raises(InputError, match=r"^search.start.0: .*0000/record.json: trial: missing$"):
        found(folder, space, str(trial))


# --- a run keeps them ------------------------------------------------------------------------------------------------


class Free(AtOnce):
    """Jobs cost nothing and are computed here."""

    slots = 1

    def compute(self, tag, function, *arguments):
        function, *given = free(function, arguments)
        return function(*given)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """What `nas run` does with the study of two trials, whose checks are told what the search is to start from."""
    monkeypatch.setattr("nas.study.run.Workers", Free)
    monkeypatch.setattr(launch.page, "write", lambda run: (Path(run) / "report.html").write_text(""))
    monkeypatch.setattr(launch, "check", lambda study, space: checked.append(study.search.start))
    checked = []
    study = yaml.safe_load(free_study.search("again", "random", 2))

    def run(**search):
        checked.clear()
        directory = launch.run(study | {"search": study["search"] | search}, (), tmp_path / "runs")
        return directory, checked

    return run


def choices_of(run):
    return [record["choices"] for record in run.records().values() if record["rungs"]]


def test_a_run_that_goes_on_starts_from_what_it_began_with_whatever_became_of_that(command, monkeypatch):
    source, _ = command()
    search = {"trials": 4, "start": [str(source.path.parent)]}  # the study's latest run is soon another one

    def stops(self, workers):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nas.study.run.Run._loop", stops)
        command(**search)
    begun = launch.find_run(source.path.parent)
    assert begun.path != source.path and not begun.records()
    assert json.loads((begun.path / "starts.json").read_text()) == choices_of(source)
    gone_on, checked = command(**search)
    assert gone_on.path == begun.path and checked == [()]
    assert choices_of(begun)[:2] == choices_of(source) and len(choices_of(begun)) == 4
    shutil.rmtree(source.path)
    (begun.path / "report.html").unlink()
    launch.resume(begun.path)
    assert (begun.path / "report.html").exists()


@pytest.mark.parametrize("content", [None, "[7]"])
def test_a_run_that_did_not_keep_its_starts_goes_on_as_before(command, content):
    source, _ = command()
    start = str(source.path)
    run, _ = command(start=[start])
    kept = run.path / "starts.json"
    kept.unlink() if content is None else kept.write_text(content)
    (run.path / "report.html").unlink()
    again, checked = command(start=[start])
    assert again.path == run.path and checked == [(start,)]
    assert json.loads(kept.read_text()) == choices_of(source)
