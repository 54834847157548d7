"""DeMe: a trained network decoupled into experts for ranges of the time, which are merged into one network again.

Ma et al. 2024 (arXiv 2410.06664). Gradients of far-apart times conflict, so that a converged network rests where they cancel,
not where each is zero. N copies of it learn apart, each mostly in its own range of the time:

    L_i = E |f_i(x_t, t, c) - target|^2 + consistency |f_i(x_t, t, c) - f(x_t, t, c)|^2,

f the frozen start. The times of a batch are uniform over all with the probability p, else over range i, and antithetic: half of
them are drawn, the others mirror them inside the same interval. The network that is drawn with has the weights
theta + sum_i w_i (theta_i - theta), at no further cost of a picture.

The paper searches w by a metric of drawn pictures; that is dear, and would tune to what is reported. Here w has the least mean,
over ranges, of the merged network's denoising loss over the start's, on a fixed table of training latents, captions, times and
noise, by `nas.search.coordinates` from w_i = 1/N in [-0.2, 1.2]^N: some forty losses, so that Optuna's samplers, which begin at
random, would hardly be past their start. The numbers w are logged as `coefficient_0` to N - 1, from the least noise on.

Where we differ:
- The experts learn side by side, from the same pictures: an update is one of each, with its own noise, optimizer and moving
  average, and `training.images_seen` are pictures that every expert sees. So no expert waits for another where a rung ends
  early, and each is as long trained whatever the training's length. The first is the generator, the others are `critics`.
- Left out: the 1x1 convolutions that the paper puts after every block and trains with the rest, initialised to the identity.
  They change the architecture that is costed and exported, and without experts the paper found that they do not help.
- Losses are of the network's own prediction, v or the noise.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from nas.diffusion import schedule
from nas.diffusion.plan import ALONG_A_PATH, Plan
from nas.diffusion.schedule import noise_schedule
from nas.errors import InputError
from nas.networks import experts, lora
from nas.networks.conditioning import Text
from nas.objectives import Critic, Distillation, LatentBatch
from nas.search import coordinates

__all__ = ["Objective", "Settings", "noise_schedule"]

LEAST, MOST = -0.2, 1.2  # of a searched coefficient
TIMES = 1000  # of the schedule
ROWS = 64  # of the table that are asked about at a time


class Settings(schedule.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    experts: int = Field(4, ge=1, le=64)
    """N: copies of the start, one for each range of the time. An update costs N times as much as one of theirs."""
    boundaries: tuple[int, ...] = ()
    """Times at which the next expert's range begins, N - 1 of them, ascending between 1 and 999. Empty: equal ranges."""
    probability: float = Field(0.3, ge=0, le=1)
    """p, that a batch of an expert has times of the whole schedule. 1: all experts are fine-tuned alike."""
    consistency: float = Field(1.0, ge=0, le=1000)
    """Weight of the squared difference from the frozen start's prediction. 0: the start is not asked."""
    merge: Literal["searched", "average", "none"] = "searched"
    """One network with searched coefficients, or with 1/N each; or the experts as they are, asked by time, which a run draws and
    scores as any network but which cannot be exported."""
    table: int = Field(128, ge=1, le=1_000_000)
    """Training pictures, with a time and noise each, on which coefficients are compared; at least N."""
    evaluations: int = Field(40, ge=1, le=10_000)
    """Coefficients that are compared, at most."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        inner = self.boundaries
        if inner and len(inner) != self.experts - 1:
            raise ValueError(
                f"boundaries: {len(inner)} of them, expected {self.experts - 1} between {self.experts} experts"
            )
        if any(later <= earlier for earlier, later in pairwise((0, *inner, TIMES))):
            raise ValueError(f"boundaries: {list(inner)}, expected ascending times between 1 and {TIMES - 1}")
        if self.table < self.experts:
            raise ValueError(f"table: {self.table}, expected at least one picture for each of {self.experts} experts")
        return self

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First time of each expert's range, and the one after its last."""
        even = [TIMES * index // self.experts for index in range(1, self.experts)]
        return list(pairwise((0, *(self.boundaries or even), TIMES)))


def check_plan(settings: Settings, plan: Plan) -> None:
    """Raises InputError for a plan that asks for experts which there are not, or keeps units of experts."""
    if settings.merge != "none":
        if plan.experts is not None:
            raise InputError(
                f"sampling.experts: objective.merge is {settings.merge}, which leaves one network; expected merge none"
            )
        return
    if plan.cache is not None:
        raise InputError("sampling.cache: what one expert puts out cannot stand for another's; expected none")
    if max(plan.experts or (0,)) >= settings.experts:
        raise InputError(
            f"sampling.experts: expert {max(plan.experts or ())}, expected 0 to {settings.experts - 1} of "
            f"{settings.experts} experts"
        )


class Objective(Distillation):
    """The experts' losses, and the network that they become. Raises InputError without a teacher, from which they start."""

    solvers: tuple[str, ...] = (*ALONG_A_PATH, "one_step")
    guided_drawing = True
    finishes = True

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings
        for index in range(1, settings.experts):
            self.add_module(f"expert_{index}", copy.deepcopy(generator))

    @property
    def critics(self) -> dict[str, Critic]:
        """The experts after the first, which is the generator."""
        later = {f"expert_{index}": index for index in range(1, self.settings.experts)}
        return {
            name: Critic(self.get_submodule(name), partial(self._loss, self.get_submodule(name), index), averaged=True)
            for name, index in later.items()
        }

    @property
    def passes(self) -> float:
        """Of every expert: its 3, and the start's forward pass."""
        return self.settings.experts * (4.0 if self.settings.consistency else 3.0)

    @property
    def offline_passes(self) -> int:
        """Of the search for coefficients, at most: a forward pass of the table for each, and for the start."""
        return self.settings.table * (self.settings.evaluations + 1) if self.settings.merge == "searched" else 0

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L_0: the mean over the batch and all elements."""
        return self._loss(self.generator, 0, batch)

    def finished(self, lessons: Callable[[int], LatentBatch]) -> nn.Module:
        """The merged network, or the `Experts` where they are not merged; adapters are in its weights."""
        networks = [self._whole(one) for one in (self.generator, *(critic.network for critic in self.critics.values()))]
        if self.settings.merge == "none":
            copies = copy.deepcopy(networks)
            inner = [low for low, _ in self.settings.ranges[1:]]
            return experts.Experts(copies, inner).eval().requires_grad_(False)
        states = [network.state_dict() for network in networks]
        weights: Sequence[float] = [1 / len(networks)] * len(networks)
        if self.settings.merge == "searched":
            weights = self._searched(states, lessons(self.settings.table))
        self.logged |= {f"coefficient_{index}": torch.tensor(weight) for index, weight in enumerate(weights)}
        network = copy.deepcopy(self.teacher).eval()
        network.load_state_dict(experts.merged(self.teacher.state_dict(), states, weights))
        return network

    def _whole(self, network: nn.Module) -> nn.Module:
        """An expert with the start's names of its weights: its adapters, which do not add up by themselves, added to them."""
        return network if network.state_dict().keys() == self.teacher.state_dict().keys() else lora.merged(network)

    def _loss(self, network: nn.Module, index: int, batch: LatentBatch) -> Tensor:
        """L_i of the batch."""
        time = self._times(index, batch)
        noisy, target = schedule.corrupted(self.schedule, batch.latents, time, batch.noise())
        prediction = network(noisy, time, batch.text).float()
        loss = F.mse_loss(prediction, target)
        if not self.settings.consistency:
            return loss
        with torch.no_grad():
            frozen = self.teacher(noisy, time, batch.text).float()
        return loss + self.settings.consistency * F.mse_loss(prediction, frozen)

    def _times(self, index: int, batch: LatentBatch) -> Tensor:
        """Antithetic times (B,) of range i or of all, as one draw for the batch says."""
        low, high = self.settings.ranges[index]
        if float(torch.rand((), generator=batch.generator)) < self.settings.probability:
            low, high = 0, TIMES
        size = len(batch.latents)
        drawn = torch.randint(low, high, (-(-size // 2),), generator=batch.generator)
        return torch.cat([drawn, low + high - 1 - drawn])[:size].to(batch.latents.device)

    @torch.no_grad()
    def _searched(self, states: Sequence[experts.State], batch: LatentBatch) -> Sequence[float]:
        """The coefficients, and their score logged."""
        start, count = self.teacher.state_dict(), self.settings.experts
        losses = self._table(batch.to(next(self.teacher.parameters()).device))
        before = losses(start)

        def score(weights: coordinates.Point) -> float:
            return float((losses(experts.merged(start, states, weights)) / before).mean())

        found, best = coordinates.minimised(score, (1 / count,) * count, LEAST, MOST, self.settings.evaluations)
        self.logged["merged_loss_ratio"] = torch.tensor(best)
        return found

    def _table(self, batch: LatentBatch) -> Callable[[experts.State], Tensor]:
        """What gives the denoising loss (N,) in each range of the network with some weights, on the batch with fixed times,
        evenly spread over their ranges, and noise."""
        shares = torch.arange(len(batch.latents)).tensor_split(self.settings.experts)
        spread = [_spread(low, high, len(rows)) for (low, high), rows in zip(self.settings.ranges, shares, strict=True)]
        time = torch.cat(spread).to(batch.latents.device)
        noisy, target = schedule.corrupted(self.schedule, batch.latents, time, batch.noise())

        def losses(weights: experts.State) -> Tensor:
            errors = []
            for first in range(0, len(time), ROWS):
                rows = slice(first, first + ROWS)
                text = Text(batch.text.tokens[rows], batch.text.pooled[rows])
                prediction = functional_call(self.teacher, dict(weights), (noisy[rows], time[rows], text))
                errors.append((prediction.float() - target[rows]).square().flatten(1).mean(1))
            each = torch.cat(errors)
            return torch.stack([each[rows].mean() for rows in shares])

        return losses


def _spread(low: int, high: int, count: int) -> Tensor:
    """Times (count,), the middles of as many equal parts of low .. high - 1."""
    return (low + (high - low) * (torch.arange(count) + 0.5) / count).long()
