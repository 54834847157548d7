"""Kernel distance between the features of generated and real pictures (Binkowski et al. 2018), without bias for few pictures.

torchmetrics' polynomial kernel of degree 3, times 1,000. The real pictures are taken in consecutive groups as large as the
generated set, and the estimates averaged: no random subsets, so equal pictures have equal scores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from nas.metrics import Reference
from nas.metrics.fid import FeatureDistance, Settings, check, column

__all__ = ["Settings", "build", "check", "columns"]
GROUPS = 20  # of real pictures, at most


def columns(settings: Settings) -> tuple[str, ...]:
    """`kid`, or `kid_<extractor>`."""
    return ("kid" if settings.features == "inception" else column("kid", settings),)


def build(settings: Settings, reference: Reference) -> KernelDistance:
    """The metric; the real pictures' features are those that `fid` keeps."""
    return KernelDistance(columns(settings), settings, reference)


class KernelDistance(FeatureDistance):
    """1,000 times the squared maximum mean discrepancy, which is below 0 as often as above for equal distributions."""

    unit = "1000 x squared kernel distance"

    def enough(self, count: int) -> None:
        _as_many(count, len(self.real))

    def distance(self, drawn: Tensor) -> Tensor:
        return 1000 * kernel_distance(drawn, self.real)


def kernel_distance(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased, between samples (n, D) and (m, D) with n <= m, in float64; ValueError below two rows or for n > m."""
    _as_many(len(x), len(y))
    whole = len(y) // len(x) * len(x)
    groups = torch.split(y[:whole].double(), len(x))[:GROUPS]
    return torch.stack([poly_mmd(x.double(), group) for group in groups]).mean()


def _as_many(drawn: int, real: int) -> None:
    if not 2 <= drawn <= real:
        raise ValueError(f"the kernel distance needs at least 2 pictures and as many real ones, got {drawn} and {real}")
