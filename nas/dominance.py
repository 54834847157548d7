"""Points with several objectives, all to be minimised: who dominates whom, and the hypervolume they dominate.

"Best" is NSGA-II's order (Deb et al. 2002) with ties decided as in SMS-EMOA (Beume et al. 2007).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (number of points, number of objectives), all to be minimised

CORNER = (
    1.1  # the reference of a hypervolume, where objectives are scaled to [0, 1]: a tenth beyond the worst (assumption)
)
DECIMALS = 12  # of a contribution to a hypervolume that is scaled to about 1; beyond that lies rounding


def nondominated(points: Sequence[Sequence[float]] | Points) -> Points:
    """Boolean mask (n,) of the points (n, objectives), all minimised, that no other point dominates."""
    values = np.asarray(points, dtype=float)
    keep = np.ones(len(values), dtype=bool)
    for index, point in enumerate(values):
        keep[index] = not ((values <= point).all(axis=1) & (values < point).any(axis=1)).any()
    return keep


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


# --- hypervolume -------------------------------------------------------------------------------------------------------


def hypervolume(points: Points, reference: Points) -> float:
    """The volume that points (n, objectives), all minimised, dominate up to the reference (objectives,). Exact.

    The sum of slices between consecutive values of the first objective, each an area of one objective less (While,
    Hingston, Barone and Huband 2006, "HSO"). Points beyond the reference add nothing.
    """
    corner = np.asarray(reference, dtype=float)
    inside = np.asarray(points, dtype=float).reshape(-1, len(corner))
    return _volume(inside[(inside < corner).all(axis=1)], corner)


def added_volume(point: Points, others: Points, corner: Points) -> float:
    """What a point dominates that the others do not."""
    return float(np.prod(corner - point)) - _volume(np.maximum(others, point), corner)


def growing_volume(values: Points, corner: Points) -> Points:
    """Hypervolume after each point of (n, objectives), in order; NaN and points beyond the corner add nothing."""
    volumes, total, members = np.zeros(len(values)), 0.0, np.empty((0, len(corner)))
    for index, point in enumerate(values):
        if (point < corner).all() and not (members <= point).all(axis=1).any():
            total += added_volume(point, members, corner)
            members = np.vstack([members[~(point <= members).all(axis=1)], point])
        volumes[index] = total
    return volumes


def _volume(members: Points, corner: Points) -> float:
    """Hypervolume of points inside the corner, which may dominate one another."""
    if not len(members):
        return 0.0
    ordered = members[np.argsort(members[:, 0], kind="stable")]
    if len(corner) == 1:
        return float(corner[0] - ordered[0, 0])
    depths = np.diff(ordered[:, 0], append=corner[0])
    if len(corner) == 2:
        return float(depths @ (corner[1] - np.minimum.accumulate(ordered[:, 1])))
    slices = [_volume(ordered[: i + 1, 1:], corner[1:]) if depth else 0.0 for i, depth in enumerate(depths)]
    return float(depths @ np.array(slices))
