"""A decoder trained on the latents of a frozen encoder, as MobileDiffusion trains its pruned one (arXiv 2311.16567): there is
no KL term left, since nothing moves the latents. The loss is L1 + L2 on pixels, as for the shipped autoencoder;
MobileDiffusion has an adversarial term as well, smaller than in the training of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.seeds import stream_seed

BATCH = 64  # pictures decoded at a time outside training


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained."""

    images: int = 1_600
    """Pictures seen."""
    batch: int = 16
    learning_rate: float = 5e-4
    """AdamW's; falls to zero as half a cosine."""
    seed: int = 0
    """Which pictures an update sees."""


def train(decoder: nn.Module, latents: Tensor, pictures: Tensor, recipe: Recipe) -> None:
    """Train in place to turn latents (N, C, H, W), as the decoder takes them, into pictures (N, 3, fH, fW) in [-1, 1]."""
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    updates = math.ceil(recipe.images / recipe.batch)
    decoder.train()
    for update in range(updates):
        generator = torch.Generator().manual_seed(stream_seed(recipe.seed, update))
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * update / updates))
        loss = loss_of(decoder, latents[rows], pictures[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    decoder.eval()


def loss_of(decoder: nn.Module, latents: Tensor, pictures: Tensor) -> Tensor:
    """L1 + L2, a scalar; the network runs in bfloat16, the loss does not."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        made = decoder(latents)
    loss: Tensor = F.l1_loss(made.float(), pictures) + F.mse_loss(made.float(), pictures)
    return loss


@torch.no_grad()
def decoded(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Pictures (N, 3, fH, fW) in [-1, 1]."""
    return torch.cat([decoder(part).clamp(-1, 1) for part in torch.split(latents, BATCH)])


def psnr(made: Tensor, pictures: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; both (N, 3, H, W) in [-1, 1], so the peak is 2."""
    return float((10 * torch.log10(4 / (made - pictures).square().mean((1, 2, 3)))).mean())
