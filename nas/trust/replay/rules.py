"""Rules of early stopping over shuffles of a table of recorded curves.

`judge`: what a rule saves and which hypervolume it loses, both against training all to the end. `tune` chooses settings on one
half of the architectures and reports them on the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas.analysis.statistics.agreement import tau
from nas.search import stopping
from nas.search.dominance import Points
from nas.search.stopping import Stopping
from nas.trust.replay import multi_metric
from nas.trust.replay.curves import Table
from nas.trust.replay.simulation import Rule, Shuffled, Simulation, volume_of
from nas.trust.replay.spread import Spread

RULES = ("improvement", "halving", "slope", "median", "none", "multi_metric")


def rule_of(name: str, settings: Stopping) -> Rule:
    """The rule behind a name of RULES; the settings' own rule is ignored."""
    if name == "multi_metric":
        return multi_metric.goes_on
    own = settings.model_copy(update={"rule": name})
    return lambda curve, others: stopping.goes_on(curve, others, own)


@dataclass(frozen=True)
class Verdict:
    """What a rule does to a table; shares."""

    rule: str
    images_saved: Spread
    """Of the training images of training all to the end."""
    seconds_saved: Spread
    """Of the seconds of training all to the end and scoring each once, there."""
    hypervolume_lost: Spread
    stopped: Spread
    """Of the architectures."""


def judge(table: Table, name: str, settings: Stopping, shuffles: int, workers: int = 1, seed: int = 0) -> Verdict:
    """A rule over shuffles of the table, with the settings' rungs (of which `none` scores only the last)."""
    seen = table.at(settings.rungs[-1:] if name == "none" else settings.rungs)
    rule, volume = rule_of(name, settings), volume_of(table)
    all_images, all_seconds = len(table) * table.images[-1], float(table.train_s.sum() + table.other_s[:, -1].sum())
    rows = []
    for order in orders(len(table), shuffles, seed):
        ended = Simulation(seen, Shuffled(order.tolist()), rule, workers).run()
        lost, stopped = round(1 - volume(ended.finished), 12) + 0.0, 1 - len(ended.finished) / len(table)
        rows.append((1 - ended.total_images / all_images, 1 - ended.total_seconds / all_seconds, lost, stopped))
    return Verdict(name, *(Spread.of(column) for column in zip(*rows, strict=True)))


def orders(count: int, shuffles: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The same shuffles for every rule."""
    generator = np.random.default_rng(seed)
    for _ in range(shuffles):
        yield generator.permutation(count)


@dataclass(frozen=True)
class Tuning:
    """One choice of settings, on the half of the architectures where it may be chosen and on the other."""

    settings: Stopping
    chosen_on: Verdict
    other: Verdict


def halves(table: Table, seed: int = 0) -> tuple[Table, Table]:
    """Two halves of the architectures, drawn at random: settings are chosen on the first and reported on the second."""
    order = np.random.default_rng(seed).permutation(len(table))
    return table.rows(order[: len(table) // 2].tolist()), table.rows(order[len(table) // 2 :].tolist())


TRIED: dict[str, tuple[str, tuple[float, ...]]] = {  # rule -> what is tuned, and to which values
    "halving": ("keep", (0.25, 0.3, 0.35, 0.4, 0.5, 0.6)),
    "improvement": ("gain", (0.002, 0.005, 0.01, 0.02, 0.03)),
}


def grid(rungs: Sequence[float]) -> Iterator[Stopping]:
    """The settings that are tried: rules, every subset of the recorded rungs, shares, and peers."""
    *early, last = rungs
    for count in range(1, len(early) + 1):
        for some, (rule, (share, values)) in itertools.product(itertools.combinations(early, count), TRIED.items()):
            for value, peers in itertools.product(values, (3, 4, 6)):
                yield Stopping.model_validate({"rule": rule, "rungs": (*some, last), share: value, "min_peers": peers})


def tune(table: Table, lost: float, shuffles: int, workers: int = 1) -> list[Tuning]:
    """Every setting of `grid` on both halves, the best on the first half first: of those that lose on average at most
    `lost` of its hypervolume the one that saves most training images; if there is none, the one that loses least."""
    first, second = halves(table)
    tried = [
        Tuning(s, judge(first, s.rule, s, shuffles, workers), judge(second, s.rule, s, shuffles, workers))
        for s in grid(table.rungs)
    ]
    return sorted(tried, key=lambda each: _merit(each.chosen_on, lost))


def _merit(verdict: Verdict, lost: float) -> tuple[bool, float]:
    over = verdict.hypervolume_lost.mean > lost
    return over, verdict.hypervolume_lost.mean if over else -verdict.images_saved.mean


def agreement(table: Table, columns: Sequence[str], looks: Points | None = None) -> pd.DataFrame:
    """Kendall's tau between each rung's order of the architectures and that by which they are judged: the last rung's, or the
    truth's, with which the last is compared too. Rungs, after looks where there are any (architectures, objectives), by the
    scores that training moves."""
    values, judged = table.values, table.judged
    moved = [place for place in range(len(columns)) if (judged[:, place] != values[:, 0, place]).any()]
    earlier: dict[str | float, Points] = {} if looks is None else {"look": looks}
    compared = len(table.rungs) - (table.truth is None)
    earlier |= {table.rungs[place]: values[:, place] for place in range(compared)}
    taus = {columns[place]: [tau(scores[:, place], judged[:, place]) for scores in earlier.values()] for place in moved}
    return pd.DataFrame(taus, index=pd.Index(list(earlier), name="rung")).round(2)
