"""Which of many candidates to train next: the one whose training is expected to add most to the front.

A candidate's costs are known. Its scores are forecast from a cheap look at it before its training: those that were looked at
and trained gained so much from the look to the end, and the candidate may gain as much (nas.search.improvement has the same
idea for a trial that is under way). The mean over these gains of what each forecast adds is the expected hypervolume
improvement (Emmerich, Giannakoglou and Naujoks 2006). Adding up boxes gives it for all candidates at once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nas.search.dominance import CORNER, Points, hypervolume, nondominated

MOST_GAINS = 32  # of the recorded gains so many are tried, spread over the study
AT_ONCE = 1_000_000  # numbers held at a time
SHORTLIST = 32  # candidates that are looked at gain by gain: those that add most with the mean gain


def expected(candidates: Points, gains: Points, known: Points) -> NDArray[np.float64]:
    """The share that each candidate is expected to add to the hypervolume of the front, (candidates,).

    `candidates` (n, objectives) are their looks, `gains` (m, objectives) what others gained from their looks to the end, and
    `known` (k, objectives) where those stand that are trained or being trained. All are minimised. While no gain is known a
    look counts as it is. Candidates beyond the SHORTLIST are rated by the mean gain.
    """
    if not len(gains):
        gains = np.zeros((1, candidates.shape[1]))
    mean = gains.mean(0)
    likely = np.concatenate([known, candidates + mean])
    low, span = likely.min(0), np.ptp(likely, axis=0)
    scale = np.where(span > 0, span, 1.0)
    corner = np.full(candidates.shape[1], CORNER)
    front = ((known - low) / scale)[nondominated(known)]
    boxes = _free(front, corner)
    found = _in_boxes((candidates + mean - low) / scale, *boxes)
    best = np.argsort(-found, kind="stable")[:SHORTLIST]
    tried = gains[:: math.ceil(len(gains) / MOST_GAINS)]
    forecasts = (candidates[best, None] + tried[None] - low) / scale
    found[best] = _in_boxes(forecasts.reshape(-1, len(corner)), *boxes).reshape(len(best), -1).mean(1)
    return found / (hypervolume(front, corner) if len(front) else 1.0)


def added(points: Points, front: Points, corner: NDArray[np.float64]) -> NDArray[np.float64]:
    """The hypervolume up to `corner` (objectives,) that each of `points` (n, objectives) alone would add to a front, (n,)."""
    return _in_boxes(points, *_free(front, corner))


def _in_boxes(points: Points, low: Points, high: Points) -> NDArray[np.float64]:
    """How much of these boxes (k, objectives) each point dominates, (n,)."""
    parts = np.array_split(points, max(1, points.size * len(low) // AT_ONCE))
    sides = (np.maximum(high - np.maximum(low, part[:, None]), 0.0) for part in parts)
    return np.concatenate([each.prod(-1).sum(-1) for each in sides])


def _free(front: Points, corner: NDArray[np.float64]) -> tuple[Points, Points]:
    """What no point of the front dominates, up to the corner, as boxes that do not overlap: their (k, objectives) ends.

    Slabs between the first objectives of neighbouring points: in each, whatever the points before it leave free in the other
    objectives.
    """
    ordered = front[np.argsort(front[:, 0], kind="stable")]
    if len(corner) == 1:
        return np.array([[-np.inf]]), np.minimum(ordered.min(0, initial=np.inf), corner)[None]
    edges = np.concatenate([[-np.inf], np.minimum(ordered[:, 0], corner[0]), corner[:1]])
    if len(corner) == 2:
        heights = np.minimum.accumulate(np.concatenate([corner[1:], ordered[:, 1]]))
        boxes = np.stack([edges[:-1], np.full(len(heights), -np.inf), edges[1:], heights], axis=1)
        boxes = boxes[boxes[:, 0] < boxes[:, 2]]
        return boxes[:, :2], boxes[:, 2:]
    lows, highs = [], []
    for before in np.flatnonzero(edges[:-1] < edges[1:]):
        others = ordered[:before, 1:]
        low, high = _free(others[nondominated(others)], corner[1:])
        lows.append(np.column_stack([np.full(len(low), edges[before]), low]))
        highs.append(np.column_stack([np.full(len(high), edges[before + 1]), high]))
    return np.concatenate(lows), np.concatenate(highs)
