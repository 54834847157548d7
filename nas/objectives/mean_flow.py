"""MeanFlow: a one-step generator without a teacher, from the average velocity of a straight-line flow.

Geng et al. 2025 (arXiv 2505.13447). On z_t = (1 - t) x_0 + t e, from data at t = 0 to noise at 1, the velocity is v = e - x_0
and its average over the way from t down to r is u(z_t, r, t). Differentiating (t - r) u in t gives the identity that is
learned (eq. 6):

    u = v - (t - r) du/dt,   du/dt = v d_z u + d_t u,   L = E w |u - sg(v - (t - r) du/dt)|^2,

with w = 1 / sg(|u - target|^2 + c)^p (eq. 22). With guidance, v becomes w v + k u(z, t, t | c) + (1 - w - k) u(z, t, t | null)
(eq. 21), and what is learned is guided as if by w / (1 - k): drawing needs none.

Where we differ from the paper: r is t or 0, the two ends that drawing in one step needs, so that every network of the menu
serves as it is, without a second time. It is asked at its training time for the average over the whole way (r = 0) and 1,000
later for the instantaneous velocity (r = t); sines take any number. Either way u = (z_t - x^) / t, x^ being the clean latents
that the network predicts (`nas.diffusion.flow`, t = 1 - tau), so that e - u(e, 0, 1) is what `one_step` draws. Between the
two ends u(z, r, t) is not known, and several steps are drawn with `renoise`. With r = 0 alone the identity says that x^ stays
the same along a path, as for a consistency model in continuous time. The conditional velocity is w v + ... for dropped captions
too, where the paper's code takes v; both have the same mean. A network that goes on from a denoiser knows the instantaneous
velocity at the times where it is now asked for the average one, and has to learn it anew 1,000 later. Draw without guidance.
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas.diffusion import flow, schedule
from nas.diffusion.guidance import Denoiser
from nas.diffusion.plan import MOST_GUIDANCE
from nas.diffusion.schedule import noise_schedule
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, Lone

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(schedule.Settings):
    """Defaults are the paper's for ImageNet, without its guidance."""

    derivative: Literal["difference", "jvp"] = "difference"
    """du/dt as a difference quotient, or by forward differentiation (attention as plain products). In float32 either way."""
    step: float = Field(0.005, gt=0, le=0.1)
    """By how much t is lowered for the difference: 0.005 is several training times, and smooths the fastest sines of the time,
    which `jvp` sees in full."""
    instantaneous_share: float = Field(0.75, ge=0, le=1)
    """Share of samples with r = t, plain flow matching."""
    last_time_share: float = Field(0.0, ge=0, le=1)
    """Share of the samples with r = 0 at t = 1, the time that one-step drawing asks about, beyond the logit-normal draw."""
    time_mean: float = Field(-0.4, ge=-10, le=10)
    """Of the logit of t, which is normal."""
    time_deviation: float = Field(1.0, gt=0, le=10)
    """Of the logit of t."""
    weight_power: float = Field(1.0, ge=0, le=2)
    """p. 0 weighs all samples alike; with 1 the loss is about 1 whatever the error."""
    weight_floor: float = Field(1e-3, gt=0)
    """c."""
    guidance_scale: float = Field(1.0, ge=0, le=MOST_GUIDANCE)
    """w."""
    guidance_mixing: float = Field(0.0, ge=0, lt=1)
    """k."""


class Objective(Lone):
    """The MeanFlow loss over one network; no critic, no teacher."""

    measures_progress = False  # its weight leaves about the same number of every error; `velocity_error` measures

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings

    @property
    def passes(self) -> float:
        """3, two for guidance, and two for du/dt of the samples with r = 0: two points, or a point and its derivative."""
        return 3.0 + 2 * self._is_guided + 2 * (1 - self.settings.instantaneous_share)

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L, |.|^2 being a sum over a sample's elements; the mean over the batch."""
        t, whole = self._times(batch)
        noise = batch.noise()
        z = flow.position(batch.latents, noise, 1 - t)
        target = self._target(z, t, noise - batch.latents, whole, batch)
        squared = (self._velocity(z, t, whole, batch.text) - target).square().flatten(1)
        error = squared.sum(1)
        weight = (error.detach() + self.settings.weight_floor) ** -self.settings.weight_power
        self.logged |= {"velocity_error": squared.detach().mean()}
        return (weight * error).mean()

    @property
    def _is_guided(self) -> bool:
        return self.settings.guidance_scale != 1 or self.settings.guidance_mixing != 0

    def _times(self, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """t (B,), never so small that a step down would leave the flow, and whether r = 0, (B,)."""
        settings, size = self.settings, len(batch.latents)
        logit = settings.time_mean + settings.time_deviation * torch.randn(size, generator=batch.generator)
        whole = torch.rand(size, generator=batch.generator) >= settings.instantaneous_share
        at_last = torch.rand(size, generator=batch.generator) < settings.last_time_share
        t = torch.where(whole & at_last, 1.0, logit.sigmoid().clamp(min=2 * settings.step))
        return t.to(batch.latents.device), whole.to(batch.latents.device)

    def _velocity(self, z: Tensor, t: Tensor, whole: Tensor, text: Text) -> Tensor:
        """u(z, 0, t) where `whole` (B,), else u(z, t, t); (B, C, H, W)."""
        offset = torch.where(whole, 0, self.schedule.config["num_train_timesteps"])
        return -flow.velocity(partial(_later, self.generator, offset), self.schedule, z, 1 - t, text)

    @torch.no_grad()
    def _target(self, z: Tensor, t: Tensor, v: Tensor, whole: Tensor, batch: LatentBatch) -> Tensor:
        """v - (t - r) du/dt, of the guided v."""
        target = self._guided(z, t, v, batch)
        (rows,) = whole.nonzero(as_tuple=True)
        if len(rows):
            text = Text(*(one[rows] for one in batch.text))
            slope = self._derivative(z[rows], t[rows], target[rows], text)
            target = target.index_add(0, rows, -t[rows].view(-1, 1, 1, 1) * slope)
        return target

    def _guided(self, z: Tensor, t: Tensor, v: Tensor, batch: LatentBatch) -> Tensor:
        if not self._is_guided:
            return v
        w, k = self.settings.guidance_scale, self.settings.guidance_mixing
        now = torch.zeros_like(t, dtype=torch.bool)
        told, untold = (self._velocity(z, t, now, text) for text in (batch.text, batch.unconditional))
        return w * v + k * told + (1 - w - k) * untold

    def _derivative(self, z: Tensor, t: Tensor, v: Tensor, text: Text) -> Tensor:
        """du(z, 0, t)/dt along v, (B, C, H, W). A difference of what bfloat16 rounds, divided by the step, would be noise."""

        def average(z: Tensor, t: Tensor) -> Tensor:
            return self._velocity(z, t, torch.ones_like(t, dtype=torch.bool), text)

        with torch.autocast(z.device.type, enabled=False):
            if self.settings.derivative == "difference":
                h = self.settings.step
                return (average(z, t) - average(z - h * v, t - h)) / h
            with sdpa_kernel(SDPBackend.MATH):
                slope: Tensor = torch.func.jvp(average, (z, t), (v, torch.ones_like(t)))[1]
            return slope


def _later(network: Denoiser, offset: Tensor, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
    """The network's prediction at times (B,) put off by `offset` (B,)."""
    return network(noisy, time + offset, text)
