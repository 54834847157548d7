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
    "training.images_seen=1024",
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


def nas(log, verb, root, url, *options):
    """A command in a process of its own, which writes to the file `log`: pipes stay open for as long as its children."""
    return subprocess.Popen(
        [sys.executable, "-c", "from nas.cli import main; main()", verb, "studies/emoji"]
        + ["--root", str(root), "--storage", url, *options],
        cwd=ROOT,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )


def started(log, root, url, workers):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return nas(log, "run", root, url, *settings, "--workers", str(workers))


def wait_for(condition, process, log, seconds=600):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_sigterm_in_training_saves_it_and_the_same_command_goes_on(database_server, tmp_path):
    """`nas run` trains and is told to end; run again, it finishes the trial. Two commands that import torch."""
    url, root = database_server.url, tmp_path / "runs"
    log, running = tmp_path / "first.log", []
    try:
        running.append(first := started(log, root, url, 1))
        wait_for(lambda: any(record["rungs"] for record in records(root).values()), first, log)  # the next rung trains
        time.sleep(0.5)
        began = time.monotonic()
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143 and time.monotonic() - began < 10, log.read_text()
        assert "the same command goes on" in log.read_text() and "does not answer" not in log.read_text()
        (record,) = records(root).values()
        assert record["state"] == "running" and len(record["rungs"]) == 1
        before = images_seen(root)
        assert 0 < before < 1024

        running.append(second := started(tmp_path / "second.log", root, url, 1))
        assert second.wait(300) == 0
    finally:
        for process in running:
            process.kill()
    assert "continuing study" in (tmp_path / "second.log").read_text()
    (record,) = records(root).values()
    last = record["rungs"][-1]
    assert record["state"] == "complete" and last["images_seen"] == 1024
    trained = last["images_per_s"] * last["timings"]["train_s"]
    assert trained < 1.3 * (1024 - before)  # only what was left


def images_seen(root):
    (checkpoint,) = root.glob("emoji/*/trials/0000/checkpoint.safetensors")
    with safe_open(checkpoint, "pt") as file:
        return int(file.metadata()["images_seen"])
