"""What a trial is expected to add to the hypervolume of the front, should it be trained to the end.

Its end is forecast from trials that got there: each of them gained so much from this rung to its end, and the trial may gain
as much. The mean over these gains is the expected hypervolume improvement (Emmerich, Giannakoglou and Naujoks 2006), with
recorded gains in place of a Gaussian process. So how much an early score says is measured while the study runs: where
training still changes everything, gains scatter, and hardly a trial is without a chance.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nas.search.dominance import CORNER, Points, added_volume, hypervolume, nondominated
from nas.search.peers import Peers

MOST_GAINS = 32  # of the recorded gains so many are tried, spread over the study


def expected(point: NDArray[np.float64], peers: Points, here: Points, ends: Points) -> float:
    """The share that a trial at `point` (objectives,) is expected to add to the hypervolume of `ends`.

    `here` and `ends` (finished, objectives) are the scores of the finished trials at this rung and at the end; `peers`
    (n, objectives) those of all others at this rung. All are minimised. Objectives are scaled to the range of the ends
    and of what the others are forecast to reach on average.
    """
    gains = ends - here
    likely = np.concatenate([ends, peers + gains.mean(0), point[None] + gains.mean(0)])
    low, span = likely.min(0), np.ptp(likely, axis=0)
    scale = np.where(span > 0, span, 1.0)
    front = ((ends - low) / scale)[nondominated(ends)]
    forecasts = (point + gains[:: math.ceil(len(gains) / MOST_GAINS)] - low) / scale
    corner = np.full(len(point), CORNER)
    added = [added_volume(forecast, front, corner) for forecast in forecasts]
    return float(np.mean(added)) / hypervolume(front, corner)


def of_curves(curve: Points, others: Peers, rungs: int) -> float:
    """`expected` of a trial with these objectives (rungs so far, objectives); `others` as far as each got, of `rungs`.

    At least one of them must have got to the end.
    """
    rung = len(curve) - 1
    finished, peers = others.at(rungs), others.at(rung + 1)
    return expected(curve[-1], peers[:, rung], finished[:, rung], finished[:, -1])
