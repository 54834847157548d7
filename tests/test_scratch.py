"""Temporary folders go with the process that made them, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, sys, tempfile
from multiprocessing import util
from nas.disk import scratch
print(scratch.hold())
print(util.get_temp_dir())                            # pymp-*
print(tempfile.TemporaryDirectory("wandb-media").name)  # as W&B makes its own when it is imported
print(os.environ["TMPDIR"], flush=True)
if sys.argv[1] == "wait": sys.stdin.read()
if sys.argv[1] == "kill": os.kill(os.getpid(), 9)
"""


def begun(folder, how):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_leaves_one_folder_and_the_next_removes_it(tmp_path):
    killed = begun(tmp_path, "kill")
    held, pymp, wandb, place = killed.communicate()[0].splitlines()
    assert killed.returncode == -signal.SIGKILL
    assert [str(path) for path in tmp_path.iterdir()] == [held] and place == held
    assert Path(pymp).parent == Path(wandb).parent == Path(held)
    living = begun(tmp_path, "wait")
    theirs = living.stdout.readline().strip()
    assert [str(path) for path in tmp_path.iterdir()] == [theirs]
    (tmp_path / "nas-of-somebody").mkdir()  # has no lock, so it is none of ours
    another = begun(tmp_path, "end")
    another.communicate()
    assert another.returncode == 0 and {path.name for path in tmp_path.iterdir()} == {
        Path(theirs).name,
        "nas-of-somebody",
    }
    living.communicate()
    assert living.returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["nas-of-somebody"]
