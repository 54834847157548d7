"""A small decoder trained to the pictures of a large one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.networks.autoencoders.kl import Decoder
from nas.seeds import stream_seed
from nas.training.fitting import Fitting

BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained. SnapFusion publishes the loss alone."""

    images_seen: int = 16_384
    """Latents, those seen again counted again."""
    batch: int = 16
    learning_rate: float = 1e-3
    """Adam's; falls to zero as half a cosine."""
    seed: int = 0
    """Which latents an update sees."""

    @property
    def updates(self) -> int:
        return math.ceil(self.images_seen / self.batch)


def loss_of(student: Decoder, teacher: Decoder, latents: Tensor) -> Tensor:
    """Mean squared difference of what two decoders make of latents (B, C, H, W), before pixels are bounded; a scalar."""
    with torch.no_grad():
        wanted = teacher.unbounded(latents)
    return F.mse_loss(student.unbounded(latents), wanted)


class Distillation(Fitting[Tensor]):
    """A student that learns from latents (N, C, H, W)."""

    role = "student"

    def __init__(self, student: Decoder, teacher: Decoder, recipe: Recipe):
        student.train().requires_grad_()
        adam = torch.optim.Adam(student.parameters(), lr=recipe.learning_rate, betas=BETAS)
        super().__init__(student, adam, recipe.updates, recipe.batch)
        self.student, self.teacher, self.recipe = student, teacher, recipe

    def loss(self, lessons: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(stream_seed(self.recipe.seed, self.step))
        rows = torch.randint(len(lessons), (self.recipe.batch,), generator=generator)
        return loss_of(self.student, self.teacher, lessons[rows])

    def rate(self) -> float:
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.updates))

    def averaged(self) -> Decoder:
        super().averaged()
        return self.student
