import json
import re
import socket
import sys
from itertools import product
from types import SimpleNamespace

import pytest
import synthetic_run
import yaml
from offline_runs import runs_of, tables_of
from typer.testing import CliRunner

from nas.analysis import fronts, results
from nas.cli import app
from nas.errors import InputError
from nas.report.wandb import files, sync
from nas.report.wandb.tracking import Tracker
from nas.runs import description
from nas.runs.directory import RunDirectory
from nas.settings.tracking import Tracking

pytest.importorskip("wandb_workspaces", reason="install nas[wandb]")


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(socket, "create_connection", refuse)  # urllib's and requests' way out


def refuse(address, *_, **__):
    raise ConnectionRefusedError(f"a test went to {address}")


def tracked(run_dir, name="synthetic"):
    tracker = Tracker(Tracking(mode="offline"), run_dir, name)
    for record in results.records(run_dir):
        tracker.trial(record, run_dir / "trials" / f"{record['trial']:04d}")
    tracker.finish(results.load(run_dir), results.objectives(description.resolved(run_dir)))
    return run_dir


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A tracked search, not to be changed."""
    return tracked(synthetic_run.write(tmp_path_factory.mktemp("search") / "synthetic" / "2025-03-01"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A tracked ablation, not to be changed."""
    return tracked(synthetic_run.write_cells(tmp_path_factory.mktemp("cells") / "synthetic" / "2025-03-02"))


def everything(value, key):
    """Every value under a key, at any depth."""
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == key] + [f for v in value.values() for f in everything(v, key)]
    return [found for part in value for found in everything(part, key)] if isinstance(value, list) else []


def filtered(spec):
    """The conditions of all filters."""
    return [one for found in everything(spec, "filters") if isinstance(found, list) for one in found if "op" in one]


def panels_of(spec):
    """Panels by section of the workspace, and by heading of the report."""
    sections = spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    workspace = {section["name"]: section["panels"] for section in sections}
    report, heading = {}, ""
    for block in spec["report"]["spec"]["blocks"]:
        if block["type"] == "heading":
            heading = block["children"][0]["text"]
        if block["type"] == "panel-grid":
            report[heading] = block["metadata"]["panelBankSectionConfig"]["panels"]
    return workspace, report


def table_of(panel):
    """The name of the table that a table panel shows: the one constant of its expression that is not a layout."""
    return next(key["val"] for key in everything(panel["config"], "key") if isinstance(key, dict) and "val" in key)


def named(panels):
    """What panels show, as (kind, name): summaries and configs of runs, histories, pictures and tables."""
    found = set()
    for panel in panels:
        config = panel["config"]
        axes = [config.get(axis) for axis in ("xAxis", "yAxis")] if panel["viewType"] == "Scatter Plot" else []
        for accessor in axes + [column["accessor"] for column in config.get("columns", [])]:
            found.add(tuple(accessor.split(":")))
        if panel["viewType"] == "Run History Line Plot":
            found |= {("history", name) for name in [config["xAxis"], *config["metrics"]]}
        found |= {("picture", name) for name in config.get("mediaKeys", [])}
        if panel["viewType"] == "Weave":
            found.add(("table", table_of(panel)))
    return found


def logged(run_dir):
    """What the offline runs hold, in the same terms."""
    found = {("table", name) for name in tables_of(run_dir)}
    for run in runs_of(run_dir).values():
        found |= {("summary", name) for name in run["summary"]}
        found |= {("history", name) for row in run["history"] for name in row}
        found |= {
            ("picture", name.removesuffix("/_type"))
            for row in run["history"]
            for name in row
            if row[name] == "image-file"
        }
        for section, values in run["config"].items():
            inner = values if isinstance(values, dict) else {}
            found |= {("config", f"{section}.value.{name}") for name in inner}
    return found


