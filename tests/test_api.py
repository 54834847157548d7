"""nas from Python: runs are those of the command line, and callbacks come after what they tell is saved."""

import inspect
import json
import os
import pydoc
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from at_once import AtOnce
from free_study import STUDY, free
from in_process import nas as command

import nas
from nas import interruption
from nas.analysis import ablation
from nas.disk import lock
from nas.errors import InputError
from nas.settings import study_file
from nas.settings.study import Study as Plain
from nas.study import launch

SEARCH = yaml.safe_load(STUDY.format(trials=2, workers=1))
ABLATION = {name: SEARCH[name] for name in ("dataset", "tracking", "workers")} | {
    "name": "cells",
    "architecture": "mobilediffusion",
    "ablation": {
        "design": "one_factor",
        "factors": {"ratio": {"field": "architecture.levels.*.ffn_ratio", "levels": [2, 3]}},
        "repeats": 2,
        "minimise": ["denoising_loss"],
    },
}
LATER = ("started", "finished")  # what two trainings of one trial may differ in
SPENT = ("span", "worker")  # and two of its rungs


class Free(AtOnce):
    """Jobs cost nothing and are computed here."""

    slots = 1

    def compute(self, tag, function, *arguments):
        function, *given = free(function, arguments)
        return function(*given)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Trials that cost nothing, checks that read no weights, a page that is empty."""

    def page(folder):
        path = Path(folder) / "report.html"
        path.write_text("")
        return path

    monkeypatch.setattr("nas.study.run.Workers", Free)
    monkeypatch.setattr("at_once.InProcess", Free)
    monkeypatch.setattr("in_process.InProcess", Free)
    monkeypatch.setattr("nas.workers.preload.start", lambda: None)
    monkeypatch.setattr(launch, "check", lambda study, space: None)
    monkeypatch.setattr(launch.page, "write", page)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def quiet(study, root, **given):
    return nas.run(study, root=root, progress=False, **given)


def trained(run):
    """What a run has found, without the times of it."""
    kept = []
    for record in run.trials:
        rungs = [{name: value for name, value in rung.items() if name not in SPENT} for rung in record["rungs"]]
        kept.append({name: value for name, value in record.items() if name not in LATER} | {"rungs": rungs})
    return kept


# --- run ---------------------------------------------------------------------------------------------------------------


def test_a_run_from_python_is_that_of_the_command(tmp_path, root, capsys):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SEARCH))
    shell = command("run", str(tmp_path), "--root", str(tmp_path / "shell"))
    assert shell.returncode == 0, shell.stderr
    capsys.readouterr()
    ways = (SEARCH, nas.Study(**SEARCH), Plain.model_validate(SEARCH), tmp_path / "study.yaml", str(tmp_path))
    expected = trained(nas.Run(tmp_path / "shell" / "free"))
    assert sum(record["state"] == "complete" for record in expected) == 2
    for place, study in enumerate(ways):
        assert trained(quiet(study, root / str(place))) == expected
    assert not capsys.readouterr().out
    loud = nas.run(SEARCH, root=root / "loud")
    told = shell.stdout.replace(str(tmp_path / "shell"), "").splitlines()
    printed = capsys.readouterr().out.replace(str(root / "loud"), "").splitlines()
    times = ("study 'free'", "report:")
    assert [line for line in printed if not any(time in line for time in times)] == [
        line for line in told if not any(time in line for time in times)
    ]
    assert printed[-1].endswith("report.html") and loud.report.exists()


def test_overrides_are_values_or_texts(root):
    ways = ({"search.trials": 1, "workers": 1}, ["search.trials=1"])
    asked = [quiet(SEARCH, root / str(n), overrides=way, workers=1).settings for n, way in enumerate(ways)]
    assert [settings["search"]["trials"] for settings in asked] == [1, 1]
    with pytest.raises(InputError, match=r"^overrides search\.trials: expected a valid integer, got 'x'$"):
        quiet(SEARCH, root, overrides={"search.trials": "x"})
    with pytest.raises(InputError, match=r"^--set search\.trials: expected a valid integer, got 'x'$"):
        quiet(SEARCH, root, overrides=["search.trials=x"])
    with pytest.raises(InputError, match=r"^overrides workers: expected greater than or equal to 1, got 0$"):
        quiet(SEARCH, root, workers=0)


def test_callbacks_come_after_what_they_tell_is_saved(root):
    told = []

    def saved(record):
        path = next(root.glob(f"free/*/trials/{record['trial']:04d}/record.json"))
        assert json.loads(path.read_text()) == record
        return record["trial"]

    def on_rung(record, rung):
        assert rung is record["rungs"][-1]
        told.append((saved(record), rung["rung"]))

    def on_trial(record):
        told.append((saved(record), record["state"]))
        record.clear()  # the run's own is another

    run = quiet(SEARCH, root, on_trial=on_trial, on_rung=on_rung)
    expected = []
    for record in run.trials:
        expected += [(record["trial"], rung["rung"]) for rung in record["rungs"]]
        expected.append((record["trial"], record["state"]))
    assert told == expected and [len(record["rungs"]) for record in run.trials].count(2) == 2


# --- what stops a run ----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "name", "again"),
    [(Stop, "on_trial", nas.resume), (Stop, "on_rung", nas.run), (KeyboardInterrupt, "on_rung", nas.resume)],
)
def test_what_a_callback_raises_comes_out_and_the_run_goes_on_later(root, error, name, again):
    def stop(record, *_):
        if record["state"] in ("running", "complete"):
            raise error

    with pytest.raises(error) as caught:
        quiet(SEARCH, root, **{name: stop})
    stopped = nas.Run(root / "free")
    assert f"nas.resume({str(stopped.path)!r})" in caught.value.__notes__[0]
    assert stopped.trials and not stopped.report.exists()
    resumed = nas.resume(stopped, progress=False) if again is nas.resume else quiet(SEARCH, root)
    assert resumed.path == stopped.path and resumed.report.exists()
    assert trained(resumed) == trained(quiet(SEARCH, root / "at once"))


def test_sigterm_ends_the_run_and_then_does_what_it_did_before(root, monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("mine"))
    try:
        with pytest.raises(interruption.Terminated):
            quiet(SEARCH, root, on_rung=lambda *_: signal.raise_signal(signal.SIGTERM))
        assert heard == ["mine"]
        nas.resume(root / "free", progress=False)
        signal.raise_signal(signal.SIGTERM)
        assert heard == ["mine", "mine"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_runs_in_a_thread_where_no_handler_can_be_set(root):
    found = []
    thread = threading.Thread(target=lambda: found.append(quiet(SEARCH, root)))
    thread.start()
    thread.join()
    assert found[0].report.exists()


def test_the_environment_of_the_caller_is_its_own_again(root, monkeypatch):
    from nas.workers import preload

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)
    before = (dict(preload.os.environ), tempfile.tempdir)

    def start():
        preload.os.environ.update(preload.ENVIRONMENT, TMPDIR="elsewhere")
        tempfile.tempdir = "elsewhere"

    monkeypatch.setattr(preload, "start", start)
    with preload.started():
        assert preload.os.environ["TMPDIR"] == "elsewhere"
    assert (dict(preload.os.environ), tempfile.tempdir) == before


def test_workers_do_not_import_the_script_that_calls(tmp_path):
    """Which has no guard: started by multiprocessing's own rules it would begin anew in each of them, and fail."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('imported')\nimport os\nfrom types import SimpleNamespace\nfrom free_study import Bare\n"
        "workers = Bare(1, SimpleNamespace(worker_memory=None), None, devices=[])\n"
        "workers.submit((0, 0), os.getpid)\n((_, found),) = workers.finished(60)\n"
        "print('another' if found.result() != os.getpid() else 'the same')\nworkers.stop()\n"
    )
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["imported", "another"], done.stderr


