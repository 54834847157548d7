"""A decoder trained on latents that do not move.

Either to real pictures, as MobileDiffusion trains its pruned one (arXiv 2311.16567): there is no KL term left, since nothing
moves the latents. The loss is L1 + L2 on pixels, as for the shipped autoencoder; MobileDiffusion has an adversarial term as
well, smaller than in the training of the whole. Or to what a whole decoder makes of the latents, as SnapFusion does (arXiv
2306.00980, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.networks.autoencoders.kl import Decoder
from nas.seeds import stream_seed
from nas.training.fitting import Fitting

BATCH = 64  # pictures decoded at a time outside training
BETAS = (0.9, 0.99)

Network = TypeVar("Network", bound=nn.Module)
Loss = Callable[[Tensor], Tensor]  # a scalar, of the latents in these rows (B,)


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained. SnapFusion publishes the loss alone."""

    images_seen: int = 16_384
    """Latents, those seen again counted again."""
    batch: int = 16
    learning_rate: float = 1e-3
    """AdamW's; falls to zero as half a cosine."""
    seed: int = 0
    """Which latents an update sees."""

    @property
    def updates(self) -> int:
        return math.ceil(self.images_seen / self.batch)


# --- losses ----------------------------------------------------------------------------------------------------------


def to_pictures(decoder: nn.Module, latents: Tensor, pictures: Tensor) -> Tensor:
    """L1 + L2 from what a decoder makes of latents (B, C, H, W), as it takes them, to pictures (B, 3, fH, fW) in [-1, 1]; a
    scalar. The network runs in bfloat16, the loss does not."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        made = decoder(latents)
    loss: Tensor = F.l1_loss(made.float(), pictures) + F.mse_loss(made.float(), pictures)
    return loss


def to_teacher(student: Decoder, teacher: Decoder, latents: Tensor) -> Tensor:
    """Mean squared difference of what two decoders make of latents (B, C, H, W), before pixels are bounded; a scalar."""
    with torch.no_grad():
        wanted = teacher.unbounded(latents)
    return F.mse_loss(student.unbounded(latents), wanted)


# --- training --------------------------------------------------------------------------------------------------------


class DecoderTraining(Fitting[Loss], Generic[Network]):
    """A decoder that learns by a loss of the latents in some rows."""

    role = "student"

    def __init__(self, decoder: Network, count: int, recipe: Recipe, weight_decay: float = 0.0):
        """`count`: rows of latents that the loss may be asked for."""
        decoder.train().requires_grad_()
        rate, parameters = recipe.learning_rate, decoder.parameters()
        adam = torch.optim.AdamW(parameters, lr=rate, betas=BETAS, weight_decay=weight_decay)
        super().__init__(decoder, adam, recipe.updates, recipe.batch)
        self.decoder, self.count, self.recipe = decoder, count, recipe

    def loss(self, lessons: Loss) -> Tensor:
        generator = torch.Generator().manual_seed(stream_seed(self.recipe.seed, self.step))
        return lessons(torch.randint(self.count, (self.batch,), generator=generator))

    def rate(self) -> float:
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.updates))

    def averaged(self) -> Network:
        super().averaged()
        return self.decoder


# --- what came of it -------------------------------------------------------------------------------------------------


@torch.no_grad()
def decoded(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Pictures (N, 3, fH, fW) in [-1, 1]."""
    return torch.cat([decoder(part).clamp(-1, 1) for part in torch.split(latents, BATCH)])


def psnr(made: Tensor, pictures: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; both (N, 3, H, W) in [-1, 1], so the peak is 2."""
    return float((10 * torch.log10(4 / (made - pictures).square().mean((1, 2, 3)))).mean())
