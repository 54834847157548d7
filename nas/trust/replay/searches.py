"""Samplers over a table of recorded curves: hypervolume against compute, where a sampler chooses the architectures.

A sampler's space is the table: what it suggests is replaced by the nearest architecture that was recorded and not yet taken
(`chooser`). A pool looks at some of the table first (`best_first`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from nas.search.stopping import Stopping
from nas.settings.study import Study
from nas.space.search_space import SearchSpace
from nas.trust.replay.best_first import BestFirst, funnel
from nas.trust.replay.chooser import Chooser, sampler_of
from nas.trust.replay.curves import Table
from nas.trust.replay.looks import LookedAt
from nas.trust.replay.rules import rule_of
from nas.trust.replay.simulation import History, Simulation, volume_of

UNITS = ("images", "seconds")
GP_REPEATS = 5  # a Gaussian process takes a quarter of a second to ask, so it is not repeated as often
ROUNDING = 1e-9  # of sums of seconds


def explore(
    table: Table,
    about: Study,
    sampler: str,
    name: str,
    settings: Stopping,
    repeats: int,
    workers: int = 1,
    trainings: float = float("inf"),
) -> list[History]:
    """Histories of a sampler with a rule, until the table has no architecture left or so many full trainings are paid."""
    assert about.space is not None
    space, rule = SearchSpace.load(about.space), rule_of(name, settings)
    seen = table.at(settings.rungs[-1:] if name == "none" else settings.rungs)
    found = []
    for repeat in range(min(repeats, GP_REPEATS) if sampler == "gp" else repeats):
        asked = sampler_of(sampler, about, round(min(trainings, len(table))), repeat)
        chooser = Chooser(seen, about, space, asked, sampler == "optuna_charged", repeat)
        found.append(Simulation(seen, chooser, rule, workers, trainings).run())
    return found


def explore_pool(
    table: Table, about: Study, looks: LookedAt, trainings: float, repeats: int, workers: int = 1
) -> list[History]:
    """Histories of a pool that is to train so many, each of them to the end: its funnel is what a study would derive."""
    assert about.space is not None
    space, seen, first = SearchSpace.load(about.space), table.at(table.rungs[-1:]), funnel(about, round(trainings))
    askers = [BestFirst(seen, space, looks, first, repeat) for repeat in range(repeats)]
    return [Simulation(seen, asker, rule_of("none", Stopping()), workers, trainings).run() for asker in askers]


def hypervolumes(table: Table, histories: Sequence[History], trainings: float, unit: str) -> list[float]:
    """The share of the table's hypervolume that each history has when as much is paid as so many full trainings cost.

    `unit` says in what: `images` of training, or `seconds`, of which a full training has those of one scoring as well.
    """
    volume = volume_of(table)
    limit = {"images": trainings * table.images[-1], "seconds": trainings * table.full_s}[unit]
    return [volume(history.within(**{unit: limit * (1 + ROUNDING)})) for history in histories]


def paid(limit: float) -> list[float]:
    """Full trainings at which the hypervolume is read: 1, 2, 4, ... up to the limit."""
    return [*itertools.takewhile(lambda count: count < limit, (2.0**power for power in range(32))), limit]


def quarters(explored: pd.DataFrame, rule: str) -> pd.DataFrame:
    """TPE with a rule of stopping at a quarter of the compute, beside Optuna's own sampler without stopping at all of it."""
    at = explored.set_index(["sampler", "rule", "unit", "trainings"])["hypervolume"]
    rows = []
    for sampler, unit in itertools.product(("optuna", "optuna_charged"), UNITS):
        for full in explored["trainings"].unique():
            default, plain = ("tpe", rule, unit, full / 4), (sampler, "none", unit, full)
            if default in at.index and plain in at.index:
                rows.append(
                    {"unit": unit, "full": full, "default": at[default], "plain": sampler, "of_plain": at[plain]}
                )
    return pd.DataFrame(rows)
