"""What Optuna Hub's multi-metric pruner would do, to stand beside our own rules in a replay.

Restated from the registry's documentation and source (optuna/optunahub-registry, package/pruners/multi_metric_pruner,
`joint=True` around Optuna's MedianPruner with its defaults). At each step every trial's non-dominated rank is its value. A
trial on the front has -1. Otherwise the trials of its rank are told apart by the greedy order of contributed hypervolume:
-0.5 for the first to -0.1 for the last. A trial is pruned if its best value over all steps so far is above the median of the
others at this step, as soon as five others have ended. Trials that still run count as ended here, so the two agree exactly
where trials run one after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.search.dominance import Points, hypervolume, nondominated_ranks

STARTUP = 5  # trials that are never stopped: the default of optuna.pruners.MedianPruner
FIRST_BONUS, LAST_BONUS = 0.5, 0.1


def goes_on(curve: Points, others: Sequence[Points]) -> bool:
    """Whether a trial with these objectives (rungs, objectives), all minimised, continues; `others` as far as each got."""
    steps = [[other[step] for other in others if len(other) > step] for step in range(len(curve))]
    if len(others) < STARTUP or not steps[-1]:
        return True
    levels = [nondominated_ranks(np.array([*earlier, curve[step]])) for step, earlier in enumerate(steps)]
    if any(ranks[-1] == 0 for ranks in levels):
        return True  # -1 is below every median
    best, middle = min(int(ranks[-1]) for ranks in levels), float(np.median(levels[-1][:-1]))
    if best - FIRST_BONUS > middle or best < middle - FIRST_BONUS:  # no bonus can change it
        return best < middle
    told = [rewards(np.array([*earlier, curve[step]])) for step, earlier in enumerate(steps)]
    return bool(min(each[-1] for each in told) <= np.median(told[-1][:-1]))


def rewards(points: Points) -> Points:
    """The value of each point (n, objectives) as the pruner sees them when the last one is in question; lower is better."""
    ranks = nondominated_ranks(points)
    told = ranks.astype(np.float64)
    if ranks[-1] == 0:
        told[-1] = -1.0
        return told
    level = np.flatnonzero(ranks == ranks[-1])
    if len(level) > 1:
        told[level[greedy(points[level])]] -= np.linspace(FIRST_BONUS, LAST_BONUS, len(level))
    return told


def greedy(points: Points) -> list[int]:
    """Indices in the order in which each next point adds most hypervolume to those before it.

    The reference is the worst of each objective, moved out by a tenth of itself.
    """
    worst = points.max(0)
    reference = np.maximum(1.1 * worst, 0.9 * worst)
    chosen: list[int] = []
    left = list(range(len(points)))
    while left:
        volumes = [hypervolume(points[[*chosen, index]], reference) for index in left]
        chosen.append(left.pop(int(np.argmax(volumes))))
    return chosen
