"""UFOGen: a diffusion model fine-tuned into a one-step generator by an adversarial game on re-noised samples.

Xu et al. 2023 (arXiv 2311.09257), as MobileDiffusion (Zhao et al. 2023, arXiv 2311.16567, section 4) uses it. The generator
G predicts clean latents x0' from real ones noised to time t, in one pass; both x0' and the real latents are noised, each
afresh, to the less noisy time u = max(t - Delta, 0), where the discriminator D tells them apart:

    L_D = E softplus(D(x'_u, u, c)) + E softplus(-D(x_u, u, c))
    L_G = E softplus(-D(x'_u, u, c)) + lambda E gamma_t |target - x0'|^2

with the target of MobileDiffusion's section 4.2: the real latents (`diffusion`), what the frozen teacher predicts from the
same x_t (`distill`), or what the generator's own moving average does (`ema_distill`). G and D start as the teacher; D's last
layer starts at zero, and its output map is not pooled: each position and channel is a logit.

Where we differ from MobileDiffusion's equations: D is told u, the true time of its input, and the game is the
non-saturating one; both as in the authors' code. Defaults are that code's unless marked otherwise. Draw with a `one_step`
or `renoise` plan, without guidance.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas.diffusion import schedule
from nas.diffusion.schedule import noise_schedule, signal_and_noise
from nas.documents.strict import Decay
from nas.networks.adversary import discriminator, frozen
from nas.networks.averages import Average
from nas.objectives import Critic, Distillation, LatentBatch

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(schedule.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    reconstruction: Literal["diffusion", "distill", "ema_distill"] = "diffusion"
    """What x0' is drawn to: the real latents, the teacher's prediction, or that of the generator's moving average."""
    reconstruction_weight: float = Field(1.0, ge=0)
    """lambda, beside an adversarial weight of 1."""
    gamma: Literal["snr", "posterior", "one"] = "snr"
    """Weight of the reconstruction by time: `snr` makes it the squared error of the noise; `posterior` is SIDDM's KL,
    abar_t / (2 (1 - abar_t / abar_u)); `one` pins noisy times to the mean, and one-step generation does not appear."""
    delta: int = Field(250, ge=1, le=1000)
    """Delta, in training steps: how much less noisy u is than t. 1000 plays the game on clean latents."""
    last_time_share: float = Field(0.0, ge=0, le=1)
    """Share of G's samples at the last time, the one that one-step drawing asks about, beyond the uniform draw."""
    logit_clamp: float | None = Field(0.5, gt=0)
    """m: a logit beyond it on its own side gives no gradient. None: the plain game."""
    gradient_penalty: float = Field(0.0, ge=0)
    """R1 (Mescheder et al. 2018): this / 2 times |d sum D / d x_u|^2 of the real latents. Not in the authors' code."""
    gradient_penalty_every: int = Field(16, ge=1)
    """Turns of D from one penalty to the next; the penalty is multiplied by it (StyleGAN2, Karras et al. 2020, B)."""
    critic_every: int = Field(2, ge=1)
    """Generator updates from one update of D to the next."""
    critic_learning_rate: float = Field(1.0, gt=0)
    """D's learning rate, times the generator's."""
    critic_betas: tuple[Decay, Decay] = (0.0, 0.999)
    """D's AdamW's."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Of the moving average that is `ema_distill`'s target, per generator update."""


