"""From noise to latents. How is data: a `Plan` says which solver, how many steps and how much guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.diffusion.caches.caching import Keeps, Steps, keeping
from nas.diffusion.editing import Edit, Predict
from nas.diffusion.guidance import Denoiser, guided
from nas.diffusion.plan import AUTOREGRESSIVE, ONE_STEP, Plan
from nas.diffusion.schedule import clean, velocity
from nas.diffusion.tokens import autoregression
from nas.errors import InputError
from nas.networks.backbones import Autoregressor, Discrete
from nas.networks.conditioning import Text
from nas.networks.experts import Experts
from nas.seeds import Noise


@torch.no_grad()
def sample(
    network: Denoiser,
    plan: Plan,
    schedule_config: Mapping[str, Any],
    noise: Tensor,
    text: Text,
    null: Text,
    module: nn.Module | Keeps | None = None,
    edit: Edit | None = None,
) -> Tensor:
    """Latents (B, C, H, W) drawn from `noise` of the same shape under `text` (B rows); `null` has one row.

    Deterministic: the noise is the only randomness, and rows are independent. A plan with a cache keeps units of `module`, the
    backbone behind `network` if that is not one itself, or what keeps them by itself. With an `edit` the drawing starts from its
    picture. Raises InputError where there is none to keep, or the cache is another network's, or the network cannot draw token by
    token and the plan asks for that, or it can, and there is an edit.
    """
    if plan.solver == AUTOREGRESSIVE:
        if edit is not None:
            raise InputError(
                f"--edit: solver {AUTOREGRESSIVE} starts from no picture; expected a network that denoises"
            )
        fresh, able = fresh_noise(noise, plan.steps), _able(module or network)
        return autoregression.drawn(able, plan, schedule_config, noise, fresh, text, null)
    if isinstance(module or network, Discrete):
        raise InputError(
            f"sampling.solver: {plan.solver} denoises numbers, and this network draws indices; expected {AUTOREGRESSIVE}"
        )
    predict = _guided(network, plan, text, null, len(noise))
    asked, start = times(plan, schedule_config["num_train_timesteps"]), noise
    if edit is not None:
        asked, start, predict = _edited(edit, asked, predict, schedule_config, noise)
    with _keeping(module or network, plan, noise, text) as steps, _told(module or network, plan, steps):
        steps.now = plan.evaluations - plan.evaluations_of(len(asked))
        fresh = fresh_noise(start, len(asked) - 1)
        return drawn(_counted(predict, steps), plan.solver, asked, schedule_config, start, fresh)


def _edited(
    edit: Edit, asked: Sequence[int], predict: Predict, schedule_config: Mapping[str, Any], noise: Tensor
) -> tuple[list[int], Tensor, Predict]:
    """The times that are left, what the first starts from, and the prediction."""
    from diffusers import DDPMScheduler

    schedule: Any = DDPMScheduler.from_config(dict(schedule_config))
    taken = edit.taken(asked)
    start = noise if len(taken) == len(asked) else edit.start(schedule, noise, torch.tensor(taken[0]).to(noise.device))
    return taken, start, edit.keeping(predict, schedule)


def _able(network: Denoiser | nn.Module | Keeps) -> Autoregressor:
    """The network, if it draws token by token."""
    if not isinstance(network, Autoregressor):
        raise InputError(
            f"sampling.solver: {AUTOREGRESSIVE} draws token by token, which this network cannot, and no network can outside "
            "PyTorch; expected another solver, or a family that can on the runtime pytorch"
        )
    return network


def drawn(
    predict: Predict,
    name: str,
    asked: Sequence[int],
    schedule_config: Mapping[str, Any],
    noise: Tensor,
    fresh: Iterator[Tensor],
) -> Tensor:
    """Latents by a solver, in steps from the times asked, the first of which has latents as noisy as `noise`; `fresh` is what
    `renoise` adds between them."""
    if name in ONE_STEP:
        return _renoise(predict, asked, schedule_config, noise, fresh)
    if name == "heun":
        return _heun(predict, asked, schedule_config, noise)
    solver = _solver(name, schedule_config)
    _start(solver, asked, noise.device)
    latents: Tensor = noise * solver.init_noise_sigma
    for step in solver.timesteps:
        prediction = predict(solver.scale_model_input(latents, step), step)
        latents = solver.step(prediction, step, latents).prev_sample
    return latents


@contextmanager
def _keeping(network: Denoiser | nn.Module | Keeps, plan: Plan, noise: Tensor, text: Text) -> Iterator[Steps]:
    """The counter of evaluations, which the network's units listen to where the plan has a cache."""
    if plan.cache is None:
        yield Steps()
        return
    if isinstance(network, Keeps):
        with network.keeping(plan) as steps:
            yield steps
        return
    if not isinstance(network, nn.Module):
        raise InputError(
            "sampling.cache: these graphs compute every unit; expected the runtime pytorch, no cache, or an export by this plan"
        )
    if isinstance(network, Experts):
        raise InputError("sampling.cache: what one expert puts out cannot stand for another's; expected none")
    backbone: Any = network
    units = backbone.config.units(noise.shape[-1], text.tokens.shape[1])
    with keeping(network, units, plan.cache.modes(plan.evaluations, units)) as steps:
        yield steps


@contextmanager
def _told(network: Denoiser | nn.Module | Keeps, plan: Plan, steps: Steps) -> Iterator[None]:
    """Where the plan says which expert draws each evaluation, it does."""
    if (experts := plan.experts) is None:
        yield
        return
    if not isinstance(network, Experts):
        raise InputError(
            "sampling.experts: this is one network; expected none, or experts by time (objective deme, merge none)"
        )
    if max(experts) >= len(network.experts):
        raise InputError(
            f"sampling.experts: expert {max(experts)}, expected 0 to {len(network.experts) - 1} of {len(network.experts)} experts"
        )
    with network.told(lambda: experts[steps.now]):
        yield


