"""Optuna's samplers over a table of recorded architectures."""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import Trial, TrialState

from nas.cost.budget import constraints, over_budget
from nas.errors import InputError
from nas.search import samplers
from nas.settings.study import Study
from nas.space.search_space import Choices, SearchSpace
from nas.study.candidates import PATIENCE
from nas.trust.replay.curves import Table
from nas.trust.replay.simulation import OVER_BUDGET

SAMPLERS = ("random", "tpe", "nsga2", "gp", "optuna", "optuna_charged", "pool")


class Chooser:
    """An Optuna sampler whose space is the table.

    A suggestion within budget is replaced by the nearest architecture not yet taken, which is what the sampler is told
    about; the distance is the number of axes that differ (of a range the share of its length), ties are drawn. A
    suggestion over budget is refused on paper, as a study does, or with `charged` trained in vain, as a soft constraint
    would. The table holds architectures within budget only, so the sampler never learns how good others are; neither
    does a sampler with constraints use the scores of those that break them.
    """

    looked_s = 0.0

    def __init__(self, table: Table, about: Study, space: SearchSpace, sampler: BaseSampler, charged: bool, seed: int):
        if table.choices is None:
            raise InputError(
                f"{table.source}: no columns arch.<axis>, so a sampler has no space; expected those of {space.name}"
            )
        self.table, self.about, self.space, self.charged = table, about, space, charged
        self._choices = table.choices
        self._left = set(range(len(table)))
        self._rng = random.Random(seed)
        self._running: dict[int, Trial] = {}
        objectives = table.values.shape[2]
        self.optuna = optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)

    def ask(self) -> int | None:
        if not self._left:
            return None
        for _ in range(PATIENCE):
            proposal = self.optuna.ask()
            choices = self.space.suggest(proposal)
            if not self._refused(proposal, choices):
                return self._take(proposal, choices)
            if self.charged:
                return OVER_BUDGET
        return self._enter(self._rng.choice(sorted(self._left)))

    def tell(self, architecture: int, complete: bool) -> None:
        asked = self._running.pop(architecture)
        if complete:
            self.optuna.tell(asked, self.table.values[architecture, -1].tolist())
        else:
            self.optuna.tell(asked, state=TrialState.PRUNED)

    def _refused(self, proposal: Trial, choices: Choices) -> bool:
        """Whether a suggestion is over budget; the sampler is told."""
        over = self._over_budget(proposal, choices)
        if over:
            self.optuna.tell(proposal, state=TrialState.PRUNED)
        return over

    def _over_budget(self, asked: Trial, choices: Choices) -> bool:
        """Give a trial its constraints, as a study does; whether it breaks one."""
        cost = self.about.deploy.costs(self.space.architecture(choices))
        for name, excess in constraints(cost, self.about.budget).items():
            asked.set_constraint(name, excess)
        return bool(over_budget(cost, self.about.budget))

    def _take(self, proposal: Trial, choices: Choices) -> int:
        """The nearest architecture left, entered in the sampler's history."""
        distances = {index: distance(self.space, choices, self._choices[index]) for index in sorted(self._left)}
        least = min(distances.values())
        nearest = self._rng.choice([index for index, distance in distances.items() if distance == least])
        if least == 0:
            self._left.remove(nearest)
            self._running[nearest] = proposal
            return nearest
        self.optuna.tell(proposal, state=TrialState.FAIL)
        return self._enter(nearest)

    def _enter(self, index: int) -> int:
        """Have the sampler ask for this architecture."""
        self._left.remove(index)
        self.optuna.enqueue_trial(self.space.parameters(self._choices[index]))
        asked = self.optuna.ask()
        self._over_budget(asked, self.space.suggest(asked))
        self._running[index] = asked
        return index


def distance(space: SearchSpace, a: Choices, b: Choices) -> float:
    """On how many axes two members differ; on an axis that is a range by a share."""
    return sum(axis_distance(axis.choices, axis.step is not None, a, b, axis.name) for axis in space.axes)


def axis_distance(offered: Sequence[Any], ordered: bool, a: Choices, b: Choices, name: str) -> float:
    """0 where two members agree on an axis (or neither has it), 1 where they differ; less for neighbours of a range."""
    if a.get(name) == b.get(name):
        return 0.0
    if not ordered or name not in a or name not in b:
        return 1.0
    return abs(offered.index(a[name]) - offered.index(b[name])) / (len(offered) - 1)


def sampler_of(name: str, about: Study, trials: int, seed: int) -> BaseSampler:
    """A study's sampler for so many trials; `optuna` is Optuna's own choice for several objectives, with its defaults, and
    FILE.py:FUNCTION what the function returns for a seed."""
    if is_function(name):
        return function(name)(seed)
    if name.startswith("optuna"):
        return TPESampler(seed=seed)
    assert about.search is not None
    return samplers.sampler(name, trials, seed, 0)


def is_function(name: str) -> bool:
    """Whether a sampler is named as FILE.py:FUNCTION."""
    return ".py:" in name


@cache
def function(name: str) -> Callable[[int], BaseSampler]:
    """The function behind FILE.py:FUNCTION, which returns an Optuna sampler for a seed. InputError where there is none."""
    file, _, called = name.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"--samplers {name}: no such file: {file}")
    try:
        found = runpy.run_path(file).get(called)
        made = found(0) if callable(found) else None
    except Exception as error:
        raise InputError(f"--samplers {name}: {type(error).__name__}: {error}".replace("\n", " ")) from error
    if found is None or not callable(found):
        raise InputError(f"--samplers {name}: {file} has no function {called}")
    if not isinstance(made, BaseSampler):
        raise InputError(f"--samplers {name}: returned {type(made).__name__}, expected an Optuna sampler")
    return cast(Callable[[int], BaseSampler], found)
