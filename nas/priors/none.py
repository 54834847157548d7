"""No prior: nothing is known of the picture before it is drawn, so every caption has the mean embedding of the training set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.documents.section import Section
from nas.networks.conditioning import Text
from nas.priors import Heard, Lessons, Sizes, ignored


class Settings(Section):
    """Nothing to choose."""


class Prior(nn.Module):
    """One embedding for all captions."""

    mean: Tensor

    def __init__(self, settings: Settings, sizes: Sizes):
        super().__init__()
        self.register_buffer("mean", torch.zeros(sizes.image))

    def fit(self, lessons: Lessons, seed: int, heard: Heard = ignored) -> None:
        self.mean.copy_(lessons.images.mean(0))

    def sample(self, text: Text, noise: Tensor) -> Tensor:
        return self.mean.expand(len(text.pooled), -1)
