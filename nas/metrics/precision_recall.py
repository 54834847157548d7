"""Improved precision and recall of generated pictures (Kynkaanniemi et al. 2019, arXiv 1904.06991).

Precision: the share of generated pictures inside the balls around real ones, each of which reaches to its k-th nearest other
(eq. 1 and 2). Recall: the same with the sides exchanged. As many real pictures as generated ones, as in the paper: taken in
interleaved groups, and averaged over them, so that nothing is random.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nas.metrics import Reference, fid
from nas.metrics.fid import AgainstReal, check

__all__ = ["Settings", "build", "check", "columns"]
GROUPS = 20  # of real pictures, at most
ROWS = 1024  # of distances at a time


class Settings(fid.Settings):
    """Which features, and how far a ball reaches."""

    neighbours: int = Field(3, ge=1, le=100)
    """k: a ball reaches to the k-th nearest picture of its own side."""


def columns(settings: Settings) -> tuple[str, ...]:
    """The paper's features are VGG-16's, so the extractor is always part of the names."""
    return fid.column("precision", settings), fid.column("recall", settings)


def build(settings: Settings, reference: Reference) -> PrecisionRecall:
    """The metric; the real pictures' features are those that `fid` keeps."""
    return PrecisionRecall(columns(settings), settings, reference)


class AmongNeighbours(AgainstReal):
    """Shares that depend on who is among whose nearest neighbours."""

    higher_is_better = True
    unit = "share of pictures"

    def __init__(self, columns: tuple[str, ...], settings: Settings, reference: Reference):
        super().__init__(columns, settings, reference)
        self.neighbours = settings.neighbours
        self.conditions = {**self.conditions, "neighbours": settings.neighbours}

    def enough(self, count: int) -> None:
        if not self.neighbours < count <= len(self.real):
            raise ValueError(
                f"{self.columns[0]}: needs more than {self.neighbours} pictures and as many real ones, got {count} and "
                f"{len(self.real)}"
            )

    def groups(self, drawn: Tensor) -> list[Tensor]:
        """Of the real pictures' features, each as many as the drawn ones, float64. ValueError for too few of either."""
        self.enough(len(drawn))
        step = len(self.real) // len(drawn)
        return [self.real[first::step][: len(drawn)].double() for first in range(min(step, GROUPS))]


class PrecisionRecall(AmongNeighbours):
    """Both, means over the groups."""

    def found(self, drawn: Tensor) -> tuple[Tensor, ...]:
        x, k, groups = drawn.double(), self.neighbours, self.groups(drawn)
        reach = radii(x, k)
        pairs = [(inside(x, y, radii(y, k))[0], inside(y, x, reach)[0]) for y in groups]
        return tuple(
            torch.stack([(hits > 0).double().mean() for hits in side]).mean() for side in zip(*pairs, strict=True)
        )


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of each of (n, D) to its k-th nearest other (n,)."""
    parts = [torch.cdist(rows, features).kthvalue(k + 1).values for rows in torch.split(features, ROWS)]
    return torch.cat(parts)


def inside(points: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """In how many balls (m, D) with radii (m,) each point (n, D) lies: (n,); and how many points each ball holds: (m,)."""
    of_points, of_balls = [], torch.zeros(len(centres), dtype=torch.long)
    for rows in torch.split(points, ROWS):
        hits = torch.cdist(rows, centres) <= radii
        of_points.append(hits.sum(1))
        of_balls += hits.sum(0)
    return torch.cat(of_points), of_balls
