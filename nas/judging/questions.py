"""Which two trials, and which caption, a judge is shown next: decided from the answers so far, so that a session resumes.

Every pair of trials gets about equally many answers of a judge: the pair with the fewest is next, then the one whose trials were
shown least. Its caption is one that the judge has not seen of the pair. What is left open is drawn from the judge's own seed.
Every third question is one that another judge has answered, if there is any left, so that judges can be compared; every
tenth is one that the judge answered a while ago, with the sides changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from nas.runs.judgements import Judgement, Question
from nas.seeds import trial_seed

SHARED = 3  # every such question is one of another judge
AGAIN = 10  # every such question was answered before
LAG = 10  # answers between the two


@dataclass(frozen=True)
class Shown:
    """What a judge is asked."""

    caption: int
    left: str
    right: str


@dataclass(frozen=True)
class Asked:
    """What there is to ask about."""

    trials: tuple[str, ...]
    captions: int

    @property
    def pairs(self) -> int:
        """Of trials; that many answers are a round."""
        return len(self.trials) * (len(self.trials) - 1) // 2


def following(asked: Asked, given: Sequence[Judgement], judge: str) -> Shown | None:
    """The judge's next question; None when all are answered. The same for the same answers."""
    own = [one for one in given if one.judge == judge]
    rng = np.random.default_rng(trial_seed(0, judge, len(own)))
    if len(own) % AGAIN == AGAIN - 1 and (old := _again(asked, own)) is not None:
        return Shown(old.caption, old.right, old.left)
    question = _open(asked, given, own, judge, rng)
    if question is None:
        return None
    caption, *two = question
    left, right = rng.permutation(two)
    return Shown(caption, str(left), str(right))


def _again(asked: Asked, own: Sequence[Judgement]) -> Judgement | None:
    """The oldest of a judge's answers that was asked once, and not lately."""
    often = Counter(one.question for one in own)
    once = (one for one in own[:-LAG] if often[one.question] == 1 and {one.left, one.right} <= set(asked.trials))
    return next(once, None)


def _open(
    asked: Asked, given: Sequence[Judgement], own: Sequence[Judgement], judge: str, rng: np.random.Generator
) -> Question | None:
    """A question that the judge has not answered."""
    known = {one.question for one in own}
    pairs = [(one, other) if one < other else (other, one) for one, other in combinations(asked.trials, 2)]
    often = Counter(tuple(question[1:]) for question in known)
    shown = Counter(trial for question in known for trial in question[1:])
    free = {pair for pair in pairs if often[pair] < asked.captions}
    if len(own) % SHARED == SHARED - 1:
        others = {one.question for one in given if one.judge != judge} - known
        theirs = {question for question in others if question[1:] in free and question[0] < asked.captions}
        if theirs:
            pair = _least({question[1:] for question in theirs}, often, shown, rng)
            return int(rng.choice(sorted(caption for caption, *two in theirs if tuple(two) == pair))), *pair
    if not free:
        return None
    pair = _least(free, often, shown, rng)
    return _caption(asked, given, known, pair, rng), *pair


def _least(
    pairs: set[tuple[str, str]], often: Counter[tuple[str, ...]], shown: Counter[str], rng: np.random.Generator
) -> tuple[str, str]:
    """One of the pairs that were answered least, of those whose trials were shown least."""
    ranks = {pair: (often[pair], shown[pair[0]] + shown[pair[1]]) for pair in pairs}
    least = min(ranks.values())
    tied = sorted(pair for pair, rank in ranks.items() if rank == least)
    return tied[rng.integers(len(tied))]


def _caption(
    asked: Asked, given: Sequence[Judgement], known: set[Question], pair: tuple[str, str], rng: np.random.Generator
) -> int:
    """One that the judge has not answered for the pair, that others answered least, and the judge has seen least."""
    anyone = Counter(one.question for one in given)
    seen = Counter(question[0] for question in known)
    left = [caption for caption in range(asked.captions) if (caption, *pair) not in known]
    ranks = [(anyone[caption, *pair], seen[caption], rng.random()) for caption in left]
    return left[ranks.index(min(ranks))]
