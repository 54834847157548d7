"""A plan unrolled: the latents of every evaluation as a sum of noise and of what the network predicted before.

All solvers of denoisers here are linear in the latents and in the predictions, with factors that the times alone decide. A
drawing is then a table of numbers, and a program that has it needs no solver. The table is the solver's own: it draws once in a
space that has an axis for the noise, for every fresh noise and for every prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.diffusion import solvers
from nas.diffusion.plan import AUTOREGRESSIVE, Plan
from nas.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """One of the network, at a training time. Its latents are the sum, by `weights`, of the noise, of all fresh noise, and of the
    predictions of the evaluations before it, in that order."""

    time: int
    guided: bool
    """Whether it is by the plan, unless the guidance scale is 1."""
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Unrolled:
    """All evaluations of a plan in turn, and the weights of the clean latents."""

    evaluations: Sequence[Evaluation]
    last: tuple[float, ...]
    fresh_noise: int
    """How many there are: arrays that follow from the noise (`nas.diffusion.solvers.fresh_noise`)."""


def unrolled(plan: Plan, schedule_config: Mapping[str, Any]) -> Unrolled:
    """The plan's table for a noise schedule. Raises InputError for a plan that draws token by token."""
    if plan.solver == AUTOREGRESSIVE:
        raise InputError(f"sampling.solver: {AUTOREGRESSIVE} is not linear; expected another solver")
    fresh = plan.steps - 1 if plan.solver == "renoise" else 0
    low, high = plan.guidance_interval
    axes = torch.eye(1 + fresh + plan.evaluations)[:, None, :, None, None]  # each a batch of one, (1, axes, 1, 1)
    found: list[Evaluation] = []

    def predict(latents: Tensor, time: Tensor) -> Tensor:
        known = 1 + fresh + len(found)
        found.append(Evaluation(int(time), low <= int(time) <= high, _weights(latents, known)))
        return axes[known]

    asked = plan.times(schedule_config["num_train_timesteps"])
    last = solvers.drawn(predict, plan.solver, asked, schedule_config, axes[0], iter(axes[1 : 1 + fresh]))
    return Unrolled(found, _weights(last, len(axes)), fresh)


def _weights(latents: Tensor, known: int) -> tuple[float, ...]:
    """The first so many coordinates, float32 to the digit."""
    return tuple(float(f"{value:.9g}") for value in latents.flatten()[:known].tolist())
