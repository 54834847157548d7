"""From noise to latents. How is data: a `Plan` says which solver, how many steps and how much guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.seeds import Noise

MOST_STEPS, MOST_GUIDANCE = 1000, 1000  # bounds far beyond use: a guidance of 1e30 draws no numbers at all
ONE_STEP = ("one_step", "renoise")  # solvers of generators that predict clean latents from noise
Denoiser = Callable[[Tensor, Tensor, Text], Tensor]  # latents (B, C, H, W), times (B,), text -> prediction


class Plan(BaseModel):
    """One way to draw from a denoiser. Its cost: network MACs x steps x guidance branches."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    solver: Literal["ddim", "dpm++", "one_step", "renoise"] = "ddim"
    """DDIM (Song et al. 2021) or second-order multistep DPM-Solver++ (Lu et al. 2022). For one-step generators: `one_step`,
    the clean latents predicted from pure noise, or `renoise`, which noises them again to a lower time, predicts again, and
    so on (UFOGen, Xu et al. 2023)."""
    steps: int = Field(25, ge=1, le=MOST_STEPS)
    """Network evaluations per branch. One step takes the clean latents predicted from pure noise. `one_step` has 1."""
    guidance: float = Field(3.0, ge=0, le=MOST_GUIDANCE)
    """Classifier-free guidance scale w in null + w (cond - null); 1 evaluates only the conditional branch, and is what
    one-step generators are made for: with `one_step` and `renoise` it is 1 unless given."""

    @model_validator(mode="before")
    @classmethod
    def _one_step_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("solver") not in ONE_STEP:
            return given
        return {"guidance": 1.0} | ({"steps": 1} if given["solver"] == "one_step" else {}) | given

    @model_validator(mode="after")
    def _one_step_is_one(self) -> Plan:
        if self.solver == "one_step" and self.steps != 1:
            raise ValueError(f"steps: solver one_step has 1 step, got {self.steps}; several are solver renoise")
        return self

    def changed(self, steps: int | None = None, guidance: float | None = None) -> Plan:
        """The plan with other steps or guidance; a one-step plan that is given several steps renoises between them.

        Raises InputError for what a plan cannot have.
        """
        given = {"steps": steps, "guidance": guidance}
        values = self.model_dump() | {key: value for key, value in given.items() if value is not None}
        if self.solver == "one_step" and values["steps"] != 1:
            values["solver"] = "renoise"
        try:
            return Plan(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None

    @property
    def branches(self) -> int:
        return 1 if self.guidance == 1 else 2

    @property
    def calls(self) -> int:
        """Of the network, for one image."""
        return self.steps * self.branches

    def macs(self, network_macs: int) -> int:
        """Multiply-adds of the denoiser for one image."""
        return network_macs * self.calls


@torch.no_grad()
def sample(
    network: Denoiser, plan: Plan, schedule_config: Mapping[str, Any], noise: Tensor, text: Text, null: Text
) -> Tensor:
    """Latents (B, C, H, W) drawn from `noise` of the same shape under `text` (B rows); `null` has one row.

    Deterministic: the noise is the only randomness, and rows are independent.
    """
    predict = _guided(network, plan, text, null, len(noise))
    if plan.solver in ONE_STEP:
        return _renoise(predict, plan, schedule_config, noise)
    solver = _solver(plan, schedule_config)
    solver.set_timesteps(timesteps=times(plan, schedule_config["num_train_timesteps"]), device=noise.device)
    latents: Tensor = noise * solver.init_noise_sigma
    for step in solver.timesteps:
        prediction = predict(solver.scale_model_input(latents, step), step)
        latents = solver.step(prediction, step, latents).prev_sample
    return latents


Predict = Callable[[Tensor, Tensor], Tensor]  # latents (B, C, H, W), one time () -> prediction (B, C, H, W), float32


def _guided(network: Denoiser, plan: Plan, text: Text, null: Text, size: int) -> Predict:
    """The network's prediction under the text, guided away from `null` where the plan says so."""
    if plan.branches == 1:
        return lambda latents, time: network(latents, time.expand(size), text).float()
    both = Text(*(torch.cat([n.expand(size, *n.shape[1:]), t]) for n, t in zip(null, text, strict=True)))

    def predict(latents: Tensor, time: Tensor) -> Tensor:
        doubled = torch.cat([latents, latents])
        unconditional, conditional = network(doubled, time.expand(len(doubled)), both).float().chunk(2)
        guided: Tensor = unconditional + plan.guidance * (conditional - unconditional)
        return guided

    return predict


def _renoise(predict: Predict, plan: Plan, schedule_config: Mapping[str, Any], noise: Tensor) -> Tensor:
    """UFOGen's sampler: from t_i the clean latents, noised afresh to t_(i-1), i = k .. 1."""
    from diffusers import DDPMScheduler

    from nas.objectives.denoising import clean

    schedule: Any = DDPMScheduler.from_config(dict(schedule_config))
    fresh = _fresh_noise(noise, plan.steps - 1)
    latents = noise
    for index, asked in enumerate(times(plan, schedule.config["num_train_timesteps"])):
        time = torch.tensor(asked, device=noise.device)
        if index:
            latents = schedule.add_noise(latents, next(fresh), time.expand(len(noise)))
        latents = clean(schedule, latents, time.expand(len(noise)), predict(latents, time))
    return latents


def _fresh_noise(noise: Tensor, count: int) -> Iterator[Tensor]:
    """Noise that is independent of `noise`, yet a function of it, row by row: its bytes are the seed."""
    rows = [row.tobytes() for row in noise.cpu().numpy()] if count else []
    streams = [Noise(np.frombuffer(blake2b(row, digest_size=16).digest(), "<u4").tolist()) for row in rows]
    for _ in range(count):
        drawn = [torch.from_numpy(stream.draw(noise.shape[1:])) for stream in streams]
        yield torch.stack(drawn).to(noise.device)


def times(plan: Plan, count: int) -> list[int]:
    """The training times, of `count`, that a plan asks about: from the last one down, evenly (Lin et al. 2024, table 2:
    trailing; for one-step generators UFOGen's floor(i / k (count - 1)), i = k .. 1).
    """
    if plan.solver in ONE_STEP:
        return [index * (count - 1) // plan.steps for index in range(plan.steps, 0, -1)]
    spaced = np.arange(count, 0, -count / plan.steps).round()[: plan.steps]  # rounding errors may add one below zero
    return [int(time) - 1 for time in spaced]


def alphas_cumprod(plan: Plan, schedule_config: Mapping[str, Any]) -> list[float]:
    """a_t^2 of x_t = a_t x_0 + s_t e at every training time, as the plan's solver has them: where the last time is pure
    noise, those that divide by a_t take a small number for zero.
    """
    from diffusers import DDPMScheduler

    one_step = plan.solver in ONE_STEP
    made: Any = DDPMScheduler.from_config(dict(schedule_config)) if one_step else _solver(plan, schedule_config)
    return [float(f"{value:.9g}") for value in made.alphas_cumprod.tolist()]  # float32, to the digit


def _solver(plan: Plan, schedule_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a plan.

    DDIM is DPM-Solver++ of first order (Lu et al. 2022, section 4). `DDIMScheduler` equals it where the number of steps
    divides 1,000; elsewhere it steps to times it never asks the network about, and may end short of the clean latents.
    """
    from diffusers import DPMSolverMultistepScheduler

    config = {key: value for key, value in schedule_config.items() if not key.startswith("_")}
    return DPMSolverMultistepScheduler.from_config(
        config,
        algorithm_type="dpmsolver++",
        solver_order=1 if plan.solver == "ddim" else 2,
        lower_order_final=True,
    )
