"""What a person's beliefs (`search.prior`) and an earlier run (`search.from`) are worth, on recorded trainings. No training.

    python benchmarks/knowledge.py --draws 30 --tpe 0    # pools: halves of the table of studies/stopping_replay
    python benchmarks/knowledge.py --draws 0 --tpe 10    # TPE

Each draw is half of the table's architectures, with which a pool or TPE goes on until it has trained all. Told is after how many
trainings it has 95 % of their hypervolume: the mean over draws and the worst 5 %, and the share it has after 4, 8 and 16.

The right beliefs are, of --axes axes, the values that the front of the whole table has more often than the table; the wrong ones
those that it has least often. An earlier run has trained 8 architectures of the draw at random; what it found counts for the
search that knows it and for the one that does not.
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import optuna

from nas.search import prior, samplers
from nas.search.dominance import nondominated
from nas.search.stopping import Stopping
from nas.settings.beliefs import Beliefs
from nas.space.search_space import SearchSpace
from nas.trust.replay import curves, looks
from nas.trust.replay.best_first import BestFirst
from nas.trust.replay.chooser import Chooser
from nas.trust.replay.rules import rule_of
from nas.trust.replay.simulation import Simulation, volume_of

ENOUGH = 0.95
AT = (4, 8, 16)
EARLIER = 8


class Knowing(BestFirst):
    """A pool with beliefs that has looked at the whole table, and knows what was trained before."""

    def __init__(self, table, space, looked, weights, before=()):
        super().__init__(table, space, looked, len(table), 0)
        self._weights = weights
        self._unseen, self._trained = [], list(before)
        self._waiting = [index for index in range(len(table)) if index not in before]

    def _expected(self):
        return prior.weighted(super()._expected(), self._weights[self._waiting], len(self._trained))


class Believing(Chooser):
    """TPE that gives way to draws from beliefs, and knows what was trained before."""

    def __init__(self, table, about, space, seed, beliefs, before=()):
        super().__init__(table, about, space, samplers.sampler("tpe", len(table), seed, 0), False, seed)
        self._beliefs, self._ended, self._draws = beliefs, len(before), random.Random(seed)
        for index in before:
            self._left.add(self._enter(index))
            super().tell(index, True)

    def ask(self):
        if self._left and self._beliefs and self._draws.random() < prior.share(self._ended):
            self.optuna.enqueue_trial(self.space.parameters(self._beliefs.draw(self._draws)))
        return super().ask()

    def tell(self, architecture, complete):
        self._ended += 1
        super().tell(architecture, complete)


def beliefs_of(table, space, axes, right, certainty):
    """The values of some axes that the front has most, or least, beyond what the table has; certain alike."""
    front = nondominated(table.values[:, -1])
    gaps = []
    for axis in space.axes:
        everywhere = [member.get(axis.name) for member in table.choices]
        best = [each for each, member in zip(everywhere, front, strict=True) if member]
        for choice in axis.choices:
            gap = Counter(best)[choice] / len(best) - Counter(everywhere)[choice] / len(everywhere)
            gaps.append((gap if right else -gap, axis.name, choice))
    likely = {}
    for _, name, choice in sorted(gaps, key=lambda each: -each[0]):
        likely.setdefault(name, (choice, certainty))
    return Beliefs(space, dict(list(likely.items())[:axes]))


def outcome(table, asker, before=()):
    """Trainings to ENOUGH of the table's hypervolume, and the shares after AT; what was trained before is there for nothing."""
    finished = Simulation(table, asker, rule_of("none", Stopping())).run().finished
    volume = volume_of(table)
    shares = [volume([*before, *finished[:count]]) for count in range(len(finished) + 1)]
    return next(count for count, share in enumerate(shares) if share >= ENOUGH - 1e-9), *(shares[count] for count in AT)


def told(name, rows):
    """A line of the answer."""
    found = np.array(rows, dtype=float)
    shares = ", ".join(
        f"{count}: {found[:, 1 + place].mean():.3f} ({np.quantile(found[:, 1 + place], 0.05):.3f})"
        for place, count in enumerate(AT)
    )
    print(f"{name:<42} {found[:, 0].mean():5.1f} ({np.quantile(found[:, 0], 0.95):4.1f})   {shares}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("studies/stopping_replay"))
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument(
        "--tpe", type=int, default=10, help="draws of TPE, which is slow: without beliefs and with high confidence"
    )
    parser.add_argument("--axes", type=int, default=3)
    chosen = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    whole, about = curves.load(chosen.table)
    space = SearchSpace.load(about.space)
    looked = looks.read(chosen.table / looks.NAME, whole, about)
    kinds = {"no beliefs": Beliefs(space, {})}
    for right in (True, False):
        for confidence, certainty in prior.CERTAINTY.items():
            kinds[f"{'right' if right else 'wrong'}, {confidence}"] = beliefs_of(
                whole, space, chosen.axes, right, certainty
            )
        said = ", ".join(
            f"{name} {value}" for name, (value, _) in kinds[f"{'right' if right else 'wrong'}, low"].likely.items()
        )
        print(f"{'right' if right else 'wrong'} beliefs: {said}")
    print(f"{'':<42} trainings to {ENOUGH:g}   share after so many (5th percentile)")
    answers = {}
    for draw in range(max(chosen.draws, chosen.tpe)):
        rng = np.random.default_rng(draw)
        rows = rng.permutation(len(whole))[: len(whole) // 2].tolist()
        table = whole.rows(rows).at(whole.rungs[-1:])
        seen = looks.LookedAt(looked.values[rows], looked.seconds[rows])
        before = rng.permutation(len(table))[:EARLIER].tolist()
        for name, beliefs in kinds.items():
            weights = np.array([beliefs.weight(member) for member in table.choices])
            if draw < chosen.draws:
                answers.setdefault(f"pool, {name}", []).append(outcome(table, Knowing(table, space, seen, weights)))
            if draw < chosen.tpe and "low" not in name and "medium" not in name:
                answers.setdefault(f"tpe, {name}", []).append(
                    outcome(table, Believing(table, about, space, draw, beliefs))
                )
        even = np.ones(len(table))
        nothing = Beliefs(space, {})
        for name, known in (("unknown", []), ("known", before)):
            if draw < chosen.draws:
                answers.setdefault(f"pool, an earlier run, {name}", []).append(
                    outcome(table, Knowing(table, space, seen, even, known), before)
                )
            if draw < chosen.tpe:
                answers.setdefault(f"tpe, an earlier run, {name}", []).append(
                    outcome(table, Believing(table, about, space, draw, nothing, known), before)
                )
    for name in sorted(answers, key=lambda each: each.split(",")[0]):
        told(name, answers[name])


if __name__ == "__main__":
    main()
