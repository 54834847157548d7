"""Straight-line flows, read by a denoiser: no new kind of network, and no new training times.

A rectified flow (Liu et al. 2022, arXiv 2209.03003; InstaFlow, Liu et al. 2023, arXiv 2309.06380) moves noise to data along
X_tau = tau data + (1 - tau) noise, from tau = 0 to 1, by a velocity that is data - noise on a straight path. Divided by
c = sqrt(tau^2 + (1 - tau)^2), X_tau is the noisy latents a x_0 + s e of a variance-preserving denoiser with a = tau / c and
s = (1 - tau) / c. So the network is asked about X_tau / c at the time, between two training times, whose a_t that is, and the
velocity is

    (x^ - X_tau) / (1 - tau) = x^ - e^

with the clean latents x^ and the noise e^ that it predicts. Before the first tau that has a training time (0.064 with Stable
Diffusion's schedule) the network is asked at the last one, and x^ is formed with that time's a and s: at tau = 0 it is what
`one_step` draws, and one Euler step over the whole way is that drawing. After the last such tau, 0.972, it is asked at time 0.

A DDIM step (Song et al. 2020, arXiv 2010.02502, eq. 12) keeps x^ and e^ and mixes them to the next noise level, which in these
coordinates is an Euler step between the same two levels. The two drawings differ in the levels they visit, and on a straight
path it does not matter which: a rectified flow is drawn with a `ddim` plan without guidance in several steps, and with
`one_step` in one.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from nas.diffusion.guidance import Denoiser
from nas.diffusion.schedule import clean_at
from nas.networks.conditioning import Text


def position(data: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
    """X_tau (B, C, H, W) between noise and data, at tau (B,); at 0 and 1 an end itself."""
    share = _column(tau)
    return share * data + (1 - share) * noise


def time_of(schedule: DDPMScheduler, tau: Tensor) -> Tensor:
    """The training times (B,), fractions among them, whose a_t is tau / c, a_t being linear between two; (B,) float32.

    Where no time has that a_t, the first or the last one.
    """
    signal = schedule.alphas_cumprod.to(tau.device).sqrt()  # falls with the time
    a = (tau / _length(tau)).clamp(signal[-1], signal[0])
    later = torch.searchsorted(-signal, -a.detach()).clamp(1, len(signal) - 1)
    time: Tensor = later - (a - signal[later]) / (signal[later - 1] - signal[later])
    return time


def clean(network: Denoiser, schedule: DDPMScheduler, where: Tensor, tau: Tensor, text: Text) -> Tensor:
    """The clean latents x^ (B, C, H, W) that a network predicts from X_tau, `where`, at tau (B,); float32."""
    noisy = where / _column(_length(tau))
    prediction = network(noisy, time_of(schedule, tau), text)
    return clean_at(schedule, noisy, *_signal_and_noise(schedule, tau), prediction)


def velocity(network: Denoiser, schedule: DDPMScheduler, where: Tensor, tau: Tensor, text: Text) -> Tensor:
    """The velocity (B, C, H, W) at X_tau, `where`, for tau (B,) below 1; float32.

    An error of a predicted v is one of the velocity divided by c, which is 0.7 to 1, and an error of a predicted e one divided
    by tau: the 1 / (1 - tau) multiplies an x^ whose error has the factor 1 - tau, and only float32's rounding is left of it.
    """
    return (clean(network, schedule, where, tau, text) - where) / (1 - _column(tau))


def euler(network: Denoiser, schedule: DDPMScheduler, noise: Tensor, text: Text, steps: int) -> Tensor:
    """Latents (B, C, H, W) that the flow moves the noise to, in equal steps."""
    where = noise
    for step in range(steps):
        where = where + velocity(network, schedule, where, _everyone(step / steps, noise), text) / steps
    return where


@torch.no_grad()
def straightness(network: Denoiser, schedule: DDPMScheduler, noise: Tensor, text: Text, steps: int) -> Tensor:
    """The mean over rows of the integral over tau of |X_1 - X_0 - velocity|^2 along the flow's own paths; 0 for straight ones.

    arXiv 2209.03003, eq. 5, with Euler's steps.
    """
    where, seen = noise, []
    for step in range(steps):
        seen.append(velocity(network, schedule, where, _everyone(step / steps, noise), text))
        where = where + seen[-1] / steps
    return torch.stack([(where - noise - one).square().flatten(1).sum(1).mean() for one in seen]).mean()


def _signal_and_noise(schedule: DDPMScheduler, tau: Tensor) -> tuple[Tensor, Tensor]:
    """a and s (B, 1, 1, 1) of X_tau / c; before the first tau that has a training time, those of the last time."""
    length, alpha = _length(tau), schedule.alphas_cumprod[-1].to(tau.device)
    a, s = tau / length, (1 - tau) / length
    early = a < alpha.sqrt()
    return _column(torch.where(early, alpha.sqrt(), a)), _column(torch.where(early, (1 - alpha).sqrt(), s))


def _length(tau: Tensor) -> Tensor:
    """c."""
    return (tau.square() + (1 - tau).square()).sqrt()


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _everyone(tau: float, latents: Tensor) -> Tensor:
    return torch.full((len(latents),), tau, device=latents.device)
