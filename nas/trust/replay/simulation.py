"""A study over recorded curves, in simulated time: who is trained how far, and what that costs.

The loop is that of `nas.study.run`: a free worker takes a trial that may go on before it asks for a new one, and a rule sees
every curve as far as it is known then. A rung takes the seconds it took when it was recorded.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas.search.dominance import CORNER, Points, hypervolume, normalised
from nas.trust.replay.curves import Table

Rule = Callable[[Points, Sequence[Points]], bool]
OVER_BUDGET = -1  # an architecture that is not in the table and is trained in vain


class Asker(Protocol):
    """What chooses the next architecture."""

    looked_s: float
    """Seconds that workers have spent on looks so far."""

    def ask(self) -> int | None:
        """An index into the table, OVER_BUDGET, or None when there is nothing left."""

    def tell(self, architecture: int, complete: bool) -> None:
        """A trial ended: trained to the end, or stopped."""


class Shuffled:
    """Architectures in a given order."""

    looked_s = 0.0

    def __init__(self, order: Sequence[int]):
        self._left = deque(int(index) for index in order)

    def ask(self) -> int | None:
        return self._left.popleft() if self._left else None

    def tell(self, architecture: int, complete: bool) -> None:
        pass


@dataclass(frozen=True)
class History:
    """What a replayed study trained and paid."""

    finished: tuple[int, ...]
    """Architectures trained to the end, in that order."""
    images: tuple[int, ...]
    """Training images paid by all trials until each of them was finished."""
    seconds: tuple[float, ...]
    """Likewise the seconds that workers spent, scoring included."""
    total_images: int
    total_seconds: float
    started: int

    def within(self, images: float = float("inf"), seconds: float = float("inf")) -> list[int]:
        """The architectures that were finished before more than so much was paid."""
        paid = zip(self.finished, self.images, self.seconds, strict=True)
        return [architecture for architecture, seen, took in paid if seen <= images and took <= seconds]


class Simulation:
    """A study over a table, in simulated time."""

    def __init__(self, table: Table, asker: Asker, rule: Rule, workers: int = 1, trainings: float = float("inf")):
        """`trainings`: nothing is begun once all that was begun takes the images and the seconds of so many full trainings."""
        self.most_images, self.most_seconds = trainings * table.images[-1], trainings * table.full_s
        self.begun_images, self.begun_s = 0, 0.0
        self.table, self.asker, self.rule, self.workers = table, asker, rule, workers
        self.reached: dict[int, int] = {}  # trial -> rungs it has finished
        self.architectures: list[int] = []  # by trial
        self.images, self.trained_s = 0, 0.0
        self.finished: list[tuple[int, int, float]] = []

    def run(self) -> History:
        """The study until nothing is left to ask for, or all is paid."""
        ready: deque[tuple[int, int]] = deque()  # (trial, rung), trials that go on
        running: list[tuple[float, int, int]] = []  # (when it ends, trial, rung)
        now = 0.0
        while True:
            while len(running) < self.workers and (job := ready.popleft() if ready else self._new()) is not None:
                heapq.heappush(running, (now + self._begin(*job), *job))
            if not running:
                break
            now, number, rung = heapq.heappop(running)
            if self._goes_on(number, rung):
                ready.append((number, rung + 1))
        finished, images, seconds = zip(*self.finished, strict=True) if self.finished else ((), (), ())
        return History(finished, images, seconds, self.images, self.seconds, len(self.architectures))

    @property
    def seconds(self) -> float:
        return self.trained_s + self.asker.looked_s

    def _begin(self, number: int, rung: int) -> float:
        """Count what a rung will take; returns its seconds."""
        took = self._duration(number, rung)
        self.begun_images += self._images(number, rung)
        self.begun_s += took
        return took

    def _new(self) -> tuple[int, int] | None:
        spent = self.begun_images >= self.most_images and self.begun_s + self.asker.looked_s >= self.most_seconds
        asked = None if spent else self.asker.ask()
        if asked is None:
            return None
        self.architectures.append(asked)
        return len(self.architectures) - 1, 0

    def _duration(self, number: int, rung: int) -> float:
        architecture = self.architectures[number]
        if architecture == OVER_BUDGET:
            return self.table.full_s
        return float(self.table.train_s[architecture, rung] + self.table.other_s[architecture, rung])

    def _images(self, number: int, rung: int) -> int:
        """That a rung trains on; what is over budget is trained in vain, at once and to the end."""
        images = (0, *self.table.images)
        return images[-1] if self.architectures[number] == OVER_BUDGET else images[rung + 1] - images[rung]

    def _goes_on(self, number: int, rung: int) -> bool:
        """Pay for a rung that has ended, and decide."""
        architecture = self.architectures[number]
        self.trained_s += self._duration(number, rung)
        self.images += self._images(number, rung)
        if architecture == OVER_BUDGET:
            return False
        others = [
            self.table.values[self.architectures[other], :done]
            for other, done in self.reached.items()
            if other != number
        ]
        self.reached[number] = rung + 1
        if rung == len(self.table.rungs) - 1:
            self.finished.append((architecture, self.images, self.seconds))
            self.asker.tell(architecture, complete=True)
            return False
        if self.rule(self.table.values[architecture, : rung + 1], others):
            return True
        self.asker.tell(architecture, complete=False)
        return False


def volume_of(table: Table) -> Callable[[Sequence[int]], float]:
    """The hypervolume of architectures when fully trained, by the truth where it is known, as a share of that of all."""
    scaled = normalised(table.judged)
    corner = np.full(scaled.shape[1], CORNER)
    whole = hypervolume(scaled, corner)
    return lambda which: hypervolume(scaled[list(which)], corner) / whole if which else 0.0
