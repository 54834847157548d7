"""The order of points with several objectives: non-dominated ranks, and within a rank the hypervolume a point alone adds.

"Best" is NSGA-II's order (Deb et al. 2002) with ties decided as in SMS-EMOA (Beume et al. 2007).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.results import hypervolume

Points = NDArray[np.float64]  # (number of points, number of objectives), all to be minimised

CORNER = (
    1.1  # the reference of a hypervolume, where objectives are scaled to [0, 1]: a tenth beyond the worst (assumption)
)
DECIMALS = 12  # of a contribution to a hypervolume that is scaled to about 1; beyond that lies rounding


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


def normalised(points: Points) -> Points:
    """Every objective scaled to [0, 1] over the given points."""
    low, high = points.min(0), points.max(0)
    return np.asarray((points - low) / np.where(high > low, high - low, 1.0))


def contributions(front: Points) -> Points:
    """The hypervolume lost when each point is left out; the reference is CORNER."""
    reference = np.full(front.shape[1], CORNER)
    total = hypervolume(front, reference)
    lost = [total - hypervolume(np.delete(front, i, axis=0), reference) for i in range(len(front))]
    return np.round(lost, DECIMALS)
