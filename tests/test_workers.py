"""Worker processes and the workers that join: deaths, memory, leaks, SIGTERM, letter boxes, leases."""

import os
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from worker_jobs import die, hold, raise_unpicklable, until_told

from nas import failures, interruption, joined, joining
from nas.errors import InputError
from nas.runs import lease
from nas.runs.journal import open_storage
from nas.trial.rung import Job, run_rung
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
    again = joined.encoded_error(error)
    assert joined.KINDS[again["kind"]] is kind


# --- workers that join -----------------------------------------------------------------------------------------------


class Fake:
    """An engine whose jobs end when the test says so."""

    def __init__(self):
        self.jobs, self.done = [], []

    free = True

    @property
    def busy(self):
        return [tag for tag, *_ in self.jobs]

    def submit(self, tag, function, *arguments):
        self.jobs.append((tag, function, arguments))

    def end(self, value=None, error=None):
        tag, *_ = self.jobs.pop(0)
        future = Future()
        future.set_exception(error) if error else future.set_result(value)
        self.done.append((tag, future))

    def finished(self, timeout_s):
        done, self.done = self.done, []
        return done

    def stop(self):
        pass


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A coordinator's engine and a worker's crew on one journal, without pauses."""
    monkeypatch.setattr(joined, "POLL_S", 0.0)
    monkeypatch.setattr(joining, "POLL_S", 0.0)
    journal, theirs = tmp_path / "journal.log", tmp_path / "theirs"
    engine = joined.Joined(open_storage(None, journal, "r"), "r", tmp_path / "ours")
    fake = Fake()
    crew = joining.Crew(joined.letter_boxes(open_storage(None, journal, "r"), "r"), theirs, fake, 1)
    return engine, crew, fake


def job(root, rung=0):
    return Job(4, {"width": 1}, 7, rung, 64, False, root / "free" / "now" / "trials" / "0004")


def test_a_job_goes_out_and_its_result_comes_back(pair, tmp_path):
    engine, crew, fake = pair
    assert not engine.free
    crew.turn()
    assert engine.finished(0) == [] and engine.free
    engine.submit((4, 0), run_rung, job(tmp_path / "ours"))
    assert engine.busy == [(4, 0)] and not engine.free
    crew.turn()
    ((_, function, (sent,)),) = fake.jobs
    assert function is run_rung and sent.folder == tmp_path / "theirs" / "free" / "now" / "trials" / "0004"
    assert sent.folder.is_dir() and sent.seed == 7 and sent.architecture == {"width": 1}
    crew.turn()
    assert len(fake.jobs) == 1  # not taken twice
    fake.end({"rung": {"metrics": {"fid": 1.5}}})
    crew._engine.jobs.append(((9, 9), None, ()))  # so that turn looks for what is done
    crew.turn()
    (((trial, rung), future),) = engine.finished(0)
    assert (trial, rung) == (4, 0) and future.result() == {"rung": {"metrics": {"fid": 1.5}}}
    assert engine.free and not engine.busy


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp/elsewhere", "free/../../elsewhere"])
def test_a_storage_cannot_send_a_worker_out_of_its_root(pair, tmp_path, folder):
    _, crew, fake = pair
    plain = {**vars(job(tmp_path / "ours")), "folder": folder}
    with pytest.raises(InputError, match="names a folder that is not below --root"):
        crew._decoded({"call": "run_rung", "job": plain})
    assert not fake.jobs and not list(tmp_path.rglob("elsewhere"))


def test_a_silent_worker_is_given_up_and_cannot_deliver_any_more(pair, tmp_path, monkeypatch):
    engine, crew, fake = pair
    crew.turn()
    engine.finished(0)
    engine.submit((4, 0), run_rung, job(tmp_path / "ours"))
    crew.turn()
    monkeypatch.setattr(joined, "LEASE_S", 0.5)
    until = time.monotonic() + 30
    while not (ended := engine.finished(0)) and time.monotonic() < until:
        time.sleep(0.05)
    ((tag, future),) = ended
    assert tag == (4, 0) and isinstance(future.exception(), failures.Lost)
    before = crew._boxes[0]._number
    crew._boxes[0].hand_in(_done({"late": True}))
    assert crew._boxes[0]._number != before  # it joined anew, as another
    assert engine.finished(0) == []


def _done(value):
    future = Future()
    future.set_result(value)
    return future


def test_a_worker_that_leaves_gives_its_job_back(pair, tmp_path):
    engine, crew, fake = pair
    crew.turn()
    engine.finished(0)
    engine.submit((4, 1), run_rung, job(tmp_path / "ours", 1))
    crew.turn()
    crew.leave()
    ((tag, future),) = engine.finished(0)
    assert tag == (4, 1) and isinstance(future.exception(), interruption.Interrupted)
    assert not engine.free


def test_a_new_coordinator_takes_up_what_its_predecessor_gave_out(pair, tmp_path):
    engine, crew, fake = pair
    crew.turn()
    engine.finished(0)
    engine.submit((4, 0), run_rung, job(tmp_path / "ours"))
    crew.turn()
    successor = joined.Joined(open_storage(None, tmp_path / "journal.log", "r"), "r", tmp_path / "ours")
    assert successor.adopt([(4, 0), (5, 1)]) == [(4, 0)]
    crew._boxes[0].hand_in(_done({"rung": {}}))
    ((tag, future),) = successor.finished(0)
    assert tag == (4, 0) and future.result() == {"rung": {}}
    another = joined.Joined(open_storage(None, tmp_path / "journal.log", "r"), "r", tmp_path / "ours")
    assert another.adopt([(4, 1)]) == []  # that rung is not wanted any more


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
