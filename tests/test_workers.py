"""Worker processes: deaths, memory, leaks, SIGTERM; and the lease of who coordinates."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from worker_jobs import die, hold, raise_unpicklable, until_told

from nas import failures, interruption, machine
from nas.errors import InputError
from nas.runs.storage import lease
from nas.runs.storage.journal import open_storage
from nas.workers import local as processes
from nas.workers.local import Workers, resident_mib


class Plain(Workers):
    """Worker processes that compute functions of this file."""

    def _begin(self):
        return time.time


@pytest.fixture
def workers():
    made = []

    def make(count=1, memory=None):
        made.append(Plain(count, SimpleNamespace(worker_memory=memory), Path()))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def outcome(workers, function, *arguments):
    workers.submit((0, 0), function, *arguments)
    until = time.monotonic() + 60
    while not (ended := workers.finished(1.0)):
        assert time.monotonic() < until
    return ended[0][1]


def test_a_killed_process_is_replaced_and_said_so(workers):
    one = workers()
    assert isinstance(outcome(one, die).exception(), failures.Lost)
    assert "signal 9" in str(outcome(one, die).exception())
    pid = outcome(one, os.getpid).result()
    os.kill(pid, signal.SIGKILL)  # while it is idle
    time.sleep(0.2)
    assert outcome(one, os.getpid).result() != pid


def test_failures_arrive_with_their_reason_whatever_was_raised(workers):
    error = outcome(workers(), raise_unpicklable).exception()
    assert isinstance(error, failures.Failed) and str(error) == "Unpicklable: 1 2"


def test_a_trial_that_needs_more_than_the_bound_fails_and_the_next_one_does_not(workers):
    one = workers(memory=1e9)
    error = outcome(one, hold, 2000).exception()
    assert isinstance(error, failures.Failed) and str(error).startswith("out of memory")
    assert outcome(one, hold, 10).result() == 1


def test_a_leak_ends_with_its_process(workers):
    one = workers()
    first = outcome(one, os.getpid).result()
    assert outcome(one, hold, 700).result() == 1
    assert outcome(one, os.getpid).result() != first
    assert outcome(one, resident_mib).result() < 500


def test_sigterm_lets_a_job_reach_its_safe_point(workers):
    one = workers()
    pid = outcome(one, os.getpid).result()
    one.submit((0, 0), until_told)
    time.sleep(0.3)
    os.kill(pid, signal.SIGTERM)
    (ended,) = one.finished(10)
    assert isinstance(ended[1].exception(), interruption.Interrupted)


def test_stopping_takes_no_longer_than_its_jobs(workers):
    one = workers(2)
    one.submit((0, 0), until_told)
    time.sleep(0.3)
    began = time.monotonic()
    one.stop()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_trials_threads_do_not_depend_on_how_many_run(count, monkeypatch):
    begun = []
    monkeypatch.setattr(processes, "_Slot", lambda begin, memory, device: begun.append(begin))
    Workers(count, SimpleNamespace(worker_memory=None, worker_threads=3), Path(), devices=[])
    before = torch.get_num_threads()
    try:
        found = []
        for begin in begun:
            torch.set_num_threads(1)
            begin()
            found.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert found == [3] * count


@pytest.mark.parametrize(
    ("count", "threads", "cores", "words"),
    [(1, 1, 1, ""), (2, 1, 2, ""), (1, 1, 2, "1 of 2 cores"), (2, 2, 16, "4 of 16 cores"), (8, 1, 15, "")],
)
def test_cores_that_idle_are_said(count, threads, cores, words, monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    assert processes.idle(count, threads).partition(" compute:")[0] == words


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), failures.Failed, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), failures.Failed, "out of memory: CUDA"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), failures.Failed, "out of memory"),
        (ValueError("heads"), failures.Failed, "ValueError: heads"),
        (OSError(28, "No space left on device", "x"), failures.DiskTrouble, "x: no space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), failures.DiskTrouble, "no space left"),
        (OSError(30, "Read-only file system", "x"), failures.DiskTrouble, "read-only"),
        (FileNotFoundError(2, "No such file", "x"), failures.Failed, "FileNotFoundError"),
        (InputError("a: b"), InputError, "a: b"),
        (interruption.Interrupted("told"), interruption.Interrupted, "told"),
    ],
)
def test_what_is_the_trials_fault(error, kind, words):
    found = failures.sorted_out(error)
    assert type(found) is kind and words in str(found)


# --- leases ----------------------------------------------------------------------------------------------------------


def study(path):
    return optuna.create_study(storage=open_storage(None, path, "r"), study_name="r", load_if_exists=True)


def test_only_one_process_coordinates(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "died_here", lambda held: False)
    monkeypatch.setattr(lease, "LEASE_S", 1.5)
    first = lease.Lease(study(tmp_path / "j"))
    first.take(print, contested=False)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: (first._write(), time.perf_counter())[1])
    with pytest.raises(InputError, match="is running this study"):
        lease.Lease(study(tmp_path / "j")).take(print, contested=False)
    monkeypatch.undo()
    monkeypatch.setattr(lease, "LEASE_S", 0.1)
    monkeypatch.setattr(lease, "died_here", lambda held: False)
    second = lease.Lease(study(tmp_path / "j"))
    second.take(print, contested=False)  # nothing was heard
    first._next = 0.0
    with pytest.raises(InputError, match="taken this study over"):
        first.renew()
    second.release()
    lease.Lease(study(tmp_path / "j")).take(print, contested=True)


def test_the_dead_of_this_machine_are_known_at_once():
    assert not lease.died_here({"host": "elsewhere", "pid": 1})
    assert not lease.died_here({"host": os.uname().nodename, "pid": os.getppid()})
    assert lease.died_here({"host": os.uname().nodename, "pid": 2**22 + 1})


@pytest.mark.skipif(sys.platform != "linux", reason="a process can forget its peak on Linux alone")
def test_peak_memory_is_of_what_came_since_it_was_forgotten():
    """In a process that is used for many trials, a small one after a large one."""
    held = torch.ones(300 * 2**18)
    before = machine.peak_memory_mib()
    del held
    assert machine.peak_memory_mib() == before
    machine.forget_peak_memory()
    assert machine.peak_memory_mib() < before - 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_trainer_that_waits_leaves_with_the_code_of_the_signal(number):
    """As a shell gives it: 128 + the signal's number."""
    told = "import os, sys, time; from nas import interruption; interruption.install_in_trainer(); "
    told += "os.kill(os.getpid(), int(sys.argv[1])); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", told, str(int(number))]).returncode == 128 + number
