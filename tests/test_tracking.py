import json
import logging
import subprocess
import sys
import time

import pytest
import synthetic_run
from pydantic import ValidationError

from nas import results, tracking
from nas.tracking import Settings, Tracker

GOALS = {"fid_efficientnet_lite0": "minimise", "macs": "minimise", "clip_score": "maximise"}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def track(run_dir, numbers):
    tracker = Tracker(Settings(mode="offline"), run_dir, "synthetic")
    records = results.records(run_dir)
    for number in numbers:
        tracker.trial(records[number], run_dir / "trials" / f"{number:04d}")
    tracker.finish(results.load(run_dir), GOALS)


def chunks(data):
    """The messages of a .wandb file: LevelDB log format (32 KiB blocks; crc 4, length 2, kind 1) after 7 bytes."""
    place, message = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b""


def read_back(path):
    """One W&B run: its identity, config, history rows and summary."""
    from wandb.proto.wandb_internal_pb2 import Record

    def value(items):
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    run = {"config": {}, "history": [], "summary": {}}
    for message in chunks(path.read_bytes()):
        record = Record.FromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"name": record.run.display_name, "group": record.run.run_group, "job": record.run.job_type}
            run |= {"tags": list(record.run.tags), "project": record.run.project}
            run["config"] |= value(record.run.config.update)
        elif kind == "history":
            run["history"].append(value(record.history.item))
        elif kind == "summary":
            run["summary"] |= value(record.summary.update)
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run


def runs_of(run_dir):
    """Every run by name, once W&B's writer has put the last message of each on disk (a moment after `finish`)."""
    paths = list((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    deadline = time.monotonic() + 20
    while True:
        found = [read_back(path) for path in paths]
        if all("exit" in run for run in found) or time.monotonic() > deadline:
            return {run["name"]: run for run in found}
        time.sleep(0.05)


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


def test_the_last_run_holds_the_front(run_dir):
    track(run_dir, [])
    front = runs_of(run_dir)["front"]
    members = results.load(run_dir).query("on_front")
    assert front["job"] == "summary" and front["config"]["search"]["minimise"] == ["fid_efficientnet_lite0", "macs"]
    assert front["summary"]["front_size"] == len(members) and front["summary"]["trials/complete"] == 12
    logged = {key for row in front["history"] for key in row}
    assert {"front/_type", "chart/clip_score by macs_table/_type"} <= logged
    path = next((run_dir / "wandb").glob("offline-run-*/files/media/table/front_*.table.json"))
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["trial"] for row in rows] == members["trial"].tolist()
    assert [row["macs"] for row in rows] == members["macs"].tolist()
    assert rows[0]["clip_score"] == members["clip_score"].iloc[0]


def test_nothing_is_written_outside_the_run_directory(run_dir, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    track(run_dir, [2])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_without_a_front_is_tracked(tmp_path):
    run_dir = synthetic_run.write(tmp_path / "run", trials=1, states=["failed"])
    track(run_dir, [0])
    assert runs_of(run_dir)["front"]["summary"]["front_size"] == 0


def test_tracking_is_quiet(run_dir):
    code = (
        "from pathlib import Path; from nas import results; from nas.tracking import Settings, Tracker\n"
        f"run = Path({str(run_dir)!r}); tracker = Tracker(Settings(mode='offline'), run, 'quiet')\n"
        "tracker.trial(results.records(run)[2], run / 'trials' / '0002')\n"
        "tracker.finish(results.load(run), results.objectives(results.resolved(run)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 2


def test_off_writes_nothing_and_imports_nothing(run_dir):
    code = (
        "import sys; from pathlib import Path; from nas.tracking import Settings, Tracker\n"
        f"tracker = Tracker(Settings(mode='off'), Path({str(run_dir)!r}), 'x')\n"
        "tracker.trial({'trial': 0}, Path('.')); tracker.finish(None, {})\n"
        "assert 'wandb' not in sys.modules and 'pandas' not in sys.modules\n"
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
    tracker = Tracker(Settings(mode="auto"), run_dir, "synthetic")
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


def test_a_login_in_netrc_counts(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password made-up\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not tracking.logged_in()


def test_online_without_a_login_warns_and_goes_on_offline(caplog):
    assert tracking.chosen_mode("online") == "offline"
    assert "wandb login" in caplog.text


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(ValidationError):
        Settings(mode="sometimes")
    with pytest.raises(ValidationError):
        Settings(projekt="x")
