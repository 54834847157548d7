"""A minimum in a box by compass search, for a few numbers and a score that is dear and has no gradient.

Each coordinate in turn is moved by a step, forwards, else backwards; the first point that scores better is kept. A round without
a better one makes the step smaller (Hooke and Jeeves 1961; Kolda, Lewis and Torczon 2003, section 1.4). Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Point = tuple[float, ...]
STEPS = (0.4, 0.2, 0.1, 0.05)
DIGITS = 9  # kept of a coordinate, so that a point that is come to by two ways is one point


def minimised(
    score: Callable[[Point], float],
    start: Point,
    low: float,
    high: float,
    evaluations: int,
    steps: tuple[float, ...] = STEPS,
) -> tuple[Point, float]:
    """The best of at most `evaluations` points, the start among them, and its score. Each point is scored once."""
    best, found = start, {start: score(start)}

    def tried(point: Point) -> float:
        if point not in found and len(found) < evaluations:
            found[point] = score(point)
        return found.get(point, math.inf)

    for step in steps:
        moved = True
        while moved and len(found) < evaluations:
            moved = False
            for axis in range(len(start)):
                better = next((p for p in _beside(best, axis, step, low, high) if tried(p) < found[best]), None)
                if better is not None:
                    best, moved = better, True
    return best, found[best]


def _beside(point: Point, axis: int, step: float, low: float, high: float) -> list[Point]:
    """The two points a step away, inside the box."""
    moved = [min(max(round(point[axis] + sign * step, DIGITS), low), high) for sign in (1, -1)]
    return [(*point[:axis], value, *point[axis + 1 :]) for value in moved]
