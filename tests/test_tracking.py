import logging
import os
import subprocess
import sys
from urllib.parse import urlparse

import pandas as pd
import pytest
import synthetic_run
import wandb
from offline_runs import chunks, pictures_of, read_back, runs_of, tables_of
from pydantic import ValidationError

from nas.analysis import ablation, findings, fronts, results
from nas.report.wandb import files, tracking
from nas.report.wandb.tracking import Tracker
from nas.runs import description
from nas.settings.tracking import Tracking

GOALS = {"fid_efficientnet_lite0": "minimise", "macs": "minimise", "clip_score": "maximise"}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def track(run_dir, numbers):
    tracker = Tracker(Tracking(mode="offline"), run_dir, "synthetic")
    records = results.records(run_dir)
    for number in numbers:
        tracker.trial(records[number], run_dir / "trials" / f"{number:04d}")
    tracker.finish(results.load(run_dir), GOALS)


def test_offline_runs_hold_the_records(run_dir):
    track(run_dir, [2, 3, 9])
    runs, records = runs_of(run_dir), results.records(run_dir)
    assert set(runs) == {"trial 0002", "trial 0003", "trial 0009", "front"}
    run, record = runs["trial 0002"], records[2]
    assert run["group"] == "synthetic/2025-03-01" and run["job"] == "trial" and run["tags"] == ["complete"]
    assert run["config"]["choices"] == record["choices"] and run["config"]["cost"] == record["cost"]
    rungs = [row for row in run["history"] if "clip_score" in row]
    assert [row["images_seen"] for row in rungs] == [5120, 10240, 20480]
    assert rungs[-1]["clip_score"] == record["rungs"][-1]["metrics"]["clip_score"]
    assert rungs[0]["train_s"] == 4.0
    samples = [row for row in run["history"] if "samples/_type" in row]
    assert [(row["samples/_type"], row["samples/height"]) for row in samples] == [("image-file", 3 * 66 - 2)] * 3
    assert [row["images_seen"] for row in samples] == [5120, 10240, 20480]
    assert run["summary"]["state"] == "complete" and run["exit"] == 0
    assert runs["trial 0009"]["exit"] == 1 and runs["trial 0009"]["summary"]["reason"].startswith("loss is not finite")


