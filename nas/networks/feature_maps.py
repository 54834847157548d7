"""What the stages of a frozen picture network put out, for an adversary to read and for gradients to pass through."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import InputError
from nas.networks import efficientnet, extractors

SHIPPED = efficientnet.NAME  # whose weights come with the installation


class FeatureMaps(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> a list of (B, width, positions), one a stage, float32."""

    shift: Tensor
    scale: Tensor

    def __init__(self, extractor: extractors.Extractor, size: int | None):
        super().__init__()
        self.network, self.size, self.own_size = extractor.network, size, extractor.size
        self.register_buffer("shift", extractor.shift, persistent=False)
        self.register_buffer("scale", extractor.scale, persistent=False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        pictures = pictures.float()
        if self.size not in (None, pictures.shape[-1]):
            pictures = F.interpolate(pictures, size=self.size, mode="bilinear", antialias=True)
        given = (pictures - self.shift) / self.scale
        found = self.network.forward_intermediates(given, intermediates_only=True)  # type: ignore[operator]
        return [stage.flatten(2).float() for stage in found]

    def widths(self) -> list[int]:
        """Of every stage."""
        with torch.no_grad():
            return [stage.shape[1] for stage in self(torch.zeros(1, 3, self.own_size, self.own_size))]


@lru_cache(maxsize=1)
def load(name: str, weights: Path | None, size: int | None, section: str = "objective") -> FeatureMaps:
    """The frozen network: a model of timm with its weights, or the shipped one. `size`: what pictures are resized to.

    Raises InputError as `check`, for weights that are another's, and for a network without stages.
    """
    check(name, weights, section)
    if weights is None:
        found = extractors.Extractor(efficientnet.load(name), size or extractors.SIZE, [0.5] * 3, [0.5] * 3)
    else:
        try:
            found = extractors.load(name, weights, size)
        except InputError as error:
            raise InputError(str(error).replace("metrics.", f"{section}.", 1)) from None
    if not hasattr(found.network, "forward_intermediates"):
        raise InputError(
            f"{section}.features: {name} names no stages; expected another model of timm, such as {SHIPPED}"
        )
    return FeatureMaps(found, size).eval().requires_grad_(False)


def check(name: str, weights: Path | None, section: str = "objective") -> None:
    """Raises InputError, beginning with the section's setting, for a name that timm does not know and weights that are not
    there. Loads nothing."""
    if name.endswith(extractors.PROGRAMS):
        raise InputError(
            f"{section}.features: {name}: a program names no stages; expected a model of timm, such as {SHIPPED}"
        )
    if (name, weights) != (SHIPPED, None):
        try:
            extractors.check(name, weights, [SHIPPED])
        except InputError as error:
            raise InputError(f"{section}.{error}") from None
