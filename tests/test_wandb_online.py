"""W&B online, against a stand-in for its server: what arrives, after a kill and after a refusal, and offline runs sent later."""

import json
import subprocess
import sys
import textwrap

import pytest
import wandb
import wandb_server
from offline_runs import runs_of

from nas.analysis import results
from nas.report.wandb import files, sync, tracking
from nas.report.wandb.tracking import Tracker
from nas.settings.tracking import Tracking

GOALS = {"fid_efficientnet_lite0": "minimise", "macs": "minimise", "clip_score": "maximise"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with wandb_server.Server() as made:
        for name, value in (("BASE_URL", made.address), ("API_KEY", wandb_server.KEY), ("MODE", None)):
            monkeypatch.delenv(f"WANDB_{name}") if value is None else monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
        wandb.teardown()  # its process knows one server
        yield made
        wandb.teardown()


def tracker_of(run_dir):
    made = Tracker(Tracking(mode="auto"), run_dir, "synthetic")
    assert made.mode == "online"
    return made


def arrived(run, record):
    """A trial's run is its record."""
    scores = [{**rung["metrics"], "images_seen": rung["images_seen"]} for rung in record["rungs"]]
    rows = [run.history[place] for place in sorted(run.history)]
    found = [{name: row[name] for name in wanted} for row, wanted in zip(rows, scores, strict=True)]
    return (
        found == scores and run.summary["state"] == record["state"] and run.exit_code == (record["state"] == "failed")
    )


def test_a_study_arrives_as_its_records_say(server, run_dir):
    records, table, tracker = results.records(run_dir), results.load(run_dir), tracker_of(run_dir)
    for number in (2, 3, 9):
        tracker.trial(records[number], run_dir / "trials" / f"{number:04d}")
    tracker.finish(table, GOALS)
    assert tracker.mode == "online" and not server.unknown
    runs = server.by_name()
    assert set(runs) == {"trial 0002", "trial 0003", "trial 0009", "front"} and len(server.runs) == 4
    assert all(arrived(runs[f"trial {number:04d}"], records[number]) for number in (2, 3, 9))
    told = runs["trial 0002"].fields
    assert (told["groupName"], told["jobType"], told["project"]) == ("synthetic/2025-03-01", "trial", "nas")
    config = json.loads(told["config"])
    assert config["choices"]["value"] == records[2]["choices"]
    drawn = [
        name for name in server.uploads if "media/images/samples" in name and name.startswith(_id(server, "trial 0002"))
    ]
    assert len(drawn) == 3  # of its rungs
    trials = json.loads(server.uploads[f"artifacts/run-{_id(server, 'front')}-trials/trials.table.json"])
    assert trials["columns"] == list(table.columns) and len(trials["data"]) == len(table)
    assert f"run-{_id(server, 'front')}-samples" in server.committed
    assert runs["front"].summary["front_size"] == table["on_front"].sum()


def _id(server, name):
    return next(key for key, run in server.runs.items() if run.name == name)


KILLED = """
import os, signal, sys
from pathlib import Path
from nas.analysis import results
from nas.report.wandb import tracking
from nas.settings.tracking import Tracking

run_dir = Path(sys.argv[1])
record = results.records(run_dir)[2]
tracker = tracking.Tracker(Tracking(), run_dir, "synthetic")
tracker.trial(results.records(run_dir)[3], run_dir / "trials" / "0003")
tracker._thread.submit(lambda: None).result()
run = tracker._start("trial", tracking.trial_name(record), {"trial": 2}, ["complete"])
run.log({"images_seen": record["rungs"][0]["images_seen"], "clip_score": -1.0})
print(run.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_begun_is_written_once_more_under_its_name(server, run_dir):
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), run_dir], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr[-2000:]
    begun = ended.stdout.split()[-1]
    records = [record for record in results.records(run_dir) if record["trial"] in (2, 3)]
    tracker = tracker_of(run_dir)
    tracker.catch_up(records)
    tracker._thread.shutdown(wait=True)
    assert set(server.by_name()) == {"trial 0002", "trial 0003"} and set(server.runs) == {
        begun,
        _id(server, "trial 0003"),
    }
    assert all(arrived(server.by_name()[tracking.trial_name(record)], record) for record in records)
    again = tracker_of(run_dir)
    again.catch_up(records)
    again._thread.shutdown(wait=True)
    assert not tracking.unwritten(files.runs(run_dir), records)
    assert [run.begun for run in server.runs.values()] == [run.begun for run in server.runs.values()]


def test_what_the_server_refuses_half_way_is_kept_under_the_same_name(server, run_dir, caplog, monkeypatch):
    monkeypatch.setattr(server, "_ArtifactType", lambda given: {}, raising=False)  # no answer that W&B knows
    tracker = tracker_of(run_dir)
    tracker.finish(results.load(run_dir), GOALS)
    assert tracker.mode == "offline" and "going on offline" in caplog.text
    assert set(runs_of(run_dir)) == {"front"}
    (kept,) = [run for run in files.runs(run_dir) if run.offline]
    assert kept.identity == _id(server, "front")


def test_offline_runs_are_sent_later(server, run_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(Tracking(mode="offline"), run_dir, "synthetic")
    records = results.records(run_dir)
    for number in (2, 3):
        tracker.trial(records[number], run_dir / "trials" / f"{number:04d}")
    tracker.finish(results.load(run_dir), GOALS)
    runs_of(run_dir)  # waits until they are whole
    said = []
    sync.upload(sync.target(run_dir), said.append)
    runs = server.by_name()
    assert set(runs) == {"trial 0002", "trial 0003", "front"} and said == ["uploaded 3 runs"]
    assert all(arrived(runs[f"trial {number:04d}"], records[number]) for number in (2, 3))
    sync.upload(sync.target(run_dir), said.append)
    assert said[1:] == ["every offline run was uploaded before"] and len(server.runs) == 3
    assert not (tmp_path / "wandb").exists()
