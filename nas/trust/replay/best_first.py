"""A pool over a table (`search.sampler: pool`): it looks at some architectures, and trains first what promises most.

The funnel is that of nas.study.pool with one worker, and the table as its space: so many looks come first, half of them at
random, half at neighbours of what promised most before the batch. Here those are the nearest architectures that are left, which
may differ on several axes where a study's neighbours differ on one. The next to be trained is expected to add most to the front;
where none is expected to add much, some more are looked at. With several workers a study begins to train when four fifths of the
first looks are in; here all are, and looks take no time of the clock, only seconds of workers. Starts, beliefs and earlier runs
are left out.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from nas.search import pool
from nas.search.dominance import Points, nondominated
from nas.settings.study import Study
from nas.space.search_space import SearchSpace
from nas.study.pool import AT_A_TIME, JOBS, MORE, NEAR, SHARE, WORTH, looks_of
from nas.trust.replay.chooser import distance
from nas.trust.replay.curves import Table
from nas.trust.replay.looks import LookedAt


class BestFirst:
    """What such a pool trains; it knows an end once the architecture is trained."""

    def __init__(self, table: Table, space: SearchSpace, looks: LookedAt, first: int, seed: int):
        """`first`: looks before the first training. As many may follow while others wait, and any number when none does."""
        assert table.choices is not None
        self._choices, self._space, self._looks, self._ends = table.choices, space, looks, table.values[:, -1]
        self._first = min(first, len(table))
        self._at_a_time = max(1, min(AT_A_TIME, self._first // JOBS))
        self._wanted, self._more_after = self._first, 0
        self._unseen = list(range(len(table)))
        self._waiting: list[int] = []  # looked at, not trained
        self._running: list[int] = []
        self._trained: list[int] = []
        self._rng = random.Random(seed)
        self.looked_s = 0.0

    def ask(self) -> int | None:
        while self._wants_looks():
            self._look()
        if not self._waiting:
            return None
        best = self._waiting.pop(int(np.argmax(self._expected())))
        self._running.append(best)
        return best

    def tell(self, architecture: int, complete: bool) -> None:
        self._running.remove(architecture)
        if complete:
            self._trained.append(architecture)

    @property
    def _seen(self) -> list[int]:
        return [*self._waiting, *self._running, *self._trained]

    def _wants_looks(self) -> bool:
        known = len(self._seen)
        if not self._unseen or known < self._wanted:
            return bool(self._unseen)
        if self._waiting:
            asked_before = len(self._trained) == self._more_after
            if asked_before or known >= 2 * self._first or self._expected().max() >= WORTH:
                return False
            self._more_after = len(self._trained)
        self._wanted = known + MORE
        return True

    def _look(self) -> None:
        """Look at a batch."""
        parents = self._promising()
        for _ in range(min(self._at_a_time, self._wanted - len(self._seen), len(self._unseen))):
            looked = self._next_look(parents)
            self._unseen.remove(looked)
            self._waiting.append(looked)
            self.looked_s += float(self._looks.seconds[looked])

    def _promising(self) -> list[int]:
        """The front of all looks."""
        seen = self._seen
        front = nondominated(self._looks.values[seen]) if seen else ()
        return [one for one, member in zip(seen, front, strict=True) if member]

    def _next_look(self, parents: list[int]) -> int:
        if not parents or self._rng.random() >= NEAR:
            return self._rng.choice(self._unseen)
        parent = self._choices[self._rng.choice(parents)]
        away = {one: distance(self._space, parent, self._choices[one]) for one in self._unseen}
        least = min(away.values())
        return self._rng.choice([one for one in self._unseen if away[one] == least])

    def _expected(self) -> NDArray[np.float64]:
        """The share that each that waits is expected to add to the hypervolume of the front, (waiting,)."""
        looks = self._looks.values
        gains: Points = self._ends[self._trained] - looks[self._trained]
        running = looks[self._running] + (gains.mean(0) if len(gains) else 0.0)
        return pool.expected(looks[self._waiting], gains, np.concatenate([self._ends[self._trained], running]))


def funnel(about: Study, trainings: int, share: float = SHARE) -> int:
    """How many looks come first in a pool of the table's study that is to train so many."""
    assert about.search is not None
    search = about.search.model_copy(update={"trials": trainings})
    stopping = about.stopping.model_copy(update={"rungs": (1.0,)})
    return looks_of(about.model_copy(update={"search": search, "stopping": stopping}), share)