def flat(value, path=""):
    """Leaves by path, lists by index: written a second time, on purpose."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {leaf: inner for key, part in items for leaf, inner in flat(part, f"{path}.{key}").items()}
    return {path: value}


def test_config_and_summary_hold_every_field(run_dir):
    """Of a trial of every state: nothing of its record is missing, and its summary is its row of results.csv."""
    numbers = [0, 1, 3, 4, 5, 9, 23]
    track(run_dir, numbers)
    runs, records, table = runs_of(run_dir), results.records(run_dir), results.load(run_dir).set_index("trial")
    settings = description.resolved(run_dir)
    states = set()
    for number in numbers:
        record = records[number]
        run = runs[f"trial {number:04d}"]
        states.add(record["state"])
        config = flat({name: part for name, part in run["config"].items() if name != "_wandb"})
        assert not any(isinstance(value, list | dict) for value in config.values())
        whole = {name: record[name] for name in ("choices", "cost", "proxy_cost", "architecture")}
        whole |= {name: record[name] for name in ("trial", "key", "seed", "repeat", "init")}
        told = {name: settings[name] for name in ("name", "search", "budget", "training")}
        assert config == flat(whole | {"settings": told, "system": settings["provenance"]})
        row = table.loc[number].drop("on_front").dropna()
        row = row[[not name.startswith("arch.") for name in row.index]]
        assert set(row.index) | {"trial"} <= set(run["summary"])
        assert {name: run["summary"][name] for name in row.index} == {name: plain(value) for name, value in row.items()}
        assert len(run["history"]) == len(record["rungs"]) and run["job"] == "trial"
        for logged, rung in zip(run["history"], record["rungs"], strict=True):
            numbers = rung["metrics"] | rung["timings"] | {name: rung[name] for name in ("images_seen", "images_per_s")}
            assert {name: logged[name] for name in numbers} == numbers
    assert states == set(results.STATES)


def plain(value):
    """As JSON has it."""
    if value is None or value is pd.NA or value != value:
        return None
    return value.item() if hasattr(value, "item") else value


def test_the_last_run_holds_the_study(run_dir):
    track(run_dir, [])
    study, table = runs_of(run_dir)["front"], results.load(run_dir)
    tables = tables_of(run_dir)
    columns, rows = tables["trials"]
    assert columns == list(table.columns) and len(rows) == 24
    for name, logged in zip(columns, zip(*rows, strict=True), strict=True):
        assert list(logged) == [plain(value) for value in table[name]], name
    columns, rows = tables["samples"]
    assert columns == ["trial", *GOALS, "drawn"]
    assert [row[0] for row in rows] == table.loc[table["on_front"], "trial"].tolist()
    drawn = [(run_dir / "trials" / f"{row[0]:04d}" / "samples.png").read_bytes() for row in rows]
    assert sorted(pictures_of(run_dir, "samples").values()) == sorted(drawn)
    history = findings.hypervolume(table, GOALS)
    logged = [row for row in study["history"] if tracking.HYPERVOLUME in row]
    assert [row[tracking.HYPERVOLUME] for row in logged] == history["share"].tolist()
    assert [row[tracking.SPENT] for row in logged] == history["images_trained"].tolist()
    assert study["config"]["conditions"] == description.conditions(run_dir)
    assert study["config"]["provenance"] == description.resolved(run_dir)["provenance"]
    assert study["summary"]["knee"] == fronts.knee(table, GOALS)


def test_an_ablations_runs_hold_its_settings_and_effects(tmp_path):
    run_dir = synthetic_run.write_cells(tmp_path / "cells" / "run")
    records = results.records(run_dir)
    tracker = Tracker(Tracking(mode="offline"), run_dir, "cells")
    tracker.trial(records[1], run_dir / "trials" / "0001")
    tracker.finish(results.load(run_dir), results.objectives(description.resolved(run_dir)))
    runs, tables = runs_of(run_dir), tables_of(run_dir)
    config = runs["trial 0001"]["config"]
    assert config["cell"] == records[1]["cell"] and config["choices"] == records[1]["choices"]
    assert config["settings"]["training"] == {
        "init": "supernet",
        "images_seen": 20480,
        "batch": 64,
        "learning_rate": 1e-3,
    }
    assert "ablation" not in config["settings"]
    columns, rows = tables["effects"]
    wanted = ablation.together(ablation.of_run(run_dir))
    assert columns == list(wanted.columns) and len(rows) == len(wanted)
    kept = wanted["estimate"].notna().to_numpy()
    place = columns.index("estimate")
    assert [row[place] for row, known in zip(rows, kept, strict=True) if known] == wanted.loc[kept, "estimate"].tolist()
    assert tables["cells"][1] and len(tables["trials"][1]) == 6 and "cells" in runs


def test_a_cells_settings_replace_the_studys():
    study = {"training": {"batch": 64, "lora": None}, "sampling": {"solver": "dpm++", "steps": 10}}
    cell = {"training.batch": 8, "training.lora.rank": 4, "sampling": {"solver": "one_step"}}
    changed = tracking.with_settings(study, cell)
    assert changed == {"training": {"batch": 8, "lora": {"rank": 4}}, "sampling": {"solver": "one_step"}}
    assert study["training"] == {"batch": 64, "lora": None}  # untouched


def test_the_last_run_holds_the_front(run_dir):
    track(run_dir, [])
    front = runs_of(run_dir)["front"]
    members = results.load(run_dir).query("on_front")
    assert front["job"] == "summary" and front["config"]["search"]["minimise"] == ["fid_efficientnet_lite0", "macs"]
    assert front["summary"]["front_size"] == len(members) and front["summary"]["trials/complete"] == 12
    logged = {key for row in front["history"] for key in row}
    assert {"front/_type", "chart/clip_score by macs_table/_type"} <= logged
    columns, data = tables_of(run_dir)["front"]
    rows = [dict(zip(columns, row, strict=True)) for row in data]
    assert [row["trial"] for row in rows] == members["trial"].tolist()
    assert [row["macs"] for row in rows] == members["macs"].tolist()
    assert rows[0]["clip_score"] == members["clip_score"].iloc[0]


def test_nothing_is_written_outside_the_run_directory(run_dir, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))  # where W&B would put the files of tables
    track(run_dir, [2])
    assert not list((tmp_path / "elsewhere").iterdir())
    assert list((run_dir / "wandb" / "staged").rglob("tmp*")) and tracking.STAGING not in os.environ


def files_of(run_dir):
    """The file of every run by its name."""
    paths = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    return {read_back(path)["name"]: path for path in paths}


def caught_up(run_dir, numbers):
    tracker = Tracker(Tracking(mode="offline"), run_dir, "synthetic")
    tracker.catch_up([results.records(run_dir)[number] for number in numbers])
    tracker.finish(results.load(run_dir), GOALS)


def test_what_was_not_written_is_written_from_the_records(run_dir, caplog):
    """One run is whole, one was torn by a kill, one of a trial over budget never was, and one never came to be."""
    track(run_dir, [2, 3])
    assert set(runs_of(run_dir)) == {"trial 0002", "trial 0003", "front"}  # waits for their last messages
    before = files_of(run_dir)
    whole, torn = before["trial 0002"].read_bytes(), before["trial 0003"]
    torn.write_bytes(torn.read_bytes()[:-20])
    wandb.teardown()  # another process goes on
    over = next(record["trial"] for record in results.records(run_dir) if record["state"] == "over_budget")
    with caplog.at_level(logging.WARNING):
        caught_up(run_dir, [2, 3, over, 9])
    assert [record.getMessage() for record in caplog.records if record.name == "nas.report.wandb.tracking"] == [
        "W&B lacks trials 3, 9, which ended before: written now from the records"
    ]
    runs, after = runs_of(run_dir), files_of(run_dir)
    assert set(runs) == {"trial 0002", "trial 0003", "trial 0009", "front"} and all(
        "exit" in run for run in runs.values()
    )
    assert before["trial 0002"].read_bytes() == whole
    assert after["trial 0003"].name == torn.name  # the same run for W&B, which may know its beginning
    assert len(list((run_dir / "wandb").glob("*run-*/*.wandb"))) == 5  # two of the study, one of each trial
    record = results.records(run_dir)[3]
    assert runs["trial 0003"]["config"]["choices"] == record["choices"]
    assert [row["images_seen"] for row in runs["trial 0003"]["history"]] == [r["images_seen"] for r in record["rungs"]]


def test_a_killed_process_loses_no_run(run_dir):
    code = (
        "import os, time; from pathlib import Path; from nas.analysis import results; from nas.report.wandb import files\n"
        "from nas.report.wandb.tracking import Tracker; from nas.settings.tracking import Tracking\n"
        f"run = Path({str(run_dir)!r}); tracker = Tracker(Tracking(mode='offline'), run, 'synthetic')\n"
        "for number in (2, 3, 9): tracker.trial(results.records(run)[number], run / 'trials' / f'{number:04d}')\n"
        "while not files.runs(run): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    caught_up(run_dir, [2, 3, 9])
    runs = runs_of(run_dir)
    assert {name for name, run in runs.items() if "exit" in run} == {"trial 0002", "trial 0003", "trial 0009", "front"}
    assert runs["trial 0009"]["summary"]["reason"].startswith("loss is not finite")


def test_a_file_is_read_as_far_as_it_is_whole(run_dir):
    track(run_dir, [2])
    runs_of(run_dir)
    for path in files_of(run_dir).values():
        data, expected = path.read_bytes(), read_back(path)
        found = files.read(path)
        assert (found.name, found.job, found.ended) == (expected["name"], expected["job"], True)
        assert list(files.messages(data)) == list(chunks(data))
        for length in {0, 3, 7, 10, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:length])
            assert not files.read(path).ended
        path.write_bytes(data)
    assert {run.name for run in files.runs(run_dir) if run.offline} == {"trial 0002", "front"}


@pytest.mark.parametrize("study", ["it's", 'a "b"', "a:b=c", "a<b", "1+1", "smile \U0001f600", "x" * 300])
def test_a_group_is_a_name_that_filters_can_say(study, tmp_path):
    found = tracking.group(study, tmp_path / "2026-01-01")
    assert found.endswith("/2026-01-01") and len(found) <= 128
    assert not set(found) & set("'\"\\:=<>+\U0001f600") and found[0] == study[0]
    assert tracking.group("Größe 1.5 (b)/c_d-e", tmp_path / "f") == "Größe 1.5 (b)/c_d-e/f"


@pytest.mark.parametrize("key", ["project", "entity"])
@pytest.mark.parametrize(
    "name", ["", " ", "a:b", "a/b", "a\\b", "50%", "what?", "#1", "it's", 'a "b"', "a\nb", "x" * 129]
)
def test_names_that_are_none_for_wandb_are_refused(key, name):
    with pytest.raises(ValidationError, match="expected at most 128 letters, none of them a quote or one of"):
        Tracking(**{key: name})
    assert getattr(Tracking(**{key: "x-1_2.3"}), key) == "x-1_2.3"


def test_a_run_without_a_front_is_tracked(tmp_path):
    run_dir = synthetic_run.write(tmp_path / "run", trials=1, states=["failed"])
    track(run_dir, [0])
    assert runs_of(run_dir)["front"]["summary"]["front_size"] == 0


def test_tracking_is_quiet(run_dir):
    code = (
        "from pathlib import Path; from nas.analysis import results; from nas.runs import description\n"
        "from nas.report.wandb.tracking import Tracker; from nas.settings.tracking import Tracking\n"
        f"run = Path({str(run_dir)!r}); tracker = Tracker(Tracking(mode='offline'), run, 'quiet')\n"
        "tracker.trial(results.records(run)[2], run / 'trials' / '0002')\n"
        "tracker.finish(results.load(run), results.objectives(description.resolved(run)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 2


def test_off_writes_nothing_and_imports_nothing(run_dir):
    code = (
        "import sys; from pathlib import Path; from nas.report.wandb.tracking import Tracker\n"
        "from nas.settings.tracking import Tracking\n"
        f"tracker = Tracker(Tracking(mode='off'), Path({str(run_dir)!r}), 'x')\n"
        "tracker.trial({'trial': 0}, Path('.')); tracker.finish(None, {})\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (run_dir / "wandb").exists()


def test_an_error_is_one_warning_line(run_dir, monkeypatch, caplog):
    def broken(*_):
        raise OSError("disk\nfull")

    monkeypatch.setattr(Tracker, "_start", broken)
    with caplog.at_level(logging.WARNING):
        track(run_dir, [2])
    assert [record.getMessage() for record in caplog.records] == [
        "W&B logging failed, results are not affected: disk full"
    ] * 2


def test_a_lost_connection_turns_the_rest_offline(run_dir, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    start = Tracker._start

    def unreachable(self, *arguments):
        if self.mode == "online":
            raise ConnectionError("no route")
        return start(self, *arguments)

    monkeypatch.setattr(Tracker, "_start", unreachable)
    tracker = Tracker(Tracking(mode="auto"), run_dir, "synthetic")
    assert tracker.mode == "online"
    with caplog.at_level(logging.WARNING):
        tracker.trial(results.records(run_dir)[2], run_dir / "trials" / "0002")
        tracker.finish(results.load(run_dir), GOALS)
    assert [record.getMessage() for record in caplog.records] == ["W&B is out of reach, going on offline: no route"]
    assert set(runs_of(run_dir)) == {"trial 0002", "front"}


def test_mode_follows_the_login(monkeypatch, tmp_path):
    assert tracking.chosen_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert tracking.chosen_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.chosen_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.chosen_mode("auto") == "off"
    assert tracking.chosen_mode("online") == "online" and tracking.chosen_mode("off") == "off"


@pytest.mark.parametrize("host", tracking.HOSTS)
def test_a_login_in_netrc_counts(monkeypatch, tmp_path, host):
    (tmp_path / "netrc").write_text(f"machine {host} login user password made-up\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not tracking.logged_in()


def test_the_hosts_are_those_wandb_logs_in_to():
    from wandb.sdk.lib import urls

    assert urlparse(urls.DEFAULT_BASE_URL).hostname == tracking.HOSTS[0]
    assert urlparse(urls.forge_upstream_url(urls.DEFAULT_BASE_URL)).hostname == tracking.HOSTS[1]


def test_online_without_a_login_warns_and_goes_on_offline(caplog):
    assert tracking.chosen_mode("online") == "offline"
    assert "wandb login" in caplog.text


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(ValidationError):
        Tracking(mode="sometimes")
    with pytest.raises(ValidationError):
        Tracking(projekt="x")


def test_only_a_png_is_taken_for_samples(run_dir, tmp_path):
    """W&B opens what it is handed with whatever Pillow knows, which starts programs for some formats."""
    from nas.runs.pictures import is_png, read_grid, whole

    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", b"", b"P6 1 1 255\n..."):
        (tmp_path / "samples.png").write_bytes(content)
        assert not is_png(tmp_path / "samples.png")
        assert read_grid(tmp_path / "samples.png") is None and whole(tmp_path / "samples.png") is None
    assert is_png(run_dir / "trials" / "0002" / "samples.png") and not is_png(tmp_path)
