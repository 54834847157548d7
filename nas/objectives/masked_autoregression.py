"""Masked autoregression: MAR (Li et al. 2024, arXiv 2406.11838, sections 3.2 and 4.2) and Fluid (Fan et al. 2024, 2410.13863).

Some tokens of a picture are hidden, the network makes conditions of all tokens from those that are left, and its head learns to
denoise the hidden ones, each by itself, under its condition:

    L = E |head(x_t, t, z) - target|^2, over hidden tokens x alone, with times and noise of each.

How many are hidden is one number for the batch, ceil(L r) of L tokens, r from a normal distribution cut to [least, 1]. In random
order any tokens are hidden, in raster order the last ones of the picture. The conditions are used `head_multiplier` times,
with other times and noise, because the head is cheap beside them; `passes` counts those of what makes the conditions.

Of tokens that are indices the loss is -log p(x | z), over hidden tokens alone, without times and noise, as in Fluid's discrete
variants and MaskGIT (Chang et al. 2022, arXiv 2202.04200, eq. 1); the settings of times and noise then do nothing.

Where we differ from MAR: v is predicted by default, because a noise predictor under the cosine schedule diverges when it is drawn
after a brief training (an error of the noise is divided by a_t = 5e-5); `prediction: epsilon` is the published one. No learned
variance. Fluid's raster order is a causal transformer that learns from all tokens at once; here it is the same network as in
random order, told the first tokens and asked about all that follow.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor, nn

from nas.diffusion import schedule
from nas.diffusion.plan import ALONG_A_PATH, AUTOREGRESSIVE, Plan
from nas.diffusion.tokens.autoregression import at
from nas.errors import InputError
from nas.networks.backbones import Autoregressor, Discrete
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, Lone

LEVELS = 8  # shares of hidden tokens that held-out pictures are asked about


class Settings(schedule.Settings):
    """What is hidden, and how tokens are noised."""

    noise: Literal["cosine", "scaled_linear"] = "cosine"
    """The noise schedule of the head: that of MAR, or Stable Diffusion's, which other objectives have."""
    order: Literal["random", "raster"] = "random"
    """Which tokens are hidden: any, or all after a place of the picture. `sampling.order` is the order of drawing."""
    mask_mean: float = Field(1.0, ge=0, le=1)
    """Mean of the normal distribution of the hidden share, before it is cut."""
    mask_deviation: float = Field(0.25, gt=0, le=100)
    """Its standard deviation; 100 is as good as uniform."""
    mask_least: float = Field(0.7, ge=0, lt=1)
    """The least hidden share, where the distribution is cut. MAR has 0.7."""
    head_multiplier: int = Field(4, ge=1, le=1024)
    """Times and noise that every hidden token is learned from in an update."""


def noise_schedule(settings: Settings) -> DDPMScheduler:
    """1,000 steps, by Nichol and Dhariwal's cosine (2021, arXiv 2102.09672, eq. 17) or Stable Diffusion's."""
    plain = schedule.noise_schedule(settings)
    if settings.noise == "scaled_linear":
        return plain
    made: DDPMScheduler = DDPMScheduler.from_config({**plain.config, "beta_schedule": "squaredcos_cap_v2"})
    return made


def check_plan(settings: Settings, plan: Plan) -> None:
    """Raises InputError for a plan that asks for conditions that are never learned."""
    if settings.order == "raster" and plan.solver == AUTOREGRESSIVE and plan.order != "raster":
        raise InputError(
            f"sampling.order: {plan.order}, but objective.order is raster, so that only the first tokens are ever known; "
            "expected raster"
        )


class Objective(Lone):
    """The loss over one network, which draws token by token. Raises InputError for another."""

    requires = frozenset({"tokens"})
    solvers: tuple[str, ...] = (AUTOREGRESSIVE, *ALONG_A_PATH, "one_step")
    guided_drawing = True
    measures_progress = True

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.schedule, self.settings = noise_schedule(settings), settings
        _able(generator)

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """Mean squared error over hidden tokens, their elements, times and noise; of indices, mean cross-entropy in nats."""
        network = _able(self.generator)
        tokens = network.tokens(batch.latents)
        share = hidden_share(self.settings, float(torch.rand((), generator=batch.generator, dtype=torch.float64)))
        order = torch.rand(tokens.shape[:2], generator=batch.generator)
        hidden = hidden_places(self.settings, order, share).to(tokens.device)
        clean, conditions = _asked(network, tokens, hidden, batch.text)
        if isinstance(network, Discrete):
            return _surprise(network, clean, conditions).mean()
        repeats = self.settings.head_multiplier
        clean, conditions = clean.repeat(repeats, 1, 1), conditions.repeat(repeats, 1, 1)
        time = torch.randint(0, self.steps, clean.shape[:2], generator=batch.generator).to(tokens.device)
        noise = torch.randn(clean.shape, generator=batch.generator).to(tokens.device)
        return _error(network, self.schedule, clean, time, noise, conditions).mean()


