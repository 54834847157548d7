"""Early stopping with several objectives: asynchronous successive halving by non-dominated rank.

Optuna's pruners refuse studies with more than one objective, so the decision is made here. It follows ASHA's stopping
rule (Li et al. 2020, section 3.2): a trial that finishes a rung goes on if it is among the best share of all that
finished that rung before it. "Best" is NSGA-II's order, the non-dominated rank, with the hypervolume a point alone
contributes to its rank's front deciding ties (as in SMS-EMOA, Beume et al. 2007).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas.results import hypervolume

Points = NDArray[np.float64]  # (number of points, number of objectives), all to be minimised


class Settings(BaseModel):
    """When a trial is looked at, and which share goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rungs: tuple[float, ...] = (0.4, 1.0)
    """Fractions of training.images_seen at which a trial is scored; the last is 1. A 0 scores the initial weights."""
    keep: float = Field(0.5, gt=0, le=1)
    """Share of the trials at a rung that goes on to the next; 1 never stops one."""
    min_peers: int = Field(4, ge=1)
    """Trials at a rung, the new one included, before any is stopped."""

    @field_validator("rungs")
    @classmethod
    def _rising_to_one(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(a < b for a, b in zip(rungs, rungs[1:], strict=False))
        if not rungs or not rising or rungs[0] < 0 or rungs[-1] != 1:
            raise ValueError(f"expected rising fractions that end with 1, got {list(rungs)}")
        return rungs


def goes_on(point: Sequence[float], peers: Sequence[Sequence[float]], settings: Settings) -> bool:
    """Whether a trial with these objective values continues, given those of all earlier trials at the rung."""
    points = np.asarray([*peers, point], dtype=np.float64)
    if len(points) < settings.min_peers:
        return True
    position = order(points).index(len(points) - 1)
    return position < math.ceil(settings.keep * len(points))


def order(points: Points) -> list[int]:
    """Indices from best to worst: by non-dominated rank, then by contributed hypervolume, then by index."""
    ranks = nondominated_ranks(points)
    contributions = np.zeros(len(points))
    for rank in range(int(ranks.max()) + 1):
        members = np.flatnonzero(ranks == rank)
        contributions[members] = _contributions(_normalised(points)[members])
    return sorted(range(len(points)), key=lambda i: (ranks[i], -contributions[i], i))


def nondominated_ranks(points: Points) -> NDArray[np.int64]:
    """Rank 0 is the front, rank 1 the front without rank 0, and so on. Equal points share a rank."""
    no_worse = np.all(points[:, None] <= points[None], axis=-1)
    dominates = np.asarray(no_worse & np.any(points[:, None] < points[None], axis=-1))
    ranks = np.full(len(points), -1)
    left = np.ones(len(points), dtype=bool)
    rank = 0
    while left.any():
        front = left & ~np.any(dominates[left], axis=0)
        ranks[front] = rank
        left &= ~front
        rank += 1
    return ranks


def _normalised(points: Points) -> Points:
    """Every objective scaled to [0, 1] over the given points."""
    low, high = points.min(0), points.max(0)
    return np.asarray((points - low) / np.where(high > low, high - low, 1.0))


def _contributions(front: Points) -> Points:
    """The hypervolume lost when each point is left out; the reference lies 10 % beyond the worst (assumption)."""
    reference = np.full(front.shape[1], 1.1)
    total = hypervolume(front, reference)
    return np.array([total - hypervolume(np.delete(front, i, axis=0), reference) for i in range(len(front))])
