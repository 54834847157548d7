"""Worker processes on this machine. Each slot is one process that computes one rung at a time.

Processes come from a fork server that has imported torch and friends once, so a replacement costs milliseconds. A slot's
process is replaced when it dies, when a job in it failed for want of memory, and when it has grown: a leak ends with
the process. It leaves with the coordinator, however that ends. Each computes with the study's `worker_threads`; GPUs go round.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from nas import failures, interruption
from nas.machine import cores

if TYPE_CHECKING:
    from nas.settings.study import Study

Tag = tuple[int, int]  # (trial, rung)
Ended = list[tuple[Tag, "Future[Any]"]]
GRACE_S = 8.0  # a scheduler that gives 10 s finds everything saved
GROWTH_MIB, GROWTH = 512, 1.5  # a process that grew by both since its first job is replaced (assumption)


class Engine(Protocol):
    """Whatever computes jobs: this machine's processes, or a cluster. It holds no state of the study."""

    @property
    def free(self) -> bool:
        """Whether `submit` may be called."""

    @property
    def busy(self) -> list[Tag]:
        """The tags of what is being computed."""

    def submit(self, tag: Tag, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a job; its tag comes back from `finished`."""

    def finished(self, timeout_s: float) -> Ended:
        """The jobs that ended within the time, with a result or one of the exceptions of `nas.failures`."""

    def stop(self) -> None:
        """Let jobs save their checkpoints for GRACE_S at most, then end everything."""


def default_count() -> int:
    """Trials side by side: one per GPU, else one per core this process may use."""
    return len(visible_devices()) or cores()


def idle(count: int, threads: int) -> str:
    """What is said where trials side by side leave most of this machine's cores idle; empty where they do not."""
    used, held = count * threads, cores()
    if 2 * used > held:
        return ""
    return (
        f"{used} of {held} cores compute: trials side by side (--workers) or threads of each (worker_threads, which scores "
        f"depend on in their last digits) use more"
    )


def visible_devices() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES spells them."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(index) for index in range(count)]


class Workers:
    """A fixed number of slots; `submit` fills a free one, `finished` empties those that are done."""

    def __init__(self, count: int, study: Study, cache: Path, devices: list[str] | None = None):
        """`devices`: the GPUs to hand round, all unless given; none: processes see what this one sees."""
        self._study, self._cache = study, cache
        devices = visible_devices() if devices is None else devices
        self._idle: list[_Slot] = []
        self._busy: list[_Slot] = []
        try:
            for index in range(count):
                self._idle.append(self._slot(devices[index % len(devices)] if devices else None))
        except BaseException:  # Ctrl-C too
            self.stop()
            raise

    def _begin(self) -> Callable[[], None]:
        """What a process does before its first job."""
        from nas.trial import rung

        return partial(rung.start_worker, self._study, self._cache)

    def _slot(self, device: str | None) -> _Slot:
        return _Slot(self._begin(), self._study.worker_memory, device)

    @property
    def free(self) -> bool:
        return bool(self._idle)

    @property
    def busy(self) -> list[Tag]:
        return [slot.tag for slot in self._busy]

    def submit(self, tag: Tag, function: Callable[..., Any], *arguments: Any) -> None:
        slot = self._idle.pop()
        try:
            slot.send(tag, function, arguments)
        except OSError:  # it died while idle
            slot = self._replaced(slot)
            slot.send(tag, function, arguments)
        self._busy.append(slot)

    def finished(self, timeout_s: float) -> Ended:
        connection.wait([slot.connection for slot in self._busy], timeout_s)  # a dead process closes its end
        ended = []
        for slot in [slot for slot in self._busy if slot.connection.poll()]:
            future, worn = slot.receive()
            self._busy.remove(slot)
            self._idle.append(self._replaced(slot) if worn else slot)
            ended.append((slot.tag, future))
        return ended

    def _replaced(self, slot: _Slot) -> _Slot:
        slot.kill()
        return self._slot(slot.device)

    def stop(self) -> None:
        """Ask running jobs to save and leave, wait GRACE_S at most, then kill what is left."""
        slots = [*self._idle, *self._busy]
        try:
            for slot in slots:
                slot.process.terminate()
            until = time.monotonic() + GRACE_S
            for slot in slots:
                slot.process.join(max(0.0, until - time.monotonic()))
        finally:
            for slot in slots:
                slot.kill()


class _Slot:
    """A process, the pipe to it, and what it computes."""

    def __init__(self, begin: Callable[[], None], memory: float | None, device: str | None):
        context = multiprocessing.get_context("forkserver")
        self.device, self.tag, self._first_mib = device, (-1, -1), 0.0
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, begin, memory, device), daemon=True)
        try:
            with _without_main():
                self.process.start()
        except BaseException:
            self.connection.close()  # a process that starts all the same leaves
            raise
        finally:
            theirs.close()

    def send(self, tag: Tag, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Raises OSError when the process is gone."""
        self.connection.send((function, arguments))
        self.tag = tag

    def receive(self) -> tuple[Future[Any], bool]:
        """The job's outcome, and whether the process should be replaced."""
        future: Future[Any] = Future()
        try:
            ok, value, mib = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            future.set_exception(failures.Lost(_how_it_ended(self.process.exitcode)))
            return future, True
        if ok:
            future.set_result(value)
        else:
            future.set_exception(value)
        self._first_mib = self._first_mib or mib
        grown = mib > self._first_mib + GROWTH_MIB and mib > self._first_mib * GROWTH
        return future, grown or not ok

    def kill(self) -> None:
        self.process.kill()
        self.connection.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Inside, a process that starts does not import this program's main file, as multiprocessing has it do: jobs are functions
    of nas, and a script that calls `nas.run` without asking for its own name would begin anew in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _how_it_ended(code: int | None) -> str:
    return "killed by signal 9 (out of memory?)" if code == -9 else f"it ended with exit code {code}"


# --- in the worker process -------------------------------------------------------------------------------------------


def _serve(pipe: Any, begin: Callable[[], None], memory: float | None, device: str | None) -> None:
    """Compute what comes through the pipe until it closes."""
    interruption.install_in_worker()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    started = False
    while not interruption.asked():
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        with interruption.computing():
            try:
                if not started:
                    begin()
                    started = True
                outcome = (True, function(*arguments))
            except Exception as error:
                outcome = (False, failures.sorted_out(error))
            pipe.send((*outcome, resident_mib()))


def _leave_with_parent() -> None:
    """End this process when the one that started it ends, even by kill -9: a successor will compute the job."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def resident_mib() -> float:
    """Memory this process holds now; where that is not known, the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
