"""What a run meets in days: a full and a read-only disk, a database that restarts, a scheduler that takes the machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import free_study
import pytest
import small_disk
from safetensors import safe_open

from nas.failures import disk_trouble

ROOT = Path(__file__).parents[1]
TRIALS = 12
SMALL = [
    "search.trials=1",
    "training.images_seen=2048",
    "training.batch=16",
    "evaluation.images=16",
    "sampling.steps=2",
    "dataset={name: emoji, limit: 96}",
    "metrics=[fid, clip_score]",
    "budget={}",
]


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(free_study.STUDY.format(trials=TRIALS, workers=2))
    return path


def records(root):
    found = [json.loads(path.read_text()) for path in root.glob("*/*/trials/*/record.json")]
    return {record["trial"]: record for record in found}


def told(found):
    return {
        record["key"]: (record["state"], record.get("seed"), [rung["metrics"] for rung in record["rungs"]])
        for record in found.values()
    }


# --- the disk --------------------------------------------------------------------------------------------------------


def attempt(study, disk, said):
    """In a child: what the study ends with, as nas.cli would say it."""
    try:
        free_study.coordinate(study, disk)
        said.write_text("done")
    except Exception as error:
        said.write_text(disk_trouble(error) or repr(error))


def through_trouble(study, disk, folder):
    """In a child: the same study on a disk that is too small, then read-only, then as it should be."""
    try:
        small_disk.mount(disk, 100)
    except small_disk.Unavailable:
        return (folder / "unavailable").touch()
    for step, options in {"full": "size=100k", "read-only": "ro,size=64m", "repaired": "rw,size=64m"}.items():
        small_disk.change(disk, options)
        os.waitpid(free_study.forked(attempt, study, disk, folder / step), 0)
        (folder / f"after {step}").write_text(json.dumps(told(records(disk))))


def test_a_full_and_a_read_only_disk_lose_nothing(study, tmp_path):
    free_study.coordinate(study, tmp_path / "undisturbed")
    (disk := tmp_path / "disk").mkdir()
    os.waitpid(free_study.forked(through_trouble, study, disk, tmp_path), 0)
    if (tmp_path / "unavailable").exists():
        pytest.skip("this user may not mount a small disk")
    said = {step: (tmp_path / step).read_text() for step in ("full", "read-only", "repaired")}
    assert "no space left" in said["full"].lower(), said
    assert "read-only" in said["read-only"].lower(), said
    assert said["repaired"] == "done"
    after = {step: json.loads((tmp_path / f"after {step}").read_text()) for step in said}
    assert after["full"] == after["read-only"]
    assert 0 < len(after["full"]) < len(after["repaired"])
    assert after["repaired"] == json.loads(json.dumps(told(records(tmp_path / "undisturbed"))))


# --- the database ----------------------------------------------------------------------------------------------------


def test_a_database_that_restarts_in_the_middle_costs_nothing(database_server, study, tmp_path):
    restarts = []

    class Restarting(free_study.FreeWorkers):
        def finished(self, timeout_s):
            ended = super().finished(timeout_s)
            if len(restarts) < 2 and any(number > 3 for (number, _), _ in ended):
                restarts.append(time.monotonic())
                database_server.stop()
                database_server.start()
            return ended

    free_study.coordinate(study, tmp_path / "restarted", database_server.url, Restarting)
    free_study.coordinate(study, tmp_path / "undisturbed")
    assert len(restarts) == 2
    assert told(records(tmp_path / "restarted")) == told(records(tmp_path / "undisturbed"))


# --- the scheduler ---------------------------------------------------------------------------------------------------


def nas(verb, root, url, *options):
    return subprocess.Popen(
        [sys.executable, "-c", "from nas.cli import main; main()", verb, "studies/quickstart"]
        + ["--root", str(root), "--storage", url, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started(root, url, workers):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return nas("run", root, url, *settings, "--workers", str(workers))


def wait_for(condition, process, seconds=180):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.1)


def test_sigterm_in_training_saves_it_and_a_worker_elsewhere_goes_on(database_server, tmp_path):
    """`nas run` trains and is told to end; run again without workers, its trial is finished by `nas worker`."""
    first = started(tmp_path, database_server.url, 1)
    wait_for(lambda: any(record["rungs"] for record in records(tmp_path).values()), first)  # the next rung trains
    time.sleep(1.0)
    began = time.monotonic()
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=30)[0]
    took = time.monotonic() - began
    assert first.returncode == 143 and took < 10, (took, output)
    assert "the same command goes on" in output
    (record,) = records(tmp_path).values()
    assert record["state"] == "running" and len(record["rungs"]) == 1
    (checkpoint,) = tmp_path.glob("quickstart/*/trials/0000/checkpoint.safetensors")
    with safe_open(checkpoint, "pt") as file:
        before = int(file.metadata()["images_seen"])
    assert 0 < before < 2048

    leader, worker = (
        started(tmp_path, database_server.url, 0),
        nas("worker", tmp_path, database_server.url, "--workers", "1"),
    )
    output, joined = leader.communicate(timeout=300)[0], worker.communicate(timeout=300)[0]
    assert leader.returncode == 0 and "continuing study" in output, output
    assert worker.returncode == 0 and "has ended" in joined, joined
    (record,) = records(tmp_path).values()
    assert record["state"] == "complete" and record["rungs"][-1]["images_seen"] == 2048
    share = record["rungs"][-1]["images_per_s"] * record["rungs"][-1]["timings"]["train_s"] / 2048
    assert share < 1.2 * (2048 - before) / 2048 + 0.1  # only what was left was trained
