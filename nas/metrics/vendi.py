"""Vendi score: how many different pictures there are, in effect (Friedman & Dieng 2022, arXiv 2210.02410).

The exponential of the entropy of the eigenvalues of K / n (definition 3.1), where K are cosines of features. From 1, all
pictures are equal, to n. It needs no real pictures and knows nothing of quality: noise is diverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.metrics import Reference, fid
from nas.metrics.fid import OfFeatures, Settings, check

__all__ = ["Settings", "build", "check", "columns"]


def columns(settings: Settings) -> tuple[str, ...]:
    return (fid.column("vendi", settings),)


def build(settings: Settings, reference: Reference) -> Vendi:
    """The metric; it needs no real pictures."""
    return Vendi(columns(settings), settings)


class Vendi(OfFeatures):
    """Of all generated pictures together."""

    higher_is_better = True
    unit = "pictures"

    def found(self, drawn: Tensor) -> tuple[Tensor, ...]:
        return (vendi(drawn),)


def vendi(features: Tensor) -> Tensor:
    """Of (n, D), by the smaller of the Gram matrices (n, n) and (D, D), which share their eigenvalues, in float64."""
    x = F.normalize(features.double(), dim=1) / len(features) ** 0.5
    small = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    shares = torch.linalg.eigvalsh(small).clamp_min(0)
    found: Tensor = torch.special.entr(shares).sum().exp()
    return found
