"""What a search with `sampler: pool` trains: slices of a supernet are looked at by the hundred, the most promising are trained.

A look is a few pictures. Half of the candidates are drawn at random, the others are neighbours of what promises
most. Once all are looked at, the next to be trained is the one that is expected to add most to the front (nas.search.pool);
where none is expected to add much, some more are looked at first. A free worker never waits for looks of others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.cost.budget import over_budget
from nas.networks.backbones import Backbone
from nas.runs.looks import Looked
from nas.runs.records import Record
from nas.search import pool
from nas.search.dominance import nondominated
from nas.seeds import trial_seed
from nas.settings.study import Study
from nas.space.search_space import Choices, SearchSpace
from nas.study.candidates import FRESH_TRIES, Candidates, minimised
from nas.study.proposer import Look
from nas.study.trials import Trials, numbers
from nas.study.workload import Workload

AT_A_TIME = 8  # networks that a worker looks at in one job
SHARE = 0.25  # of the calls of the denoiser that all trainings take: what looks may take, unless told
LEAST, MOST = 16, 1_000  # looks, unless told
UPDATE_CALLS = 3  # calls that an update takes of each image: forward, and backward twice as long
NEAR = 0.5  # share of the candidates that are neighbours of those that promise most
WORTH = 0.01  # of the hypervolume; where no candidate is expected to add as much, MORE are looked at before the next training
MORE = 32


class Pool(Candidates):
    """The proposer of a search that looks before it trains."""

    def __init__(self, study: Study, space: SearchSpace):
        super().__init__(study, space)
        self._asked: set[str] = set()  # architectures that are being looked at
        self._most = 2 * looks_of(study)  # looks
        self._more_after = 0  # trainings that had ended when more looks were last asked for

    def open(self, trials: Trials) -> None:
        super().open(trials)
        self._looks = trials.looks()
        self._points: dict[str, NDArray[np.float64]] = {}  # objectives of each look, all to be minimised
        for key in self._looks:
            self._place(key)
        self._wanted = max(looks_of(self._study), len(self._looks))

    def workload(self, workers: int) -> Workload:
        trainings = super().workload(workers)
        looks = self._wanted - len(self._looks) if self._searching else 0
        return replace(trainings, looks=looks)

    @property
    def _searching(self) -> bool:
        return not self._gave_up and self._proposals.begun < self._search.trials

    def ask(self) -> Record | Look | None:
        """Networks to look at, until there are enough; then the next to train."""
        if self._searching and self._wants_looks() and (look := self._look()):
            return look
        return super().ask()

    # -- looking -------------------------------------------------------------------------------------------------

    def _wants_looks(self) -> bool:
        """Whether there are fewer than wanted. Once after each training MORE are, if no candidate is worth the next."""
        known = len(self._looks) + len(self._asked)
        if known < self._wanted:
            return True
        ended, waiting = len(self._ends()), self._waiting()
        if ended == self._more_after or self._asked or not waiting or self._expected(waiting).max() >= WORTH:
            return False
        self._more_after, self._wanted = ended, min(known + MORE, self._most)
        return known < self._wanted

    def _look(self) -> Look | None:
        """Some candidates that nobody has looked at; None if none is found."""
        known = len(self._looks) + len(self._asked)
        found = self._unseen(min(AT_A_TIME, self._wanted - known))
        if not found:
            self._wanted = known
            return None
        if not known:
            self._trials.say(f"looking at {self._wanted} slices before the first is trained")
        self._asked.update(member.key for _, member in found)
        return Look(tuple(member.to_dict() for _, member in found), partial(self._take, found))

    def _unseen(self, count: int) -> list[tuple[Choices, Backbone]]:
        """New members within budget, at most so many."""
        rng = random.Random(trial_seed(self._study.seed, "pool", len(self._looks) + len(self._asked)))
        parents = self._promising()
        found: dict[str, tuple[Choices, Backbone]] = {}
        for choices in chain(self._starts, self._drawn(rng, parents)):
            member = self._space.architecture(choices)
            known = any(member.key in some for some in (self._looks, self._asked, found))
            if not known and not over_budget(self._study.deploy.costs(member), self._study.budget):
                found[member.key] = (choices, member)
                if len(found) == count:
                    break
        return list(found.values())

    def _drawn(self, rng: random.Random, parents: Sequence[Choices]) -> Iterator[Choices]:
        """Random members, and neighbours of these."""
        for _ in range(FRESH_TRIES):
            near = parents and rng.random() < NEAR
            yield self._space.neighbour(rng.choice(parents), rng) if near else self._space.sample(rng)

    def _promising(self) -> list[Choices]:
        """The front of all looks."""
        if not self._points:
            return []
        front = nondominated(np.stack(list(self._points.values())))
        return [self._looks[key]["choices"] for key, member in zip(self._points, front, strict=True) if member]

    def _take(self, asked: Sequence[tuple[Choices, Backbone]], found: Sequence[dict[str, Any]]) -> None:
        """Note what was found of these networks."""
        for (choices, member), seen in zip(asked, found, strict=True):
            self._asked.discard(member.key)
            self._looks[member.key] = Looked(
                choices=choices,
                cost=numbers(self._study.deploy.costs(member)),
                metrics=seen["metrics"],
                failed=seen["failed"],
                seconds=seen["seconds"],
            )
            self._place(member.key)
        self._trials.keep(self._looks)
        if len(self._looks) == self._wanted:
            self._say_looks()

    def _place(self, key: str) -> None:
        """Note where a network stands by its look, unless that failed."""
        look = self._looks[key]
        if not look["failed"]:
            self._points[key] = np.array(minimised({**look["cost"], **look["metrics"]}, self._study.objectives))

    def _say_looks(self) -> None:
        each = sum(look["seconds"] for look in self._looks.values()) / len(self._looks)
        failed = [look["failed"] for look in self._looks.values() if look["failed"]]
        why = f"; {len(failed)} failed, the last: {failed[-1]}" if failed else ""
        self._trials.say(f"looked at {len(self._looks)} slices, {each:.1f} s each{why}")

    # -- training ------------------------------------------------------------------------------------------------

    def _propose(self) -> Record | None:
        """Begin the training of what is expected to add most; None while nothing is known of any candidate."""
        if not self._searching:
            return None
        waiting = self._waiting()
        if not waiting and not self._asked:
            self._give_up("every architecture that was found within budget has been trained; stopping here")
        if not waiting:
            return None
        first = self._next_start()
        best = waiting[int(np.argmax(self._expected(waiting)))]
        return self._consider(self._trials.ask(first or self._space.parameters(self._looks[best]["choices"])))

    def _waiting(self) -> list[str]:
        """What was looked at and not trained."""
        return [key for key in self._points if not self._proposals.of(key)]

    def _expected(self, waiting: Sequence[str]) -> NDArray[np.float64]:
        """The share that each of these is expected to add to the hypervolume of the front."""
        ends = self._ends()
        gains = self._array([end - self._points[key] for key, end in ends.items() if key in self._points])
        mean = gains.mean(0) if len(gains) else 0.0
        running = [record["key"] for record in self._trials.records.values() if record["state"] == "running"]
        forecast = [self._points[key] + mean for key in running if key in self._points]
        known = self._array([*ends.values(), *forecast])
        return pool.expected(self._array([self._points[key] for key in waiting]), gains, known)

    def _ends(self) -> dict[str, NDArray[np.float64]]:
        """The objectives of the first complete trial of each architecture, all to be minimised."""
        ends: dict[str, NDArray[np.float64]] = {}
        for record in self._trials.records.values():
            if record["state"] == "complete":
                ends.setdefault(record["key"], np.array(self._values(record, -1)))
        return ends

    def _array(self, rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """(n, objectives), also of no rows."""
        return np.reshape(rows, (len(rows), len(self._study.objectives)))


def looks_of(study: Study) -> int:
    """How many candidates a search looks at before it goes by what it has trained."""
    assert study.search is not None
    settings, images = study.search.pool, study.evaluation.images
    if settings.looks is not None:
        return settings.looks
    calls = study.sampling.calls
    training = UPDATE_CALLS * study.training.images_seen + len(study.stopping.rungs) * images * calls
    look = min(settings.images, images) * calls
    return min(max(LEAST, round(SHARE * study.search.trials * training / look)), MOST)
