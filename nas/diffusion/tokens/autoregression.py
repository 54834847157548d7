"""Drawing token by token: MAR (Li et al. 2024, arXiv 2406.11838, section 4.3) and Fluid (Fan et al. 2024, arXiv 2410.13863).

All tokens are missing at first. An iteration makes the conditions of some of them from those that are known, draws these with the
head from noise, each by itself, and knows them from then on. The head draws by DDPM's steps (Ho et al. 2020, eq. 6 and 7, between
any two times), whose noise is multiplied by the temperature; with guidance both branches have the same noise.

A token that is an index is drawn at once from softmax(logits / temperature); guidance is of logits. The token's first noise e
says which: the first index whose cumulative probability is above the share of a normal distribution that lies below e.

Every token has noise of its own in every step, whatever the order and the iterations: plans differ in nothing else.
Where we differ from MAR: the variance of a step is the posterior's, not learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from nas.diffusion.plan import Plan
from nas.diffusion.schedule import clean_at
from nas.diffusion.tokens import unmasking
from nas.errors import InputError
from nas.networks.backbones import Autoregressor, Discrete
from nas.networks.conditioning import Text

Predict = Callable[[Tensor, Tensor], Tensor]  # noisy tokens (B, N, c), one time () -> prediction (B, N, c), float32


def drawn(
    network: Autoregressor,
    plan: Plan,
    schedule_config: Mapping[str, Any],
    noise: Tensor,
    fresh: Iterator[Tensor],
    text: Text,
    null: Text,
) -> Tensor:
    """Latents (B, C, n, n) from noise of that shape and `plan.steps` more of it, under `text` (B rows); `null` has one row.

    Raises InputError for several steps of a token that is an index.
    """
    if isinstance(network, Discrete) and plan.steps != 1:
        raise InputError(f"sampling.steps: {plan.steps}, but a token that is an index is drawn at once; expected 1")
    start = network.tokens(noise)
    order = _order(plan, network.tokens(next(fresh)))
    later = [network.tokens(next(fresh)) for _ in range(plan.steps - 1)]
    steps = Steps(plan, schedule_config)
    tokens, known = torch.zeros_like(start), torch.zeros(start.shape[:2], dtype=torch.bool, device=start.device)
    for first, last in pairwise(_ends(unmasking.counts(start.shape[1], plan.iterations))):
        places = order[:, first:last]
        scale = plan.scale_after(last, start.shape[1])
        conditions = _conditions(network, tokens, known, places, text, null, scale)
        own = at(start, places)
        if isinstance(network, Discrete):
            new = indices(_guided(network.logits(conditions), scale), own, plan.temperature)
        else:
            new = steps.drawn(_predictor(network, conditions, scale), own, [at(one, places) for one in later])
        tokens = tokens.scatter(1, places[..., None].expand_as(new), new)
        known = known.scatter(1, places, True)
    return network.latents(tokens)


def at(rows: Tensor, places: Tensor) -> Tensor:
    """Of rows (B, L, c) those at places (B, N); (B, N, c)."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))


def _order(plan: Plan, noise: Tensor) -> Tensor:
    """The places of tokens in the order in which they are drawn, (B, L): that of noise (B, L, c), or row by row."""
    if plan.order == "random":
        return noise[..., 0].argsort(1)
    return torch.arange(noise.shape[1], device=noise.device).expand(noise.shape[:2])


def _ends(counts: list[int]) -> list[int]:
    """How many tokens are known before the first iteration and after each."""
    return [sum(counts[:iteration]) for iteration in range(len(counts) + 1)]


def _conditions(
    network: Autoregressor, tokens: Tensor, known: Tensor, places: Tensor, text: Text, null: Text, scale: float
) -> Tensor:
    """Of the tokens at some places (B, N): (B, N, D), or (2 B, N, D), those without the text first, unless the scale is 1."""
    if scale == 1:
        return at(network.conditions(tokens, known, text), places)
    both = Text(*(torch.cat([n.expand(len(tokens), *n.shape[1:]), t]) for n, t in zip(null, text, strict=True)))
    conditions = network.conditions(torch.cat([tokens, tokens]), torch.cat([known, known]), both)
    return at(conditions, torch.cat([places, places]))


def _guided(found: Tensor, scale: float) -> Tensor:
    """What is predicted under conditions as `_conditions` makes them, float32, under guidance."""
    if scale == 1:
        return found.float()
    unconditional, conditional = found.float().chunk(2)
    guided: Tensor = unconditional + scale * (conditional - unconditional)
    return guided


def _predictor(network: Autoregressor, conditions: Tensor, scale: float) -> Predict:
    """The head's prediction under conditions as `_conditions` makes them, under guidance unless the scale is 1."""
    branches = 1 if scale == 1 else 2

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        rows = torch.cat([noisy] * branches)
        return _guided(network.denoised(rows, time.expand(len(rows)), conditions), scale)

    return predict


def indices(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Indices (B, N, 1), as numbers, drawn by logits (B, N, K) from Gaussian noise (B, N, 1); at temperature 0 the likeliest."""
    if temperature == 0:
        return logits.argmax(2, keepdim=True).float()
    share: Tensor = torch.special.ndtr(noise.double())
    below = (logits.double() / temperature).softmax(2).cumsum(2) < share
    return below.sum(2, keepdim=True).clamp(max=logits.shape[2] - 1).float()


class Steps:
    """DDPM's steps from one of the times of a plan to the next, and from the last to clean tokens."""

    def __init__(self, plan: Plan, schedule_config: Mapping[str, Any]):
        self.schedule: Any = DDPMScheduler.from_config(dict(schedule_config))
        self.times, self.temperature = plan.times(self.schedule.config["num_train_timesteps"]), plan.temperature

    def drawn(self, predict: Predict, noisy: Tensor, fresh: list[Tensor]) -> Tensor:
        """Clean tokens (B, N, c) from pure noise, and the noise of the steps between."""
        signals = [*(self.schedule.alphas_cumprod[self.times].double()), torch.ones((), dtype=torch.float64)]
        for index, time in enumerate(self.times):
            now, after = float(signals[index]), float(signals[index + 1])
            asked = torch.tensor(time, device=noisy.device)
            a, s = (torch.tensor(value**0.5, device=noisy.device).float() for value in (now, 1 - now))
            clean = clean_at(self.schedule, noisy, a, s, predict(noisy, asked))
            kept, added = (now / after) ** 0.5, 1 - now / after  # x_now = kept x_after + sqrt(added) noise
            noisy = (after**0.5 * added * clean + kept * (1 - after) * noisy) / (1 - now)
            if index < len(fresh):
                noisy = noisy + self.temperature * ((1 - after) * added / (1 - now)) ** 0.5 * fresh[index]
        return noisy