class Objective(Distillation):
    """Both losses, over a generator and a discriminator of one architecture.

    The generator must start with the teacher's weights (it may train adapters only); the discriminator is always trained
    in full. Raises InputError without a teacher, or with one whose last layer is not named.
    """

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings
        self.critic = discriminator(self.teacher)
        if settings.reconstruction != "distill":
            del self.teacher  # a network in memory for nothing
        self.average = Average(generator, settings.ema_decay) if settings.reconstruction == "ema_distill" else None

    @property
    def critics(self) -> dict[str, Critic]:
        every, rate, betas = self.settings.critic_every, self.settings.critic_learning_rate, self.settings.critic_betas
        return {"critic": Critic(self.critic, self.critic_loss, every=every, learning_rate=rate, betas=betas)}

    @property
    def passes(self) -> float:
        """G's update 5, and a forward pass for a distilled target; D's turn 7; without the gradient penalty's."""
        return 5 + (self.settings.reconstruction != "diffusion") + 7 / self.settings.critic_every

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L_G. Passes: G and D forward, D backward to its input, G backward (and one forward for a distilled target)."""
        time, noisy = self._noised(batch)
        clean_prediction = self.clean(self.generator, noisy, time, batch.text)
        rebuilt = self._reconstruction(clean_prediction, noisy, time, batch)
        with frozen(self.critic):
            logits = self._logits(clean_prediction, time, batch)
        fooled = F.softplus(-_at_most(logits, self.settings.logit_clamp)).mean()
        self.logged |= {"gan_loss_gen": fooled.detach(), "reconstruction_loss": rebuilt.detach()}
        return fooled + self.settings.reconstruction_weight * rebuilt

    def critic_loss(self, batch: LatentBatch) -> Tensor:
        """L_D, every few turns with the gradient penalty. Passes: G forward, D forward and backward on fake and real."""
        time, noisy = self._noised(batch)
        with torch.no_grad():
            made = self.clean(self.generator, noisy, time, batch.text)
        fake, m = self._logits(made, time, batch), self.settings.logit_clamp
        penalised = self._penalised(batch.update)
        if penalised:
            real, penalty = self._penalty(time, batch)
            self.logged["gradient_penalty"] = penalty.detach()
        else:
            real, penalty = self._logits(batch.latents, time, batch), torch.zeros((), device=fake.device)
        loss = F.softplus(-_at_most(-fake, m)).mean() + F.softplus(-_at_most(real, m)).mean()
        self.logged |= {
            "critic_accuracy_fake": (fake.detach().flatten(1).mean(1) < 0).float().mean(),
            "critic_accuracy_real": (real.detach().flatten(1).mean(1) > 0).float().mean(),
        }
        return loss + penalty

    def after_step(self) -> None:
        """The target of `ema_distill` follows the generator."""
        if self.average is not None:
            self.average.update(self.generator)

    def _noised(self, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """Times (B,), uniform in 1 .. T - 1 but for the share at T - 1, and the latents noised to them."""
        last = self.steps - 1
        time, noise = batch.draw(last)
        at_last = torch.rand(len(time), generator=batch.generator) < self.settings.last_time_share
        time = torch.where(at_last.to(time.device), last, time + 1)
        return time, self.schedule.add_noise(batch.latents, noise, time)

    def _reconstruction(self, made: Tensor, noisy: Tensor, time: Tensor, batch: LatentBatch) -> Tensor:
        error = (made - self._target(noisy, time, batch)).square()
        return (self._gamma(time) * error).mean()

    @torch.no_grad()
    def _target(self, noisy: Tensor, time: Tensor, batch: LatentBatch) -> Tensor:
        if self.settings.reconstruction == "distill":
            return self.clean(self.teacher, noisy, time, batch.text)
        if self.average is not None:
            return self.clean(partial(self.average.call, self.generator), noisy, time, batch.text)
        return batch.latents

    def _gamma(self, time: Tensor) -> Tensor:
        """gamma_t, shaped (B, 1, 1, 1)."""
        a, s = signal_and_noise(self.schedule, time)
        if self.settings.gamma == "snr":
            return (a / s).square()
        if self.settings.gamma == "posterior":
            less_noisy, _ = signal_and_noise(self.schedule, self._u(time))
            return a.square() / (2 * (1 - (a / less_noisy).square()))
        return torch.ones_like(a)

    def _u(self, time: Tensor) -> Tensor:
        return (time - self.settings.delta).clamp(min=0)

    def _logits(self, latents: Tensor, time: Tensor, batch: LatentBatch) -> Tensor:
        """D's logits (B, C, H, W) of clean latents after fresh noise to the time u that belongs to t."""
        return self._judged(self._renoised(latents, time, batch), time, batch)

    def _renoised(self, latents: Tensor, time: Tensor, batch: LatentBatch) -> Tensor:
        noisy: Tensor = self.schedule.add_noise(latents, batch.noise(), self._u(time))
        return noisy

    def _judged(self, noisy: Tensor, time: Tensor, batch: LatentBatch) -> Tensor:
        logits: Tensor = self.critic(noisy, self._u(time), batch.text)
        return logits.float()

    def _penalised(self, update: int) -> bool:
        turn = update // self.settings.critic_every
        return self.settings.gradient_penalty > 0 and turn % self.settings.gradient_penalty_every == 0

    def _penalty(self, time: Tensor, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """Logits of the real latents, and the weighted penalty; attention as plain products, which alone differentiate
        twice."""
        noisy = self._renoised(batch.latents, time, batch).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            real = self._judged(noisy, time, batch)
        (slope,) = torch.autograd.grad(real.sum(), noisy, create_graph=True)
        weight = self.settings.gradient_penalty / 2 * self.settings.gradient_penalty_every
        return real, weight * slope.square().flatten(1).sum(1).mean()


def _at_most(logits: Tensor, m: float | None) -> Tensor:
    return logits if m is None else logits.clamp(max=m)