def _counted(predict: Predict, steps: Steps) -> Predict:
    """The prediction, after which the drawing has come one evaluation further."""

    def counted(latents: Tensor, time: Tensor) -> Tensor:
        found = predict(latents, time)
        steps.now += 1
        return found

    return counted


def _guided(network: Denoiser, plan: Plan, text: Text, null: Text, size: int) -> Predict:
    """The network's prediction under the text, guided away from `null` where and when the plan says so."""
    return lambda latents, time: guided(network, latents, time.expand(size), text, null, plan.scale_at(int(time)))


def _heun(predict: Predict, asked: Sequence[int], schedule_config: Mapping[str, Any], noise: Tensor) -> Tensor:
    """Heun's method along the angle phi with a_t = cos(phi), s_t = sin(phi), in which the probability flow is dx/dphi = v.

    v is finite where a_t is 0, so that a last time of pure noise needs no number in place of zero. A DDIM step over d turns
    (x, v) by the angle d. The corrected step x + tan(d/2) (v + v') is the trapezoidal rule, fitted to be exact where v turns
    so, as of a point; tan(d/2) = d/2 + O(d^3) keeps it of second order. The last step, to the clean latents, is DDIM's.
    """
    from diffusers import DDPMScheduler

    schedule: Any = DDPMScheduler.from_config(dict(schedule_config))
    angles = [math.acos(math.sqrt(kept)) for kept in schedule.alphas_cumprod.tolist()]
    latents = noise

    def slope(latents: Tensor, asked: int) -> Tensor:
        time = torch.tensor(asked, device=noise.device)
        return velocity(schedule, latents, time.expand(len(noise)), predict(latents, time))

    for now, after in pairwise(asked):
        turn, first = angles[after] - angles[now], slope(latents, now)
        second = slope(math.cos(turn) * latents + math.sin(turn) * first, after)
        latents = latents + math.tan(turn / 2) * (first + second)
    last = angles[asked[-1]]
    return math.cos(last) * latents - math.sin(last) * slope(latents, asked[-1])


def _renoise(
    predict: Predict,
    asked: Sequence[int],
    schedule_config: Mapping[str, Any],
    noise: Tensor,
    fresh: Iterator[Tensor],
) -> Tensor:
    """UFOGen's sampler: from t_i the clean latents, noised afresh to t_(i-1), i = k .. 1."""
    from diffusers import DDPMScheduler

    schedule: Any = DDPMScheduler.from_config(dict(schedule_config))
    latents = noise
    for index, now in enumerate(asked):
        time = torch.tensor(now, device=noise.device)
        if index:
            latents = schedule.add_noise(latents, next(fresh), time.expand(len(noise)))
        latents = clean(schedule, latents, time.expand(len(noise)), predict(latents, time))
    return latents


def fresh_noise(noise: Tensor, count: int) -> Iterator[Tensor]:
    """Noise that is independent of `noise`, yet a function of it, row by row: its bytes are the seed."""
    rows = [row.tobytes() for row in noise.cpu().numpy()] if count else []
    streams = [Noise(np.frombuffer(blake2b(row, digest_size=16).digest(), "<u4").tolist()) for row in rows]
    for _ in range(count):
        drawn = [torch.from_numpy(stream.draw(noise.shape[1:])) for stream in streams]
        yield torch.stack(drawn).to(noise.device)


def times(plan: Plan, count: int) -> list[int]:
    """The training times, of `count`, that the steps of a plan start from, the noisiest first."""
    return plan.times(count)


def alphas_cumprod(plan: Plan, schedule_config: Mapping[str, Any]) -> list[float]:
    """a_t^2 of x_t = a_t x_0 + s_t e at every training time, as the plan's solver has them: where the last time is pure
    noise, those that divide by a_t take a small number for zero.
    """
    from diffusers import DDPMScheduler

    plain = plan.solver in (*ONE_STEP, "heun")
    made: Any = DDPMScheduler.from_config(dict(schedule_config)) if plain else _solver(plan.solver, schedule_config)
    return [float(f"{value:.9g}") for value in made.alphas_cumprod.tolist()]  # float32, to the digit


def _solver(name: str, schedule_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a plan's solver.

    DDIM is DPM-Solver++ of first order (Lu et al. 2022, section 4). `DDIMScheduler` equals it where the number of steps
    divides 1,000; elsewhere it steps to times it never asks the network about, and may end short of the clean latents.
    """
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    config = {key: value for key, value in schedule_config.items() if not key.startswith("_")}
    if name == "unipc":
        return UniPCMultistepScheduler.from_config(config, solver_order=2, solver_type="bh2", lower_order_final=True)
    return DPMSolverMultistepScheduler.from_config(
        config,
        algorithm_type="dpmsolver++",
        solver_order=1 if name == "ddim" else 2,
        lower_order_final=True,
    )


def _start(solver: Any, asked: Sequence[int], device: torch.device) -> None:
    """Set a diffusers scheduler to the times. `UniPCMultistepScheduler` spaces only by itself, and is put right after it."""
    from diffusers import UniPCMultistepScheduler

    if not isinstance(solver, UniPCMultistepScheduler):
        solver.set_timesteps(timesteps=list(asked), device=device)
        return
    solver.set_timesteps(len(asked), device=device)
    kept = solver.alphas_cumprod[list(asked)]
    solver.timesteps = torch.tensor(asked, device=device)
    solver.sigmas = torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1)])
