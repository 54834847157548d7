"""How much more the found schedules dominate than the heuristics alone, on captions the search has not seen, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas.search.dominance import CORNER, hypervolume

RESAMPLES, CONFIDENCE, SEED = 2_000, 0.95, 0


class Gain(NamedTuple):
    """Hypervolumes of distance from uncached and share of multiply-adds, each over its largest value in the table."""

    heuristics: float
    found: float
    """Of the found schedules and the heuristics together."""
    low: float
    """Of `found - heuristics`, over resamplings of the pictures: the same for all schedules."""
    high: float


def gain(table: pd.DataFrame, distances: Mapping[str, NDArray[np.float32]]) -> Gain:
    """`distances` are those of every picture (pictures,) by schedule."""
    names = [str(name) for name in table["schedule"]]
    shares, found = table["macs_share"].to_numpy(), table["found"].to_numpy(dtype=bool)
    every = np.stack([np.asarray(distances[name], dtype=float) for name in names])
    largest = every.mean(axis=1).max() or 1.0

    def volumes(rows: Any) -> tuple[float, float]:
        points = np.column_stack([shares, every[:, rows].mean(axis=1) / largest])
        corner = np.full(2, CORNER)
        return hypervolume(points[~found], corner), hypervolume(points, corner)

    pictures = every.shape[1]
    alone, both = volumes(np.arange(pictures))
    rng = np.random.default_rng(SEED)
    differences = [b - a for a, b in (volumes(rng.choice(pictures, pictures)) for _ in range(RESAMPLES))]
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Gain(alone, both, float(low), float(high))


def sentence(of: Gain) -> str:
    """For people."""
    return (
        f"hypervolume {of.heuristics:.3f} by the heuristics alone, {of.found:.3f} with what was found: "
        f"{of.found - of.heuristics:+.3f} (95 % interval over pictures {of.low:.3f} to {of.high:.3f})"
    )
