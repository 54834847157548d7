"""Drawing token by token: MAR (Li et al. 2024, arXiv 2406.11838, section 4.3) and Fluid (Fan et al. 2024, arXiv 2410.13863).

All tokens are missing at first. An iteration makes the conditions of some of them from those that are known, draws these with the
head from noise, each by itself, and knows them from then on. The head draws by DDPM's steps (Ho et al. 2020, eq. 6 and 7, between
any two times), whose noise is multiplied by the temperature; with guidance both branches have the same noise.

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
from nas.networks.backbones import Autoregressor
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
    """Latents (B, C, n, n) from noise of that shape and `plan.steps` more of it, under `text` (B rows); `null` has one row."""
    start = network.tokens(noise)
    order = _order(plan, network.tokens(next(fresh)))
    later = [network.tokens(next(fresh)) for _ in range(plan.steps - 1)]
    steps = Steps(plan, schedule_config)
    tokens, known = torch.zeros_like(start), torch.zeros(start.shape[:2], dtype=torch.bool, device=start.device)
    for first, last in pairwise(_ends(unmasking.counts(start.shape[1], plan.iterations))):
        places = order[:, first:last]
        scale = plan.scale_after(last, start.shape[1])
        predict = _predictor(network, tokens, known, places, text, null, scale)
        new = steps.drawn(predict, at(start, places), [at(one, places) for one in later])
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


def _predictor(
    network: Autoregressor, tokens: Tensor, known: Tensor, places: Tensor, text: Text, null: Text, scale: float
) -> Predict:
    """The head's prediction for the tokens at some places, under guidance unless the scale is 1."""
    if scale == 1:
        conditions = at(network.conditions(tokens, known, text), places)
        return lambda noisy, time: network.denoised(noisy, time.expand(len(noisy)), conditions).float()
    both = Text(*(torch.cat([n.expand(len(tokens), *n.shape[1:]), t]) for n, t in zip(null, text, strict=True)))
    conditions = network.conditions(torch.cat([tokens, tokens]), torch.cat([known, known]), both)
    conditions = at(conditions, torch.cat([places, places]))

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        found = network.denoised(torch.cat([noisy, noisy]), time.expand(2 * len(noisy)), conditions)
        unconditional, conditional = found.float().chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return predict


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
