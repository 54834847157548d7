"""LADD: a diffusion model fine-tuned into a generator of few steps by an adversary on its teacher's own features.

Latent adversarial diffusion distillation (Sauer et al. 2024, arXiv 2403.12015) plays the game of adversarial diffusion
distillation (ADD; Sauer et al. 2023, arXiv 2311.17042) without leaving the latents. The student G predicts clean latents x'
from real ones noised to one of a few fixed times s, those that drawing in as many steps asks about. F are the features in
the middle of the frozen teacher of what is noised, afresh, to a random time t; a small head D on them tells x' from real
latents (ADD, eq. 2 to 4):

    L_D = E max(0, 1 - D(F(x_t, t, c))) + E max(0, 1 + D(F(x'_t, t, c))) + R1
    L_G = -E D(F(x'_t, t, c)) + lambda E c(u) |x' - sg(x^(x'_u, u, c))|^2

The last term, ADD's distillation by scores, draws x' to the clean latents x^ that the teacher predicts from x' noised to a
time u; nothing flows back through that prediction. R1 is the squared slope of D in the features of the real latents, the
input of the head, and not in the latents. D's logits are not pooled: each position is one. D starts undecided.

Where we differ from LADD: one head on one layer where the paper has a head after every attention block; the head sees the
time and the caption through the features alone; t is uniform; real latents are the data's own, where the paper draws
synthetic ones from the teacher; and ADD's distillation term stays, a setting away from being none. From ADD: there is no
image decoder and no other feature network, and the last time is no pure noise unless `zero_terminal_snr` says so. Draw with a
`one_step` or `renoise` plan, without guidance.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from nas.diffusion import schedule
from nas.diffusion.plan import MOST_GUIDANCE, Plan
from nas.diffusion.schedule import noise_schedule, signal_and_noise
from nas.diffusion.solvers import times
from nas.documents.strict import Decay
from nas.networks.adversary import MIDDLE, Head, features, frozen
from nas.objectives import Critic, Distillation, LatentBatch

__all__ = ["Objective", "Settings", "noise_schedule"]


class Game(schedule.Settings):
    """What an adversary on any features has. `prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    student_sample_steps: int = Field(4, ge=1, le=999)
    """N: the student learns at the times of a `renoise` plan of N steps, each as often. 1 is the last time alone."""
    last_time_share: float = Field(0.0, ge=0, le=1)
    """Share of the student's samples at the last time, the one that one-step drawing asks about, beyond those."""
    distillation: Literal["exponential", "sds", "none"] = "exponential"
    """c(u): a_u (ADD's `exponential`), or a_u s_u / 2, which makes the gradient that of score distillation sampling with
    its weight s_u^2 (Poole et al. 2022, arXiv 2209.14988). `none`: the game alone."""
    distillation_weight: float = Field(2.5, ge=0)
    """lambda, beside an adversarial weight of 1. It depends on what the latents are: try others."""
    guidance_scale: float = Field(1.0, ge=0, le=MOST_GUIDANCE)
    """Of the teacher's prediction in the distillation term; 1 is none, in one pass."""
    gradient_penalty: float = Field(1e-5, ge=0)
    """R1 (Mescheder et al. 2018): this / 2 times |d sum D / d F|^2 of the real latents' features. In every turn of D."""
    critic_every: int = Field(1, ge=1)
    """Generator updates from one update of D to the next."""
    critic_learning_rate: float = Field(1.0, gt=0)
    """D's learning rate, times the generator's."""
    critic_betas: tuple[Decay, Decay] = (0.0, 0.999)
    """D's AdamW's."""


class Settings(Game):
    """With the times at which the teacher's features are taken."""

    feature_times: tuple[int, int] = (0, 999)
    """Least and largest t that the adversary sees, in training steps; uniform between them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.feature_times
        if not 0 <= low <= high <= 999:
            raise ValueError(f"feature_times: expected two times from 0 to 999, the lesser first, got {low} and {high}")
        return self


class Objective(Distillation):
    """Both losses, over a student and a head on the frozen teacher's features.

    The student must start with the teacher's weights (it may train adapters only). Raises InputError without a teacher, or
    with one whose middle is not named.
    """

    measures_progress = False  # an adversary that learns raises the loss

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings
        self.discriminator: nn.Module = Head(self.teacher)
        self.times = times(Plan(solver="renoise", steps=settings.student_sample_steps), self.steps)

    @property
    def critics(self) -> dict[str, Critic]:
        every, rate, betas = self.settings.critic_every, self.settings.critic_learning_rate, self.settings.critic_betas
        turn = Critic(self.discriminator, self.critic_loss, every=every, learning_rate=rate, betas=betas)
        return {"discriminator": turn}

    @property
    def passes(self) -> float:
        """The student's update: 3, to the middle and back, and the teacher's prediction; D's turn: 1, and twice to the
        middle."""
        predictions = 0 if self.settings.distillation == "none" else 1 if self.settings.guidance_scale == 1 else 2
        return 3 + 2 * MIDDLE + predictions + (1 + 2 * MIDDLE) / self.settings.critic_every

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L_G. Passes: G forward and backward, the teacher to its middle and back, and its prediction, without gradients."""
        made = self._made(batch)
        with frozen(self.discriminator):
            logits = self.discriminator(self._features(made, batch))
        fooled: Tensor = -logits.mean()
        self.logged["gan_loss_gen"] = fooled.detach()
        if self.settings.distillation == "none":
            return fooled
        distilled = self._distillation(made, batch)
        self.logged["distillation_loss"] = distilled.detach()
        return fooled + self.settings.distillation_weight * distilled

    def critic_loss(self, batch: LatentBatch) -> Tensor:
        """L_D. Passes: G forward, the teacher to its middle for fake and real; the penalty stays within the head."""
        with torch.no_grad():
            made = self._made(batch)
            found = self._features(made, batch), self._features(batch.latents, batch)
        fake, real = self.discriminator(found[0]), self.discriminator(found[1].requires_grad_())
        loss = F.relu(1 + fake).mean() + F.relu(1 - real).mean()
        self.logged |= {
            "gan_loss_disc": loss.detach(),
            "critic_accuracy_fake": (fake.detach().mean(1) < 0).float().mean(),
            "critic_accuracy_real": (real.detach().mean(1) > 0).float().mean(),
        }
        return loss + self._penalty(real, found[1]) if self.settings.gradient_penalty else loss

    def _made(self, batch: LatentBatch) -> Tensor:
        """x' (B, C, H, W) of the real latents noised to the student's times."""
        time = self._student_times(batch)
        noisy = self.noised(batch.latents, batch.noise(), time)
        return self.clean(self.generator, noisy, time, batch.text)

    def _student_times(self, batch: LatentBatch) -> Tensor:
        """Times (B,), uniform among those of the plan but for the share at the last."""
        known = torch.tensor(self.times, device=batch.latents.device)
        time = known[batch.times(0, len(self.times))]
        at_last = torch.rand(len(time), generator=batch.generator) < self.settings.last_time_share
        return torch.where(at_last.to(time.device), self.steps - 1, time)

    def _features(self, latents: Tensor, batch: LatentBatch) -> Tensor:
        """F (B, width, positions) of clean latents after fresh noise to a random time."""
        low, high = self.settings.feature_times
        time = batch.times(low, high + 1)
        return features(self.teacher, self.noised(latents, batch.noise(), time), time, batch.text)

    def _distillation(self, made: Tensor, batch: LatentBatch) -> Tensor:
        """Mean of c(u) |x' - x^|^2 over the batch and all elements."""
        target, time = self._taught(made, batch)
        a, s = signal_and_noise(self.schedule, time)
        weight = a if self.settings.distillation == "exponential" else a * s / 2
        return (weight * (made - target).square()).mean()

    def _taught(self, made: Tensor, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """x^ (B, C, H, W), the clean latents that the teacher predicts from x' after noise, and the times u (B,)."""
        time = batch.times(0, self.steps)
        noisy = self.noised(made.detach(), batch.noise(), time)
        return self.guided(self.teacher, noisy, time, batch, self.settings.guidance_scale), time

    def _penalty(self, real: Tensor, found: Tensor) -> Tensor:
        """The weighted R1 of logits (B, positions) in the features (B, width, positions) that they were made of."""
        (slope,) = torch.autograd.grad(real.sum(), found, create_graph=True)
        penalty: Tensor = self.settings.gradient_penalty / 2 * slope.square().flatten(1).sum(1).mean()
        self.logged["gradient_penalty"] = penalty.detach()
        return penalty
