"""Points with several objectives, all to be minimised: who dominates whom, and the hypervolume they dominate.

"Best" is NSGA-II's order (Deb et al. 2002) with ties decided as in SMS-EMOA (Beume et al. 2007).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (number of points, number of objectives), all to be minimised

# The reference of a hypervolume, where objectives are scaled to [0, 1]: a tenth beyond the worst (assumption).
CORNER = 1.1
DECIMALS = 12  # of a contribution to a hypervolume that is scaled to about 1; beyond that lies rounding


def nondominated(points: Sequence[Sequence[float]] | Points) -> Points:
    """Boolean mask (n,) of the points (n, objectives), all minimised, that no other point dominates."""
    values = np.asarray(points, dtype=float)
    keep = np.ones(len(values), dtype=bool)
    left = np.lexsort(values.T[::-1]) if values.size else np.empty(0, dtype=int)  # no later point dominates an earlier
    while len(left):
        point, left = values[left[0]], left[1:]
        beaten = (values[left] >= point).all(axis=1) & (values[left] > point).any(axis=1)
        keep[left[beaten]] = False
        left = left[~beaten]
    return keep


def nondominated_ranks(points: Points) -> NDArray[np.int64]:
    """Rank 0 is the front, rank 1 the front without rank 0, and so on. Equal points share a rank."""
    distinct, which = np.unique(points, axis=0, return_inverse=True)
    dominates = _no_worse(distinct)
    np.fill_diagonal(dominates, False)
    above = dominates.sum(axis=0, dtype=np.int32)  # how many points, not ranked yet, dominate each
    ranks = np.empty(len(distinct), dtype=np.int64)
    rank = 0
    while (front := np.flatnonzero(above == 0)).size:
        ranks[front] = rank
        above[front] = -1
        above -= dominates[front].sum(axis=0, dtype=np.int32)
        rank += 1
    return ranks[which.reshape(-1)]


def _no_worse(points: Points) -> NDArray[np.bool_]:
    """(n, n): which point is as good as which other, or better, in every objective. Small integers compare fastest."""
    found = np.ones((len(points), len(points)), dtype=bool)
    kind = np.int16 if len(points) < 2**15 else np.int64
    for column in points.T:
        places: NDArray[np.integer] = np.unique(column, return_inverse=True)[1].astype(kind)
        found &= places[:, None] <= places
    return found


def normalised(points: Points) -> Points:
    """Every objective scaled to [0, 1] over the given points."""
    low, high = points.min(0), points.max(0)
    return np.asarray((points - low) / np.where(high > low, high - low, 1.0))


def contributions(front: Points) -> Points:
    """The hypervolume lost when each point is left out; the reference is CORNER."""
    corner = np.full(front.shape[1], CORNER)
    lost = [added_volume(point, np.delete(front, i, axis=0), corner) for i, point in enumerate(front)]
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
    """What a point dominates that the others do not: its box up to the corner, less what they cut out of it.

    Of the pieces that are cut out, those inside another are not measured.
    """
    if not (point < corner).all() or (others <= point).all(axis=1).any():
        return 0.0
    pieces = np.maximum(others, point)
    pieces = pieces[(pieces < corner).all(axis=1)]
    return float(np.prod(corner - point)) - _volume(pieces[nondominated(pieces)], corner)


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