# --- resume and extend ---------------------------------------------------------------------------------------------------


def test_extend_counts_in_total_and_a_second_call_adds_nothing(root, capsys):
    run = quiet(SEARCH, root)
    first = trained(run)
    before = (run.path / "resolved.yaml").read_bytes()
    nas.resume(run)
    assert "nothing is left to do" in capsys.readouterr().out
    assert (run.path / "resolved.yaml").read_bytes() == before
    for _ in range(2):
        extended = nas.extend(run, trials=3, workers=1, progress=False)
        assert extended.path == run.path and extended.settings["search"]["trials"] == 3
    assert trained(extended)[: len(first)] == first
    whole = quiet(SEARCH, root / "at once", overrides={"search.trials": 3})
    assert trained(extended) == trained(whole)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"trials": 1}, "extend search.trials: expected 2 or more, which the run was asked for, got 1"),
        ({"trials": "many"}, "extend search.trials: expected a valid integer, got 'many'"),
        ({"trials": 0}, "extend search.trials: expected greater than or equal to 1, got 0"),
        ({"repeats": 4}, "extend ablation.repeats: RUN/resolved.yaml has no section ablation; "
                         "expected search.trials or racing.trials"),
        ({}, "extend: expected trials, repeats or racing, got none of them"),
    ],
)  # fmt: skip
def test_a_wrong_extension_is_one_line_and_writes_nothing(root, asked, said):
    run = quiet(SEARCH, root)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        nas.extend(run, **asked)
    assert str(caught.value).replace(str(run.path), "RUN") == said
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("again", [lambda run: nas.extend(run, trials=9), nas.resume])
def test_a_run_that_another_process_holds_is_left_alone(root, again):
    run = quiet(SEARCH, root)
    before = (run.path / "resolved.yaml").read_bytes()
    with lock.hold(run.path, ""), pytest.raises(InputError, match="another process is running this study"):
        again(run)
    assert (run.path / "resolved.yaml").read_bytes() == before


