"""Worker processes that compute rungs. Each slot is one process; a slot whose process dies is replaced by a fresh one.

Processes come from a fork server that has imported torch and friends once, so a replacement costs milliseconds. With
several processes on one machine each computes with one thread: OpenMP barriers that spin on shared cores cost 15x.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from nas import trial
from nas.settings import Study

Tag = tuple[int, int]  # (trial, rung)


def default_count() -> int:
    """Trials side by side: one per GPU, else one per core this process may use."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


class Workers:
    """A fixed number of slots; `submit` fills a free one, `finished` empties those that are done."""

    def __init__(self, count: int, study: Study, cache: Path):
        self._start = partial(trial.start_worker, study, cache, 1 if count > 1 else default_count())
        self._idle = [self._slot() for _ in range(count)]
        self._busy: dict[Future[Any], tuple[Tag, ProcessPoolExecutor]] = {}

    def _slot(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"), initializer=self._start)

    @property
    def free(self) -> bool:
        return bool(self._idle)

    @property
    def busy(self) -> list[Tag]:
        return [tag for tag, _ in self._busy.values()]

    def submit(self, tag: Tag, function: Callable[..., Any], *arguments: Any) -> None:
        slot = self._idle.pop()
        self._busy[slot.submit(function, *arguments)] = (tag, slot)

    def finished(self, timeout_s: float) -> list[tuple[Tag, Future[Any]]]:
        """The jobs that ended (with a result or an exception) within the time; their slots are free again."""
        done, _ = wait(self._busy, timeout=timeout_s, return_when=FIRST_COMPLETED)
        ended = []
        for future in done:
            tag, slot = self._busy.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                slot.shutdown(wait=False)
                slot = self._slot()
            self._idle.append(slot)
            ended.append((tag, future))
        return ended

    def stop(self) -> None:
        """End every process now; what they were computing is lost, what is on disk stays."""
        for slot in [*self._idle, *(slot for _, slot in self._busy.values())]:
            for process in list((slot._processes or {}).values()):
                process.terminate()
            slot.shutdown(wait=False, cancel_futures=True)
