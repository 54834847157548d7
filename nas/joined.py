"""Workers that joined from other processes and machines: the coordinator's side.

Every such worker is a running trial of the Optuna study `RUN/workers`, and its user attributes are its letter box:

    name    who it is                     beat    a count that rises while it lives
    job     {id, tag, call, job}, written by the coordinator
    result  {id, value} or {id, error, kind}, written by the worker

Each attribute has one writer, so neither storage needs locks or transactions. A worker that is not heard of for LEASE_S
is told FAIL; Optuna refuses writes to a finished trial, so what it computed in the meantime cannot arrive twice.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas import failures, interruption
from nas.errors import InputError
from nas.runs.lease import LEASE_S
from nas.workers.local import Ended, Engine, Tag

POLL_S = 1.0
KINDS: dict[str, type[Exception]] = {
    "failed": failures.Failed,
    "disk": failures.DiskTrouble,
    "lost": failures.Lost,
    "interrupted": interruption.Interrupted,
    "input": InputError,
}


def letter_boxes(storage: BaseStorage, run: str) -> optuna.Study:
    """The Optuna study whose trials are the workers of a run."""
    return optuna.create_study(storage=storage, study_name=f"{run}/workers", load_if_exists=True)


def encoded_error(error: BaseException) -> dict[str, str]:
    """An exception of `nas.failures`, for JSON."""
    known = failures.sorted_out(error)
    return {"error": str(known), "kind": next(kind for kind, made in KINDS.items() if isinstance(known, made))}


class Joined:
    """An engine: the workers that joined, as many as there are at the moment."""

    def __init__(self, storage: BaseStorage, run: str, root: Path):
        """`root`: the folder that paths in jobs are relative to; every machine has its own."""
        self._storage, self._root = storage, root
        self._study = letter_boxes(storage, run)
        self._seen: dict[int, tuple[int, float]] = {}  # worker -> its beat, and when it last changed
        self._idle: list[int] = []
        self._busy: dict[int, tuple[str, Tag]] = {}
        self._ended: Ended = []
        self._polled = 0.0

    @property
    def free(self) -> bool:
        return bool(self._idle)

    @property
    def busy(self) -> list[Tag]:
        return [tag for _, tag in self._busy.values()] + [tag for tag, _ in self._ended]

    def adopt(self, wanted: Collection[Tag]) -> list[Tag]:
        """Jobs that an earlier coordinator gave out and that still count; their results will come."""
        self._poll()
        for box in self._living():
            job = box.user_attrs.get("job")
            if job is not None and tuple(job["tag"]) in wanted:
                self._busy[box._trial_id] = (job["id"], (job["tag"][0], job["tag"][1]))
        self._idle = [number for number in self._idle if number not in self._busy]
        return [tag for _, tag in self._busy.values()]

    def submit(self, tag: Tag, function: Callable[..., Any], *arguments: Any) -> None:
        (job,) = arguments
        plain = {**dataclasses.asdict(job), "folder": str(job.folder.relative_to(self._root))}
        number, name = self._idle.pop(), uuid.uuid4().hex
        try:
            self._storage.set_trial_user_attr(
                number, "job", {"id": name, "tag": list(tag), "call": function.__name__, "job": plain}
            )
        except UpdateFinishedTrialError:  # it has just left
            self._end(tag, interruption.Interrupted("the worker left"))
        else:
            self._busy[number] = (name, tag)

    def finished(self, timeout_s: float) -> Ended:
        """The jobs that ended; looks at most every POLL_S, and never waits."""
        if time.monotonic() - self._polled >= POLL_S:
            self._poll()
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Nothing to end: the workers are their own masters."""

    def _living(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])

    def _poll(self) -> None:
        now = time.monotonic()
        if now - self._polled > LEASE_S / 2:  # this process was away: nobody's silence counts
            self._seen.clear()
        self._polled = now
        living = {box._trial_id: box for box in self._living()}
        for number, box in list(living.items()):
            beat = box.user_attrs.get("beat", 0)
            if self._seen.get(number, (None, now))[0] != beat:
                self._seen[number] = (beat, now)
            if now - self._seen[number][1] > LEASE_S:
                self._bury(box)
                del living[number]
        for number in list(self._busy):
            box = living.get(number) or self._storage.get_trial(number)
            self._collect(number, box)
        self._idle = [number for number in living if number not in self._busy]

    def _bury(self, box: FrozenTrial) -> None:
        with suppress(UpdateFinishedTrialError, ValueError):  # it left by itself
            self._study.tell(box.number, state=TrialState.FAIL)

    def _collect(self, number: int, box: FrozenTrial) -> None:
        """Take a worker's result, or notice that there will be none."""
        name, tag = self._busy[number]
        result = box.user_attrs.get("result") or {}
        if result.get("id") == name:
            error = KINDS[result["kind"]](result["error"]) if "kind" in result else None
            self._end(tag, error, result.get("value"))
        elif box.state == TrialState.COMPLETE:
            self._end(tag, interruption.Interrupted("the worker left"))
        elif box.state != TrialState.RUNNING:
            self._end(tag, failures.Lost(f"no sign of life of {box.user_attrs.get('name')} for {LEASE_S:.0f} s"))
        else:
            return
        del self._busy[number]

    def _end(self, tag: Tag, error: Exception | None, value: Any = None) -> None:
        future: Future[Any] = Future()
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
        self._ended.append((tag, future))


class Fleet:
    """An engine of two: this machine's own processes first, then the workers that joined."""

    def __init__(self, own: Engine, joined: Joined, alone: bool = True):
        """`alone=False`: the own process only prepares; every trial waits for workers that join."""
        self._own, self._joined, self._trains = own, joined, alone

    @property
    def free(self) -> bool:
        return (self._trains and self._own.free) or self._joined.free

    @property
    def busy(self) -> list[Tag]:
        return [*self._own.busy, *self._joined.busy]

    def adopt(self, wanted: Collection[Tag]) -> list[Tag]:
        return self._joined.adopt(wanted)

    def submit(self, tag: Tag, function: Callable[..., Any], *arguments: Any) -> None:
        preparing = tag[0] < 0
        engine: Engine = self._own if preparing or (self._trains and self._own.free) else self._joined
        engine.submit(tag, function, *arguments)

    def finished(self, timeout_s: float) -> Ended:
        if self._joined.busy and self._own.busy:
            timeout_s = min(timeout_s, POLL_S)
        if self._own.busy:
            return [*self._own.finished(timeout_s), *self._joined.finished(0)]
        ended = self._joined.finished(0)
        if not ended:
            time.sleep(min(timeout_s, POLL_S / 2))
        return ended

    def stop(self) -> None:
        self._own.stop()