def test_what_is_no_run_is_said_so(tmp_path):
    for function in (nas.Run, nas.resume, nas.export):
        with pytest.raises(InputError, match="not a run directory"):
            function(tmp_path)


# --- a run looked at -----------------------------------------------------------------------------------------------------


def test_the_frames_of_a_search(root):
    run = quiet(SEARCH, root)
    assert nas.load(run.path).equals(run.results()) and run.results().attrs["objectives"] == run.objectives
    front = run.front()
    assert list(front["fid_efficientnet_lite0"]) == sorted(front["fid_efficientnet_lite0"], reverse=True)
    assert set(front["trial"]) == set(nas.load(run.path).query("on_front")["trial"])
    assert run.best["trial"] == run.pick() and run.pick(f"trial:{run.best['trial']}") == run.pick()
    assert len(run.curves()) == 4 and repr(run).startswith(f"Run({str(run.path)!r}): 2 complete")
    shown = run._repr_html_()
    assert shown.count("<tr") == 1 + len(front) and all(f"<td>{trial}</td>" in shown for trial in front["trial"])
    with pytest.raises(InputError, match="ablation: the run has no cells"):
        run.effects()


def test_an_ablation_and_more_repeats_of_it(root):
    run = quiet(ABLATION, root)
    assert run.results().query("state == 'complete'").groupby("cell").size().tolist() == [2, 2]
    told = run.effects()
    assert told.keys() == ablation.of_run(run.path)["denoising_loss"].keys()
    cells = told["cells"].set_index("cell")["mean"]
    by_hand = run.results().groupby("cell")["denoising_loss"].mean()
    assert cells.to_dict() == pytest.approx(by_hand.to_dict())
    assert "denoising_loss" in run._repr_html_() and run._repr_html_().count("<tr") == 3
    with pytest.raises(InputError, match="effects: macs: no such column; expected one of: denoising_loss"):
        run.effects("macs")
    assert len(nas.extend(run, repeats=3, progress=False).trials) == 6


