"""What a search with `sampler: pool` trains: slices of a supernet are looked at by the hundred, the most promising are trained.

A look is a few pictures. Half of the candidates are drawn at random, the others are neighbours of what promises
most. Once all are looked at, the next to be trained is the one that is expected to add most to the front (nas.search.pool);
where none is expected to add much, some more are looked at. A free worker waits for looks of others only until four fifths of
the first are in. What earlier runs looked at and trained (`search.from`) is known from the beginning, and neither is done again.
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
from nas.runs.earlier import Earlier, Finished
from nas.runs.looks import Looked, Looks
from nas.runs.records import Record
from nas.search import pool, prior
from nas.search.dominance import nondominated
from nas.seeds import trial_seed
from nas.settings.study import Study
from nas.space.search_space import Choices, SearchSpace
from nas.study.candidates import FRESH_TRIES, Candidates, minimised
from nas.study.proposer import Look
from nas.study.trials import Trials, numbers
from nas.study.workload import Workload

AT_A_TIME = 8  # networks that a worker looks at in one job, at most
JOBS = 4  # of looks for each worker, or more, so that they end together
ENOUGH = 0.8  # share of the first looks that the first training waits for
SHARE = 0.25  # of the calls of the denoiser that all trainings take: what looks may take, unless told
LEAST, MOST = 16, 1_000  # looks, unless told
UPDATE_CALLS = 3  # calls that an update takes of each image: forward, and backward twice as long
NEAR = 0.5  # share of the candidates that are neighbours of those that promise most
WORTH = 0.01  # of the hypervolume; where no candidate is expected to add as much, MORE are looked at before the next training
MORE = 32


class Pool(Candidates):
    """The proposer of a search that looks before it trains."""

    def __init__(self, study: Study, space: SearchSpace, first: Sequence[Choices] | None = None):
        super().__init__(study, space, first)
        self._first = self._further = looks_of(study)  # so many looks come first, and later at most so many more
        self._asked: set[str] = set()  # architectures that are being looked at
        self._at_a_time = AT_A_TIME
        self._exhausted = False  # no candidate is left that nobody has looked at
        self._more_after = 0  # trainings that had ended when more looks were last asked for

    def open(self, trials: Trials) -> None:
        super().open(trials)
        self._looks: Looks = {}
        self._points: dict[str, NDArray[np.float64]] = {}  # objectives of each look, all to be minimised
        self._choices: dict[str, Choices] = {}  # of the same networks
        self._learn(trials.earlier())
        for key, look in trials.looks().items():
            if not look["failed"] and {**look["cost"], **look["metrics"]}.keys() >= self._study.objectives.keys():
                self._note(key, look)  # what failed is looked at again
        self._wanted = max(self._first, len(self._looks))

    def _learn(self, runs: Sequence[Earlier]) -> None:
        """Take over looks and ends of earlier runs; what is over this study's budget is no use."""
        self._before: dict[str, NDArray[np.float64]] = {}  # objectives of what they trained, all to be minimised
        self._trained: list[Choices] = []  # the same networks
        for run in runs:
            for key, look in run["looks"].items():
                if self._usable(look):
                    self._place(key, look)
            for trial in run["trials"]:
                if self._usable(trial) and trial["key"] not in self._before:
                    self._before[trial["key"]] = self._point(trial)
                    self._trained.append(trial["choices"])
        self._first = max(0, self._further - len(self._points))

    def _usable(self, known: Looked | Finished) -> bool:
        """Whether a network that is known from elsewhere has all objectives, and is within budget."""
        complete = {**known["cost"], **known["metrics"]}.keys() >= self._study.objectives.keys()
        return complete and not over_budget(known["cost"], self._study.budget)

    def _point(self, known: Looked | Finished) -> NDArray[np.float64]:
        """The objectives (objectives,) of a network, all to be minimised."""
        return np.array(minimised({**known["cost"], **known["metrics"]}, self._study.objectives))

    def workload(self, workers: int) -> Workload:
        self._at_a_time = max(1, min(AT_A_TIME, self._wanted // (JOBS * workers)))
        looks = self._wanted - len(self._looks) if self._searching else 0
        return replace(super().workload(workers), looks=looks)

    @property
    def _searching(self) -> bool:
        return not self._gave_up and self._proposals.begun < self._search.trials

    def ask(self) -> Record | Look | None:
        """Networks to look at, until there are enough; then the next to train, and repeats when nothing is left."""
        if not self._searching:
            return self._race()
        if self._wants_looks() and (look := self._look()):
            return look
        proposed = self._propose()
        return self._race() if proposed is None and not self._searching else proposed

    # -- looking -------------------------------------------------------------------------------------------------

    def _wants_looks(self) -> bool:
        """Whether there are fewer than wanted. MORE are where none is left to train and, once after each training, where none is
        worth the next; unless nothing came of the last ones."""
        known = len(self._looks) + len(self._asked)
        if known < self._wanted:
            return True
        if self._asked or self._exhausted:
            return False
        if waiting := self._waiting():
            ended = len(self._ends())
            if (
                ended == self._more_after
                or known >= self._first + self._further
                or self._expected(waiting).max() >= WORTH
            ):
                return False
            self._more_after = ended
        elif self._looks and all(look["failed"] for look in list(self._looks.values())[-MORE:]):
            return False
        self._wanted = known + MORE
        return True

    def _look(self) -> Look | None:
        """Some candidates that nobody has looked at; None if none is found."""
        known = len(self._looks) + len(self._asked)
        found = self._unseen(min(self._at_a_time, self._wanted - known))
        if not found:
            self._exhausted, self._wanted = True, known
            return None
        if not known:
            self._trials.say(f"looking at {self._wanted} slices")
        self._asked.update(member.key for _, member in found)
        return Look(tuple(member.to_dict() for _, member in found), partial(self._take, found))

    def _unseen(self, count: int) -> list[tuple[Choices, Backbone]]:
        """New members within budget, at most so many."""
        rng = random.Random(trial_seed(self._study.seed, "pool", len(self._looks) + len(self._asked)))
        parents = self._promising()
        found: dict[str, tuple[Choices, Backbone]] = {}
        begun = [record["choices"] for record in self._trials.records.values()]  # whose looks were damaged
        for choices in chain(self._starts, begun, self._trained, self._drawn(rng, parents)):
            member = self._space.architecture(choices)
            known = any(member.key in some for some in (self._looks, self._points, self._asked, found))
            if not known and not over_budget(self._study.deploy.costs(member), self._study.budget):
                found[member.key] = (choices, member)
                if len(found) == count:
                    break
        return list(found.values())

    def _drawn(self, rng: random.Random, parents: Sequence[Choices]) -> Iterator[Choices]:
        """Random members, some of them likely by the study's beliefs, and neighbours of these."""
        believed = prior.share(self._ended()) if self._beliefs else 0.0
        for _ in range(FRESH_TRIES):
            near = parents and rng.random() < NEAR
            if near:
                yield self._space.neighbour(rng.choice(parents), rng)
            elif believed and rng.random() < believed:
                yield self._beliefs.draw(rng)
            else:
                yield self._space.sample(rng)

    def _promising(self) -> list[Choices]:
        """The front of all looks."""
        if not self._points:
            return []
        front = nondominated(np.stack(list(self._points.values())))
        return [self._choices[key] for key, member in zip(self._points, front, strict=True) if member]

    def _take(self, asked: Sequence[tuple[Choices, Backbone]], found: Sequence[dict[str, Any]]) -> None:
        """Note what was found of these networks."""
        for (choices, member), seen in zip(asked, found, strict=True):
            self._asked.discard(member.key)
            look = Looked(
                choices=choices,
                cost=numbers(self._study.deploy.costs(member)),
                metrics=seen["metrics"],
                failed=seen["failed"],
                seconds=seen["seconds"],
            )
            self._note(member.key, look)
        self._trials.keep(self._looks)
        if len(self._looks) == self._wanted:
            self._say_looks()

    def _note(self, key: str, look: Looked) -> None:
        """Keep a look, and where the network stands by it, unless it failed."""
        self._looks[key] = look
        if not look["failed"]:
            self._place(key, look)

    def _place(self, key: str, look: Looked) -> None:
        self._points[key], self._choices[key] = self._point(look), look["choices"]

    def _say_looks(self) -> None:
        each = sum(look["seconds"] for look in self._looks.values()) / len(self._looks)
        failed = [look["failed"] for look in self._looks.values() if look["failed"]]
        why = f"; {len(failed)} failed, the last: {failed[-1]}" if failed else ""
        self._trials.say(f"looked at {len(self._looks)} slices, {each:.1f} s each{why}")

    # -- training ------------------------------------------------------------------------------------------------

    def _propose(self) -> Record | None:
        """Begin the training of what is expected to add most; None while too little has been looked at, or nothing is left."""
        if self._asked and len(self._looks) < ENOUGH * self._first:
            return None
        parameters = self._next_start() or self._best()
        if parameters is not None:
            return self._consider(self._trials.ask(parameters))
        if not self._asked:
            self._give_up(self._why_nothing_is_left())
        return None

    def _best(self) -> dict[str, Any] | None:
        """The parameters of what is expected to add most, among the likely at first."""
        waiting = self._waiting()
        if not waiting:
            return None
        weights = np.array([self._beliefs.weight(self._choices[key]) for key in waiting])
        best = waiting[int(np.argmax(prior.weighted(self._expected(waiting), weights, self._ended())))]
        return self._space.parameters(self._choices[best])

    def _why_nothing_is_left(self) -> str:
        if self._points:
            return "every architecture that was found within budget has been trained; stopping here"
        failed = [look["failed"] for look in self._looks.values()]
        return f"no look succeeded; the last: {failed[-1] if failed else 'no candidate within budget'}; stopping here"

    def _waiting(self) -> list[str]:
        """What was looked at and not trained, in no earlier run either."""
        return [key for key in self._points if not self._proposals.of(key) and key not in self._before]

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
        """The objectives of the first complete trial of each architecture, all to be minimised; of earlier runs too."""
        ends = dict(self._before)
        for record in self._trials.records.values():
            if record["state"] == "complete":
                ends.setdefault(record["key"], np.array(self._values(record, -1)))
        return ends

    def _array(self, rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """(n, objectives), also of no rows."""
        return np.reshape(rows, (len(rows), len(self._study.objectives)))


def looks_of(study: Study, share: float = SHARE) -> int:
    """How many candidates a search looks at before it goes by what it has trained, where looks may take such a share."""
    assert study.search is not None
    settings, images = study.search.pool, study.evaluation.images
    if settings.looks is not None:
        return settings.looks
    calls = study.sampling.calls
    training = UPDATE_CALLS * study.training.images_seen + len(study.stopping.rungs) * images * calls
    look = min(settings.images, images) * calls
    return min(max(LEAST, round(share * study.search.trials * training / look)), MOST)
