"""Memorisation: the share of generated pictures that are copies rather than samples: 1 - authenticity (Alaa et al. 2022,
arXiv 2102.08921, section 3).

A picture counts that is nearer to its nearest training picture than that one is to its own nearest other. It needs no threshold
and no held-out pictures. Fresh real pictures score well above 0, copies 1: compare with the line `held_out` of a report.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nas.metrics import Reference, fid
from nas.metrics.fid import AgainstReal, Settings, check

__all__ = ["Settings", "build", "check", "columns"]
ROWS = 1024  # of distances at a time


def columns(settings: Settings) -> tuple[str, ...]:
    return (fid.column("memorised", settings),)


def build(settings: Settings, reference: Reference) -> Memorisation:
    """The metric; the real pictures' features are those that `fid` keeps, and how near they are to each other is kept too."""
    return Memorisation(columns(settings), settings, reference)


class Memorisation(AgainstReal):
    """Of generated pictures against the training pictures."""

    higher_is_better = False
    unit = "share of pictures"

    def __init__(self, columns: tuple[str, ...], settings: Settings, reference: Reference):
        super().__init__(columns, settings, reference)
        self.apart = reference.cached(f"{self.place}-nearest", lambda: nearest_other(self.real))

    def found(self, drawn: Tensor) -> tuple[Tensor, ...]:
        return (memorised(drawn, self.real, self.apart),)


def memorised(drawn: Tensor, real: Tensor, apart: Tensor) -> Tensor:
    """Share of (n, D) nearer to one of (m, D) than that one is to the others, which is `apart` (m,)."""
    nearest = [(rows, torch.cdist(rows, real.double()).argmin(1)) for rows in torch.split(drawn.double(), ROWS)]
    copies = [(rows - real[at]).norm(dim=1) < apart[at] for rows, at in nearest]
    return torch.cat(copies).double().mean()


def nearest_other(features: Tensor) -> Tensor:
    """Distance of each of (m, D) to the nearest other one (m,), float64. ValueError below two."""
    if len(features) < 2:
        raise ValueError(f"memorisation needs at least 2 real pictures, got {len(features)}")
    x, found = features.double(), []
    for first, rows in zip(range(0, len(x), ROWS), torch.split(x, ROWS), strict=False):
        away = torch.cdist(rows, x)
        own = torch.arange(len(rows))
        away[own, first + own] = torch.inf
        found.append((rows - x[away.argmin(1)]).norm(dim=1))
    return torch.cat(found)
