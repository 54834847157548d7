"""Residual MLP blocks on the pooled text, trained by the squared error: one of Kandinsky's priors, there of 18 blocks (Razzhigaev
et al. 2023, arXiv 2310.03502). Like the linear prior it answers what a caption leaves open with the mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas.networks.conditioning import Text
from nas.priors import Heard, Learning, Lessons, Sizes, ignored, learn


class Settings(Learning):
    """Its size, and how it is trained."""

    blocks: int = Field(18, ge=1, le=200)
    """Residual blocks."""
    width: int = Field(128, ge=1, le=8192)
    """Of the blocks."""


class Block(nn.Module):
    """Two layers added to their input, (B, width); it starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.outer(F.gelu(self.inner(self.norm(x))))
        return x + added


class Prior(nn.Module):
    """pooled (B, P) -> (B, E)."""

    def __init__(self, settings: Settings, sizes: Sizes):
        super().__init__()
        self.settings = settings
        blocks = (Block(settings.width) for _ in range(settings.blocks))
        ends = nn.LayerNorm(settings.width), nn.Linear(settings.width, sizes.image)
        self.layers = nn.Sequential(nn.Linear(sizes.pooled, settings.width), *blocks, *ends)

    def fit(self, lessons: Lessons, seed: int, heard: Heard = ignored) -> None:
        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            return F.mse_loss(self.layers(lessons.text(rows).pooled), lessons.images[rows])

        learn(self, loss, lessons, self.settings, seed, heard)

    @torch.no_grad()
    def sample(self, text: Text, noise: Tensor) -> Tensor:
        image: Tensor = self.layers(text.pooled)
        return image