@pytest.mark.parametrize("kind", ["search", "cells"])
def test_every_field_is_one_that_is_logged(kind, request):
    run_dir = request.getfixturevalue(kind)
    spec = sync.specification(sync.target(run_dir))
    workspace, report = panels_of(spec)
    known = logged(run_dir)
    for shown in (workspace, report):
        wanted = named(panel for panels in shown.values() for panel in panels)
        assert wanted and wanted <= known, wanted - known
    assert named(p for ps in workspace.values() for p in ps) == named(p for ps in report.values() for p in ps)
    columns = spec["workspace"]["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert {tuple(column.split(":")) for column in columns} - {("run", "displayName")} <= known
    for filters in everything(spec, "filters"):
        found = {one["key"]["name"]: one["value"] for one in (filters if isinstance(filters, list) else [])}
        assert found.get("group", f"synthetic/{run_dir.name}") == f"synthetic/{run_dir.name}"
        assert found.get("jobType", "trial") in {run["job"] for run in runs_of(run_dir).values()}


def test_a_searchs_parts(search):
    aim = sync.target(search, "team", "architectures")
    spec = sync.specification(aim)
    workspace, report = panels_of(spec)
    order = ["Front", "Samples of the best", "Samples of every trial", "Decisions against objectives", "Hypervolume"]
    assert list(workspace) == list(report) == [*order, "Learning curves", "Every trial"]
    axes = [(panel["config"]["xAxis"], panel["config"]["yAxis"]) for panel in workspace["Front"]]
    assert axes == [
        ("summary:macs", "summary:fid_efficientnet_lite0"),
        ("summary:macs", "summary:clip_score"),
        ("summary:fid_efficientnet_lite0", "summary:clip_score"),
    ]
    columns = workspace["Decisions against objectives"][0]["config"]["columns"]
    assert [c["accessor"] for c in columns[:2]] == [
        "config:choices.value.depth",
        "config:choices.value.bottleneck_channels",
    ]
    upside_down = {c["accessor"]: c.get("inverted") for c in columns if c["accessor"].startswith("summary:")}
    assert upside_down == {"summary:fid_efficientnet_lite0": True, "summary:macs": True, "summary:clip_score": False}
    assert (spec["workspace"]["entity"], spec["workspace"]["project"]) == ("team", "architectures")
    assert spec["report"]["project"] == {"name": "architectures", "entityName": "team"}
    assert (
        spec["runs"] == sorted(path.name for path in (search / "wandb").glob("offline-run-*"))
        and len(spec["runs"]) == 25
    )
    texts = [block["children"][0].get("text", "") for block in spec["report"]["spec"]["blocks"]]
    assert any(text.startswith("24 architectures were proposed") for text in texts)
    assert any(text.startswith("clip_score: unit 100 * cosine") for text in texts)
    for panels in report.values():  # nothing lies over anything else
        boxes = [panel["layout"] for panel in panels]
        spans = [(range(box["x"], box["x"] + box["w"]), range(box["y"], box["y"] + box["h"])) for box in boxes]
        taken = [place for across, down in spans for place in product(across, down)]
        assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24


def test_an_ablation_shows_its_effects(cells):
    workspace, _ = panels_of(sync.specification(sync.target(cells)))
    assert [table_of(panel) for panel in workspace["Effects"]] == ["effects", "cells"]
    assert "Front" not in workspace and "Hypervolume" not in workspace
    columns = workspace["Decisions against objectives"][0]["config"]["columns"]
    assert columns[0]["accessor"] == "config:choices.value.pace"


def test_a_dry_run_prints_the_specification(search):
    done = CliRunner().invoke(
        app, ["wandb", "sync", str(search.parent), "--dry-run", "--entity", "me", "--project", "p"]
    )
    assert done.exit_code == 0, done.output
    spec = json.loads(done.stdout)
    assert (
        set(spec) == {"runs", "missing", "workspace", "report"}
        and spec["missing"] == []
        and spec["workspace"]["entity"] == "me"
    )
    assert spec["workspace"]["displayName"] == "synthetic/2025-03-01"


def test_a_run_without_a_front_or_pictures_has_a_specification(tmp_path):
    run_dir = tracked(synthetic_run.write(tmp_path / "synthetic" / "run", trials=1, states=["failed"], pictures=False))
    workspace, _ = panels_of(sync.specification(sync.target(run_dir)))
    assert not {"Hypervolume", "Samples of the best", "Samples of every trial", "Learning curves"} & set(workspace)


def refused(run_dir):
    with pytest.raises(InputError) as caught:
        sync.sync(sync.target(run_dir), print)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_sent_is_one_line(search, run_dir, monkeypatch):
    settings = yaml.safe_load((run_dir / "resolved.yaml").read_text())
    (run_dir / "resolved.yaml").write_text(yaml.safe_dump(settings | {"tracking": {"mode": "off"}}))
    assert "tracking.mode is off" in refused(run_dir)
    assert refused(search) == "no W&B key: run `wandb login`, or set WANDB_API_KEY"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert re.fullmatch(r"W&B is out of reach at http://127.0.0.1:\d+: .+", refused(search))
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert refused(search) == "nas wandb needs the package wandb-workspaces: pip install 'nas[wandb]'"
    done = CliRunner().invoke(app, ["wandb", "sync", str(search), "--dry-run"])
    assert isinstance(done.exception, InputError)  # `main` turns it into one line and exit code 2


def test_who_is_on_the_front_is_written_into_the_summaries(search):
    aim = sync.target(search, "team", "p")
    table = results.load(search)
    runs = [SimpleNamespace(config={"trial": int(trial)}, summary={}) for trial in table["trial"]]
    asked = []

    def find(path, filters):
        asked.append((path, filters["group"]))
        return runs

    sync.mark(aim, SimpleNamespace(runs=find))
    assert asked == [("team/p", "synthetic/2025-03-01")]
    assert [run.summary["on_front"] for run in runs] == table["on_front"].tolist()
    assert [run.config["trial"] for run in runs if run.summary["knee"]] == [fronts.knee(table, aim.run.goals)]


def test_a_run_without_trials_that_ended_has_nothing_to_send(tmp_path):
    run_dir = synthetic_run.write(tmp_path / "run", trials=2, states=["over_budget", "running"])
    assert refused(run_dir).endswith("no trial has ended, so there is nothing to send")


@pytest.mark.parametrize("given", [{"project": "a:b"}, {"entity": "it's"}])
def test_names_that_are_none_for_wandb_are_one_line(search, given):
    with pytest.raises(InputError, match=rf"tracking.{next(iter(given))}: .*none of them a quote") as caught:
        sync.target(search, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["it's", 'a "b": c', "1 + 1 = 2", "smile \U0001f600"])
def test_a_study_of_any_name_has_a_specification(tmp_path, name):
    run_dir = synthetic_run.write(tmp_path / "synthetic" / "2025-03-01", trials=1, states=["complete"])
    settings = yaml.safe_load((run_dir / "resolved.yaml").read_text())
    (run_dir / "resolved.yaml").write_text(yaml.safe_dump(settings | {"name": name}))
    tracked(run_dir, name)
    aim = sync.target(run_dir)
    spec = sync.specification(aim)
    groups = {found["value"] for found in filtered(spec) if found["key"]["name"] == "group"}
    assert groups == {aim.group} == {run["group"] for run in runs_of(run_dir).values()}
    assert spec["workspace"]["displayName"] == aim.group


def test_what_the_study_did_not_log_is_written_first(tmp_path):
    states = ["complete", "over_budget", "failed", "stopped", "running"]
    run_dir = synthetic_run.write(tmp_path / "synthetic" / "2025-03-01", trials=5, states=states)
    tracker = Tracker(Tracking(mode="offline"), run_dir, "synthetic")
    tracker.trial(results.records(run_dir)[3], run_dir / "trials" / "0003")
    tracker._thread.shutdown(wait=True)
    assert set(runs_of(run_dir)) == {"trial 0003"}
    aim, said = sync.target(run_dir), []
    assert sync.specification(aim)["missing"] == ["trial 0000", "trial 0002", "front"]
    with RunDirectory(run_dir).lock():
        sync.write_missing(aim, said.append)
    assert set(runs_of(run_dir)) == {"trial 0003"}
    sync.write_missing(aim, said.append)
    sync.write_missing(aim, said.append)
    names = "trial 0000, trial 0002, front"
    assert said == [
        f"not logged yet, which is left to the process that runs the study: {names}",
        f"written from the records: {names}",
    ]
    runs = {run.name: run for run in files.runs(run_dir)}  # whole at once: the upload comes next
    assert set(runs) == {"trial 0000", "trial 0002", "trial 0003", "front"} and all(run.ended for run in runs.values())
    assert runs_of(run_dir)["trial 0000"]["summary"]["state"] == "complete"


def test_only_new_runs_are_uploaded(run_dir, monkeypatch):
    tracker = Tracker(Tracking(mode="offline"), run_dir, "synthetic")
    for number in (2, 3):
        tracker.trial(results.records(run_dir)[number], run_dir / "trials" / f"{number:04d}")
    tracker._thread.shutdown(wait=True)
    first, second = sync.offline_runs(run_dir)
    calls, said = [], []

    def wandb_would(command, **_):
        calls.append(command)
        for folder in command[command.index("nas") + 1 :]:
            next(sync.Path(folder).glob("*.wandb")).with_suffix(".wandb.synced").touch()
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(sync.subprocess, "run", wandb_would)
    first.with_suffix(".wandb.synced").touch()
    aim = sync.target(run_dir)
    sync.upload(aim, said.append)
    assert calls == [[sys.executable, "-m", "wandb", "sync", "--project", "nas", str(second.parent)]]
    sync.upload(aim, said.append)
    assert said == ["uploaded 1 run", "every offline run was uploaded before"] and len(calls) == 1
    second.with_suffix(".wandb.synced").unlink()
    silent = SimpleNamespace(returncode=0, stdout="", stderr="wandb: ERROR server says no\n")
    monkeypatch.setattr(sync.subprocess, "run", lambda *_, **__: silent)
    with pytest.raises(InputError, match="1 of 1 runs were not uploaded: wandb: ERROR server says no"):
        sync.upload(aim, said.append)