# --- a study in code -----------------------------------------------------------------------------------------------------

WRONG = [
    {"search": {**SEARCH["search"], "trials": 0}},
    {"search": {**SEARCH["search"], "trails": 4}},
    {"search": None},
    {"ablation": ABLATION["ablation"]},
    {"serch": 1},
    {"dataset": "emojis"},
    {"dataset": {"name": "emoji", "limit": True}},
    {"space": None},
    {"budget": {"params": "4OOM"}},
    {"metrics": ["fid", {"name": "kid", "extractor": 3}]},
    {"stopping": {"rungs": [1.0, 0.5]}},
    {"training": {"learning_rate": 2}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_study_in_code_is_refused_in_the_words_for_a_file(tmp_path, root, wrong):
    settings = {**SEARCH, **wrong}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError) as filed:
        study_file.load(path)
    for build in (lambda: nas.Study(**settings), lambda: quiet(settings, root)):
        with pytest.raises(InputError) as coded:
            build()
        place, _, line = str(filed.value).partition(": ")
        assert place.startswith(str(path)) and str(coded.value) == line
    assert not root.exists()


def test_a_study_in_code_is_the_one_of_a_file(tmp_path):
    import numpy as np

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(SEARCH))
    coded = SEARCH | {"search": SEARCH["search"] | {"trials": np.int64(2)}, "space": Path("mobilediffusion")}
    with study_file.opened(nas.Study(**SEARCH)) as (study, _), study_file.opened(coded) as (other, _):
        assert study == other == study_file.load(path) and type(study) is Plain
    with pytest.raises(InputError, match="^name: required, but not given$"):
        nas.Study(**{key: value for key, value in SEARCH.items() if key != "name"})


# --- what a person meets at the prompt -----------------------------------------------------------------------------------


def test_help_and_completion():
    assert set(nas.__all__) <= set(dir(nas)) and not [name for name in dir(nas) if name in ("Any", "TYPE_CHECKING")]
    for name in nas.__all__:
        assert len(inspect.getdoc(getattr(nas, name))) > 60, name
    for name in ("run", "resume", "extend", "export"):
        function = getattr(nas, name)
        for parameter in list(inspect.signature(function).parameters)[1:]:
            told = function.__doc__ + ("" if name == "export" else nas.run.__doc__)
            assert f"\n    {parameter}" in told or f"{parameter}:" in told or name == "export", (name, parameter)
    assert list(inspect.signature(nas.Study).parameters) == list(Plain.model_fields)
    told = pydoc.plain(pydoc.render_doc(nas.Study))
    assert all(f"\n |      {key}: " in told for key in (*Plain.model_fields, "search.pool.looks", "training.lora.rank"))
    assert "nas.run(" in pydoc.plain(pydoc.render_doc(nas))
    with pytest.raises(AttributeError, match="'nas' has no attribute 'Studdy'"):
        nas.Studdy  # noqa: B018


def test_a_notebook_has_one_display_that_goes_when_the_study_is_over(root, monkeypatch, capsys):
    display = pytest.importorskip("IPython.display")
    from nas.report.live import notebook

    shown = []
    handle = SimpleNamespace(update=lambda html: shown.append(html._repr_html_()))
    monkeypatch.setattr(display, "display", lambda html, display_id: shown.append(html._repr_html_()) or handle)
    monkeypatch.setattr(notebook.InNotebook, "_due", lambda self: True)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    nas.run(SEARCH, root=root)
    assert shown[0] == shown[-1] == "" and "front so far" in shown[-2] and "2 of 2 trials" in shown[-2]
    assert all(page.count("\n") < 20 for page in shown)
    printed = capsys.readouterr().out
    assert "complete    1 of 2" not in printed and "Pareto front" in printed
