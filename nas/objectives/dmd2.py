"""DMD2: a generator in one or a few steps whose pictures are distributed as the teacher's (Yin et al. 2024, arXiv 2405.14867).

What the generator makes, x = x0'(z, T - 1, c) of pure noise z, is noised to a random time t. The teacher (under guidance) and the
fake score, a denoiser that learns what the generator makes, both predict the clean latents of that one sample; the generator
moves along their difference:

    L_G    = 1/2 E |x - sg(x - g)|^2 + gan_loss_weight E softplus(-h(x_tau)),    g = (fake - real) / mean |x - real|
    L_fake = E |denoising error of sg(x)|^2 + gan_critic_weight (E softplus(h(x_tau)) + E softplus(-h(x_tau^real)))

with h a head on the middle features of the fake score, or of the teacher (`features`; frameworks differ from the paper here).
The fake score takes `student_update_freq` updates for one of the generator: without that it lags behind, and modes are lost.

Where we differ: the updates of one turn share the batch's captions and draw fresh noise each; the head is pointwise over the
features' positions, for a proxy's are few. With several steps (`student_sample_steps`) the generator's inputs are simulated as it
is drawn: clean latents from noise, noised afresh to the next lower time, and so on (section 4.5 of the paper). `weighting:
variance` and `fake_guidance_scale` make it SwiftBrush's loss. Draw with a `one_step` or `renoise` plan, without guidance.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas.diffusion import schedule, score_distillation, solvers
from nas.diffusion.plan import MOST_GUIDANCE, Plan
from nas.diffusion.schedule import denoising_error, noise_schedule, signal_and_noise
from nas.documents.strict import Decay
from nas.networks.adversary import MIDDLE, Head, features, frozen
from nas.objectives import Critic, Distillation, LatentBatch

__all__ = ["Objective", "Settings", "noise_schedule"]

TIMES = (0.02, 0.98)  # of the schedule, between which the scores are compared


class Settings(schedule.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    guidance_scale: float = Field(3.0, ge=0, le=MOST_GUIDANCE)
    """Of the teacher, the real score."""
    fake_guidance_scale: float = Field(1.0, ge=0, le=MOST_GUIDANCE)
    """Of the fake score; 1 is none."""
    weighting: score_distillation.Weighting = "teacher_error"
    """What the difference of the scores is divided by or weighed with: DMD's or SwiftBrush's choice."""
    student_update_freq: int = Field(5, ge=1, le=100)
    """Updates of the fake score for one of the generator."""
    student_sample_steps: int = Field(1, ge=1, le=16)
    """Steps the generator is made to be drawn in."""
    fake_score_learning_rate: float = Field(1.0, gt=0)
    """The fake score's learning rate, times the generator's."""
    fake_score_betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Its AdamW's."""
    fake_caption_dropout: float = Field(0.0, ge=0, le=1)
    """Probability that an update of the fake score sees the null caption alone; needed where it is guided."""
    gan_loss_weight: float = Field(1e-3, ge=0)
    """Of the adversarial term in the generator's loss. 0: no head, no real pictures."""
    gan_critic_weight: float = Field(1e-2, ge=0)
    """Of the head's loss beside the fake score's."""
    features: Literal["fake_score", "teacher"] = "fake_score"
    """Whose middle features the head judges."""


class FakeScore(nn.Module):
    """The denoiser that learns what the generator makes, and the head that learns to tell it from real latents."""

    def __init__(self, denoiser: nn.Module, head: Head | None):
        super().__init__()
        self.denoiser, self.head = denoiser, head


