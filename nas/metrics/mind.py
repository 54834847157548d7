"""Sliced Wasserstein distance between the features of generated and real pictures (MIND, Berthet et al. 2026, arXiv 2605.06797).

Where we differ, since the paper's scaling is not known to us: the mean over DIRECTIONS fixed unit vectors of the squared
2-Wasserstein distance of the projections, times D, so that a shift of the mean by m counts as |m|^2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nas.metrics import Reference
from nas.metrics.fid import FeatureDistance, Settings, check, column

__all__ = ["Settings", "build", "check", "columns"]
DIRECTIONS = 1024
CHUNK = 128  # directions at a time


def columns(settings: Settings) -> tuple[str, ...]:
    """`mind`, or `mind_<extractor>`."""
    return ("mind" if settings.features == "inception" else column("mind", settings),)


def build(settings: Settings, reference: Reference) -> SlicedDistance:
    """The metric; the real pictures' features are those that `fid` keeps."""
    return SlicedDistance(columns(settings), settings, reference)


class SlicedDistance(FeatureDistance):
    """The real pictures' sorted projections are kept, because every trial is compared with them."""

    def __init__(self, columns: tuple[str, ...], settings: Settings, reference: Reference):
        super().__init__(columns, settings, reference)
        self.directions = directions(self.real.shape[1])
        self.sorted_real = projected(self.real, self.directions)

    def distance(self, drawn: Tensor) -> Tensor:
        return sliced_distance(projected(drawn, self.directions), self.sorted_real) * self.real.shape[1]


def directions(width: int) -> Tensor:
    """Unit vectors (width, DIRECTIONS), float32, the same on every machine."""
    drawn = np.random.Generator(np.random.Philox(key=0)).standard_normal((width, DIRECTIONS))
    return torch.from_numpy(drawn / np.linalg.norm(drawn, axis=0)).float()


def projected(features: Tensor, onto: Tensor) -> Tensor:
    """Features (n, D) along each direction (D, K), sorted: (n, K)."""
    return (features.float() @ onto).sort(0).values


def sliced_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean over K of the squared 2-Wasserstein distance between sorted samples (n, K) and (m, K), exact for any n and m."""
    if not len(x) or not len(y):
        raise ValueError("the sliced distance needs pictures on both sides")
    ends = np.union1d(np.arange(1, len(x) + 1) * len(y), np.arange(1, len(y) + 1) * len(x))  # in units of 1 / (n m)
    mass = torch.from_numpy(np.diff(ends, prepend=0) / (len(x) * len(y)))[:, None]
    of_x, of_y = (torch.from_numpy((ends - 1) // other) for other in (len(y), len(x)))
    parts = [
        (mass * (a[of_x].double() - b[of_y].double()).square()).sum(0)
        for a, b in zip(torch.split(x, CHUNK, 1), torch.split(y, CHUNK, 1), strict=True)
    ]
    return torch.cat(parts).mean()
