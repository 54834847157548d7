"""Density and coverage of generated pictures (Naeem et al. 2020, arXiv 2002.09797).

Balls around real pictures reach to their k-th nearest other. Density (eq. 4): in how many of them a generated picture lies on
average, over k, so that it may pass 1. Coverage (eq. 5): the share of balls that hold a generated picture. As many real
pictures as generated ones, in the groups of `precision_recall`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nas.metrics import Reference, fid, precision_recall
from nas.metrics.fid import check
from nas.metrics.precision_recall import AmongNeighbours, inside, radii

__all__ = ["Settings", "build", "check", "columns"]


class Settings(precision_recall.Settings):
    """Which features, and how far a ball reaches."""

    neighbours: int = Field(5, ge=1, le=100)
    """k: a ball reaches to the k-th nearest real picture. Equal distributions have coverage 1 - 2^-k or so, 0.97 at 5."""


def columns(settings: Settings) -> tuple[str, ...]:
    return fid.column("density", settings), fid.column("coverage", settings)


def build(settings: Settings, reference: Reference) -> DensityCoverage:
    """The metric; the real pictures' features are those that `fid` keeps."""
    return DensityCoverage(columns(settings), settings, reference)


class DensityCoverage(AmongNeighbours):
    """Both, means over the groups."""

    def found(self, drawn: Tensor) -> tuple[Tensor, ...]:
        x, k = drawn.double(), self.neighbours
        hits = [inside(x, y, radii(y, k)) for y in self.groups(drawn)]
        density = torch.stack([of_points.double().mean() / k for of_points, _ in hits]).mean()
        coverage = torch.stack([(of_balls > 0).double().mean() for _, of_balls in hits]).mean()
        return density, coverage