def hidden_share(settings: Settings, quantile: float) -> float:
    """The share of hidden tokens that so much of the cut normal distribution lies below."""
    low, high = (
        torch.special.ndtr(torch.tensor((end - settings.mask_mean) / settings.mask_deviation, dtype=torch.float64))
        for end in (settings.mask_least, 1.0)
    )
    found = settings.mask_mean + settings.mask_deviation * float(torch.special.ndtri(low + quantile * (high - low)))
    return min(max(found, settings.mask_least), 1.0)


def hidden_places(settings: Settings, order: Tensor, share: float) -> Tensor:
    """The places (B, M) of the tokens to hide: those that come first in an order (B, L) of numbers, or the picture's last."""
    tokens = order.shape[1]
    count = max(1, math.ceil(tokens * share))
    if settings.order == "raster":
        return torch.arange(tokens - count, tokens, device=order.device).expand(len(order), -1)
    return order.argsort(1)[:, :count]


def held_out_error(
    settings: Settings, network: Any, schedule: DDPMScheduler, latents: Tensor, text: Text, time: Tensor, noise: Tensor
) -> Tensor:
    """Squared errors of hidden tokens, as in training, for given times (B,) and noise (B, C, H, W), or the surprise of indices;
    one-dimensional.

    Each eighth of the pictures hides another share, the middle of an eighth of the shares of training; which tokens of a picture
    are hidden is a function of its noise.
    """
    able, found = _able(network), []
    pieces = zip(*(given.chunk(LEVELS) for given in (latents, *text, time, noise)), strict=True)
    for level, (piece, words, pooled, when, added) in enumerate(pieces):
        tokens, noise_ = able.tokens(piece), able.tokens(added)
        share = hidden_share(settings, (level + 0.5) / LEVELS)
        hidden = hidden_places(settings, noise_.sum(2), share)
        clean, conditions = _asked(able, tokens, hidden, Text(words, pooled))
        if isinstance(able, Discrete):
            found.append(_surprise(able, clean, conditions))
            continue
        found.append(
            _error(able, schedule, clean, when[:, None].expand(clean.shape[:2]), at(noise_, hidden), conditions)
        )
    return torch.cat([error.flatten() for error in found])


def _able(network: Any) -> Autoregressor:
    if not isinstance(network, Autoregressor):
        raise InputError("objective: masked_autoregression trains networks that draw token by token, and got another")
    return network


def _asked(network: Autoregressor, tokens: Tensor, hidden: Tensor, text: Text) -> tuple[Tensor, Tensor]:
    """The tokens at hidden places (B, M), and their conditions given the others."""
    known = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, hidden, False)
    return at(tokens, hidden), at(network.conditions(tokens, known, text), hidden)


def _surprise(network: Discrete, clean: Tensor, conditions: Tensor) -> Tensor:
    """-log p, in nats, of indices (B, M, 1) under their conditions; one-dimensional."""
    logits = network.logits(conditions).float()
    return F.cross_entropy(logits.flatten(0, 1), clean.flatten().long(), reduction="none")


def _error(
    network: Autoregressor, made: DDPMScheduler, clean: Tensor, time: Tensor, noise: Tensor, conditions: Tensor
) -> Tensor:
    """Squared error (B, M, c) of the head at times (B, M)."""
    rows = clean.shape[0] * clean.shape[1]
    noisy, target = schedule.corrupted(made, clean.reshape(rows, -1), time.reshape(rows), noise.reshape(rows, -1))
    prediction = network.denoised(noisy.view(clean.shape), time, conditions)
    return (prediction.float() - target.view(clean.shape)).square()
