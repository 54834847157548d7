"""How different two pictures look to a frozen network, in the form of LPIPS (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

    d(x, y) = sum_l mean_positions |u_l(x) - u_l(y)|^2,

u_l being what stage l puts out, of unit length over the channels at every position. Every channel weighs one, which the paper
has as its baseline; LPIPS has weights fitted to people's judgements, on AlexNet or VGG, and neither is free to ship here. A stage
is between 0 and 4, so that d is larger than LPIPS is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas.documents.section import Section
from nas.networks import feature_maps

SECTION = "objective.perceptual"  # where its settings stand
SHORTEST = 1e-4  # length of features below which they are not made longer, for the sake of the gradient


class Features(Section):
    """Which network looks."""

    features: str = feature_maps.SHIPPED
    """A model of timm whose stages are compared, such as `vgg16`."""
    weights: Path | None = None
    """Its weights, a local file. None: those of EfficientNet-Lite0, which come with the installation."""
    feature_size: int | None = Field(None, ge=8, le=1024)
    """Pixels along a side of what it sees. None: pictures as they are."""

    def check(self) -> None:
        """Raises InputError for a network that is not there. Loads nothing."""
        feature_maps.check(self.features, self.weights, SECTION)


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """d (B,) of two lists of stages (B, width, positions)."""
    units = ([F.normalize(stage, dim=1, eps=SHORTEST) for stage in stages] for stages in (ours, theirs))
    return torch.stack([(a - b).square().sum(1).mean(1) for a, b in zip(*units, strict=True)]).sum(0)


class Perceptual(nn.Module):
    """The mean distance of what latents (B, C, H, W) show, through the frozen image decoder. Nothing flows to `wanted`."""

    def __init__(self, decoder: nn.Module, given: Features):
        """Raises InputError as `nas.networks.feature_maps.load`."""
        super().__init__()
        self.decoder = decoder
        self.features = feature_maps.load(given.features, given.weights, given.feature_size, SECTION)

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.features(self.decoder(wanted))
        return distance(self.features(self.decoder(made)), target).mean()