class Objective(Distillation):
    """The losses over a generator and a fake score that both start as the teacher.

    The generator may train adapters only. Raises InputError without a teacher, or with one whose middle is not named where the
    head needs it.
    """

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings
        head = Head(self.teacher) if settings.gan_loss_weight else None
        self.fake_score = FakeScore(self.copied(self.teacher, settings), head)

    def copied(self, teacher: nn.Module, settings: Settings) -> nn.Module:
        """The fake score's denoiser as it starts."""
        return deepcopy(teacher).float().requires_grad_(True)

    @property
    def critics(self) -> dict[str, Critic]:
        given = self.settings
        critic = Critic(
            self.fake_score,
            self.fake_score_loss,
            updates=given.student_update_freq,
            learning_rate=given.fake_score_learning_rate,
            betas=given.fake_score_betas,
        )
        return {"fake_score": critic}

    @property
    def passes(self) -> float:
        """The generator's update: 3, the two scores under their guidance, the simulated steps before its own. Each of the fake
        score's: a picture made, and 3. The head's features are half a pass, forward and backward, of one and of two pictures."""
        given = self.settings
        simulated = (given.student_sample_steps - 1) / 2
        scores = sum(1 if scale == 1 else 2 for scale in (given.guidance_scale, given.fake_guidance_scale))
        made, judged = (2 * MIDDLE, 2 * MIDDLE * (3 if given.features == "fake_score" else 1))
        if not given.gan_loss_weight:
            made = judged = 0.0
        return 3 + simulated + scores + made + given.student_update_freq * (1 + simulated + self.fake_passes + judged)

    @property
    def fake_passes(self) -> float:
        """Of one update of the fake score on a picture that was made: forward, and backward to weights and inputs."""
        return 3.0

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L_G. The gradient is the scores' difference; its value is no measure of progress."""
        made = self.made(batch)
        loss = self._matching(made, batch)
        self.logged["vsd_loss"] = loss.detach()
        if self.fake_score.head is None:
            return loss
        with frozen(self.fake_score):
            fooled = F.softplus(-self._logits(made, batch)).mean()
        self.logged["gan_loss_gen"] = fooled.detach()
        return loss + self.settings.gan_loss_weight * fooled

    def fake_score_loss(self, batch: LatentBatch) -> Tensor:
        """L_fake, on what the generator makes of fresh noise."""
        with torch.no_grad():
            made = self.made(batch)
        loss = self._denoising(made, batch)
        self.logged["fake_score_denoising_loss"] = loss.detach()
        if self.fake_score.head is None:
            return loss
        fake, real = self._logits(made, batch), self._logits(batch.latents, batch)
        self.logged |= {
            "critic_accuracy_fake": (fake.detach().mean(1) < 0).float().mean(),
            "critic_accuracy_real": (real.detach().mean(1) > 0).float().mean(),
        }
        told_apart = F.softplus(fake).mean() + F.softplus(-real).mean()
        return loss + self.settings.gan_critic_weight * told_apart

    def made(self, batch: LatentBatch) -> Tensor:
        """What the generator makes (B, C, H, W) in its last pass; those before, as many as a draw shared by the batch says, are
        simulated without gradients."""
        times = solvers.times(Plan(solver="renoise", steps=self.settings.student_sample_steps), self.steps)
        before = int(torch.randint(len(times), (), generator=batch.generator)) if len(times) > 1 else 0
        noisy, time = batch.noise(), self.all_at(times[0], batch)
        for later in times[1 : before + 1]:
            with torch.no_grad():
                latents = self.clean(self.generator, noisy, time, batch.text)
            time = self.all_at(later, batch)
            noisy = self.noised(latents, batch.noise(), time)
        return self.clean(self.generator, noisy, time, batch.text)

    def all_at(self, time: int, batch: LatentBatch) -> Tensor:
        return torch.full((len(batch.latents),), time, device=batch.latents.device)

    def _matching(self, made: Tensor, batch: LatentBatch) -> Tensor:
        """The loss whose gradient is the difference of the scores at one random time a row."""
        time = batch.times(round(TIMES[0] * self.steps), round(TIMES[1] * self.steps) + 1)
        noisy = self.noised(made.detach(), batch.noise(), time)
        real = self.guided(self.teacher, noisy, time, batch, self.settings.guidance_scale)
        fake = self.guided(self.fake_score.denoiser, noisy, time, batch, self.settings.fake_guidance_scale)
        a, s = signal_and_noise(self.schedule, time)
        direction = score_distillation.gradient(made.detach(), real, fake, a, s, self.settings.weighting)
        self.logged["score_difference"] = direction.abs().mean()
        return score_distillation.injected(made, direction)

    def _denoising(self, made: Tensor, batch: LatentBatch) -> Tensor:
        """The fake score's denoising error of what was made, weighed as the teacher's was in its training."""
        time, noise = batch.draw(self.steps)
        text = batch.unconditional if self._drops(batch) else batch.text
        return self.weighed(
            denoising_error(self.fake_score.denoiser, self.schedule, made, text, time, noise), time
        ).mean()

    def weighed(self, error: Tensor, time: Tensor) -> Tensor:
        """The error of each element, with its weight by time."""
        return error

    def _drops(self, batch: LatentBatch) -> bool:
        chance = self.settings.fake_caption_dropout
        return chance > 0 and bool(torch.rand((), generator=batch.generator) < chance)

    def _logits(self, latents: Tensor, batch: LatentBatch) -> Tensor:
        """The head's (B, positions) for clean latents, noised afresh to random times."""
        time, noise = batch.draw(self.steps)
        judge = self.teacher if self.settings.features == "teacher" else self.fake_score.denoiser
        assert self.fake_score.head is not None
        logits: Tensor = self.fake_score.head(features(judge, self.noised(latents, noise, time), time, batch.text))
        return logits
