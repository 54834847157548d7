"""From noise to latents. How is data: a `Plan` says which solver, how many steps and how much guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.diffusion.caching import Steps, keeping
from nas.diffusion.guidance import Denoiser, guided
from nas.diffusion.plan import ONE_STEP, Plan
from nas.diffusion.schedule import clean
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.seeds import Noise


@torch.no_grad()
def sample(
    network: Denoiser,
    plan: Plan,
    schedule_config: Mapping[str, Any],
    noise: Tensor,
    text: Text,
    null: Text,
    module: nn.Module | None = None,
) -> Tensor:
    """Latents (B, C, H, W) drawn from `noise` of the same shape under `text` (B rows); `null` has one row.

    Deterministic: the noise is the only randomness, and rows are independent. A plan with a cache keeps units of `module`, the
    backbone behind `network` if that is not one itself. Raises InputError where there is none, or the cache is another network's.
    """
    predict = _guided(network, plan, text, null, len(noise))
    with _keeping(module or network, plan, noise, text) as steps:
        if plan.solver in ONE_STEP:
            return _renoise(predict, plan, schedule_config, noise, steps)
        solver = _solver(plan, schedule_config)
        solver.set_timesteps(timesteps=times(plan, schedule_config["num_train_timesteps"]), device=noise.device)
        latents: Tensor = noise * solver.init_noise_sigma
        for steps.now, step in enumerate(solver.timesteps):
            prediction = predict(solver.scale_model_input(latents, step), step)
            latents = solver.step(prediction, step, latents).prev_sample
        return latents


@contextmanager
def _keeping(network: Denoiser | nn.Module, plan: Plan, noise: Tensor, text: Text) -> Iterator[Steps]:
    """The counter of steps, which the network's units listen to where the plan has a cache."""
    if plan.cache is None:
        yield Steps()
        return
    if not isinstance(network, nn.Module):
        raise InputError(
            "sampling.cache: only PyTorch keeps units of a network; expected the runtime pytorch, or no cache"
        )
    backbone: Any = network
    units = backbone.config.units(noise.shape[-1], text.tokens.shape[1])
    with keeping(network, units, plan.cache.modes(plan.steps, units)) as steps:
        yield steps


Predict = Callable[[Tensor, Tensor], Tensor]  # latents (B, C, H, W), one time () -> prediction (B, C, H, W), float32


def _guided(network: Denoiser, plan: Plan, text: Text, null: Text, size: int) -> Predict:
    """The network's prediction under the text, guided away from `null` where the plan says so."""
    return lambda latents, time: guided(network, latents, time.expand(size), text, null, plan.guidance)


def _renoise(predict: Predict, plan: Plan, schedule_config: Mapping[str, Any], noise: Tensor, steps: Steps) -> Tensor:
    """UFOGen's sampler: from t_i the clean latents, noised afresh to t_(i-1), i = k .. 1."""
    from diffusers import DDPMScheduler

    schedule: Any = DDPMScheduler.from_config(dict(schedule_config))
    fresh = _fresh_noise(noise, plan.steps - 1)
    latents = noise
    for index, asked in enumerate(times(plan, schedule.config["num_train_timesteps"])):
        time, steps.now = torch.tensor(asked, device=noise.device), index
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
