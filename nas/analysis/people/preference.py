"""What people prefer, as a score of every trial: Bradley-Terry from their choices between two pictures of one caption.

The probability that i is preferred to j is 1 / (1 + exp(s_j - s_i)) (Bradley and Terry 1952; Hunter 2004, Annals of Statistics
32, equation 1). No difference counts as half a choice of each. Scores are log odds, and their mean is 0: they compare the trials
that were judged together, and no others. A trial that always won has no finite maximum of the likelihood, so each is taken to
have tied PRIOR comparisons more, spread over all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, t

from nas.runs import judgements
from nas.runs.judgements import Judgement, Question

COLUMN = "human_preference"
CONDITIONS = {"unit": "log odds", "higher_is_better": True}
PRIOR = 1.0  # comparisons of every trial that are taken to have been ties, before any was made
STEPS = 100  # of Newton's method, at most
CHANCE = 0.05  # with a larger p the answers do not tell the trials apart

Values = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """Who was preferred how often: an entry for every question that a judge answered."""

    trials: tuple[str, ...]
    first: Places
    second: Places
    """Places in `trials`, (n,) each."""
    won: Values
    """1 where the first was preferred, 0 for the second, 1/2 for no difference; answers to one question asked twice have their
    mean."""
    caption: Places

    def wins(self) -> Values:
        """How often the row's trial was preferred to the column's, (trials, trials)."""
        found = np.zeros((len(self.trials), len(self.trials)))
        np.add.at(found, (self.first, self.second), self.won)
        np.add.at(found, (self.second, self.first), 1 - self.won)
        return found


@dataclass(frozen=True)
class Scores:
    """Bradley-Terry scores of the judged trials, with what is known of their errors."""

    trials: tuple[str, ...]
    values: Values
    """Log odds, mean 0."""
    covariance: Values
    degrees: int
    """Of freedom behind the errors: captions less one."""
    wins: Values
    """As in `Choices.wins`."""

    @property
    def half(self) -> Values:
        """Half the width of every score's 95 % interval."""
        wide = t.ppf(0.975, self.degrees) if self.degrees else t.ppf(0.975, np.inf)
        return np.asarray(wide * np.sqrt(np.diag(self.covariance)))

    @property
    def p(self) -> float:
        """Of answers as unequal as these if all trials were preferred alike (Wald's test)."""
        if len(self.trials) < 2:
            return 1.0
        return float(chi2.sf(self.values @ np.linalg.pinv(self.covariance) @ self.values, len(self.trials) - 1))


def choices(given: Sequence[Judgement]) -> Choices:
    """What the answers say. The same question, answered again by the same judge, is no further evidence."""
    answered: dict[tuple[str, Question], list[int]] = {}
    for one in given:
        answered.setdefault((one.judge, one.question), []).append(one.value)
    trials = sorted({trial for _, (_, *two) in answered for trial in two}, key=order)
    place = {trial: number for number, trial in enumerate(trials)}
    rows = [(caption, place[one], place[other]) for _, (caption, one, other) in answered]
    found = np.array(rows, dtype=np.int64).reshape(-1, 3)
    won = np.array([np.mean(values) / 2 + 0.5 for values in answered.values()], dtype=np.float64)
    return Choices(tuple(trials), found[:, 1], found[:, 2], won, found[:, 0])


def order(trial: str) -> tuple[str, int]:
    """Own trials by number, then those of other runs."""
    run, _, number = trial.rpartition(":")
    return run, int(number)


def fit(made: Choices, prior: float = PRIOR) -> Scores:
    """Scores and their covariance: the inverse of the information, widened where whole captions say so.

    Answers on one caption have its pictures in common. So a score's variance is the larger of the model's and of the sandwich
    over captions (Liang and Zeger 1986, with the factor C / (C - 1)); the latter holds for other captions than these.
    """
    wins = made.wins()
    values = strengths(wins, prior)
    inverse = np.linalg.pinv(_information(wins, values, prior)) if len(values) else np.zeros((0, 0))
    captions = np.unique(made.caption)
    wider = np.ones(len(values))
    if len(captions) > 1:
        sandwich = inverse @ _between_captions(made, values, captions) @ inverse
        wider = np.sqrt(np.maximum(1.0, np.diag(sandwich) / np.diag(inverse)))
    covariance = inverse * np.outer(wider, wider)
    return Scores(made.trials, values, covariance, max(0, len(captions) - 1), wins)


def strengths(wins: Values, prior: float = PRIOR) -> Values:
    """The scores at the maximum of the likelihood, by Newton's method: `wins` (n, n) by row over column -> (n,), mean 0.

    With a `prior` of 0 the maximum may be infinite. The likelihood is concave, and a step is at most 1.
    """
    games = _with_ties(wins, prior)
    values = np.zeros(len(wins))
    for _ in range(STEPS if len(wins) > 1 else 0):
        gap = values[:, None] - values[None]
        slope = (games - (games + games.T) / (1 + np.exp(-gap))).sum(1)
        step = np.linalg.pinv(_information(wins, values, prior)) @ slope
        values = values + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return values


def _with_ties(wins: Values, prior: float) -> Values:
    """The wins with those of the prior: PRIOR comparisons of every trial, half of them won."""
    others = max(1, len(wins) - 1)
    ties: Values = np.where(np.eye(len(wins), dtype=bool), 0.0, prior / 2 / others)
    return wins + ties


def _information(wins: Values, values: Values, prior: float) -> Values:
    """Minus the second derivatives of the log likelihood, (n, n); singular, as a constant added to all changes nothing."""
    games = _with_ties(wins, prior)
    gap = values[:, None] - values[None]
    curved = (games + games.T) / (2 + np.exp(gap) + np.exp(-gap))
    return np.asarray(np.diag(curved.sum(1)) - curved)


def _between_captions(made: Choices, values: Values, captions: Places) -> Values:
    """The covariance of the likelihood's slope, by how it differs from caption to caption."""
    missed = made.won - 1 / (1 + np.exp(values[made.second] - values[made.first]))
    slopes = np.zeros((len(captions), len(values)))
    rows = np.searchsorted(captions, made.caption)
    np.add.at(slopes, (rows, made.first), missed)
    np.add.at(slopes, (rows, made.second), -missed)
    return np.asarray(slopes.T @ slopes * len(captions) / (len(captions) - 1))


def column(run_dir: Path) -> dict[int, float]:
    """The score of each of a run's own trials that was judged, by number; {} where nobody judged."""
    found = fit(choices(judgements.read(run_dir)))
    return {
        int(trial): float(value) for trial, value in zip(found.trials, found.values, strict=True) if trial.isdigit()
    }
