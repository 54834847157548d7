"""How alike judges answer: each with itself, where a question was asked again with the sides changed, and with the others.

Chance is taken out by Krippendorff's alpha (2004, Content Analysis, chapter 11) for values -1, 0 and 1 with squared differences:
1 is perfect, 0 what chance gives. Which trial of a question comes first is arbitrary, so every value counts with both signs
for what chance gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan, sqrt

import numpy as np

from nas.runs.judgements import LEFT, TIE, Judgement, Question

Z = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True)
class Alike:
    """How often two answers to one question were the same."""

    questions: int
    share: float
    low: float
    high: float
    """95 % interval of the share (Wilson 1927)."""
    alpha: float


@dataclass(frozen=True)
class Judge:
    """One judge's answers."""

    name: str
    answers: int
    ties: int
    left: float
    """Share of choices that went to the left; sides are random, so it is to be about a half."""
    seconds: float
    """Median of an answer."""
    again: Alike
    """With itself."""


def each(given: Sequence[Judgement]) -> list[Judge]:
    """Every judge, by name."""
    names = sorted({one.judge for one in given})
    return [_judge(name, [one for one in given if one.judge == name]) for name in names]


def between(given: Sequence[Judgement]) -> dict[tuple[str, str], Alike]:
    """Every two judges, by name."""
    names = sorted({one.judge for one in given})
    first = {name: _first([one for one in given if one.judge == name]) for name in names}
    return {
        (one, other): alike(
            (first[one][asked], first[other][asked]) for asked in first[one].keys() & first[other].keys()
        )
        for one, other in combinations(names, 2)
    }


def alike(pairs: Iterable[tuple[int, int]]) -> Alike:
    """Of two answers each, -1, 0 or 1."""
    values = np.array(list(pairs), dtype=np.float64).reshape(-1, 2)
    n = len(values)
    if not n:
        return Alike(0, nan, nan, nan, nan)
    share = float((values[:, 0] == values[:, 1]).mean())
    middle, half = (
        (share + Z**2 / 2 / n) / (1 + Z**2 / n),
        Z * sqrt(share * (1 - share) / n + (Z / 2 / n) ** 2) / (1 + Z**2 / n),
    )
    apart, chance = float(((values[:, 0] - values[:, 1]) ** 2).mean()), 2 * float((values**2).mean())
    return Alike(n, share, middle - half, middle + half, 1 - apart / chance if chance else nan)


def _judge(name: str, given: Sequence[Judgement]) -> Judge:
    sides = [one.answer for one in given if one.answer != TIE]
    first, again = _first(given), _first(given[::-1])
    asked = [question for question in first if sum(one.question == question for one in given) > 1]
    return Judge(
        name,
        len(given),
        sum(one.answer == TIE for one in given),
        sides.count(LEFT) / len(sides) if sides else nan,
        float(np.median([one.seconds for one in given])),
        alike((first[question], again[question]) for question in asked),
    )


def _first(given: Iterable[Judgement]) -> dict[Question, int]:
    """The first answer to every question."""
    found: dict[Question, int] = {}
    for one in given:
        found.setdefault(one.question, one.value)
    return found
