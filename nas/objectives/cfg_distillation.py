"""Step distillation that knows of guidance: one DDIM step of the student does what two of the teacher do, guided or not.

SnapFusion (Li et al. 2023, arXiv 2306.00980). From real latents noised to a time t of the student's N, the frozen
teacher takes two DDIM steps to z'' at t'', the student's next time. The clean latents that take the student there in one step
are (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2)

    x* = (z'' - (s''/s) z_t) / (a'' - (s''/s) a)

and the loss is, with x0' the student's clean latents and k = sg(L_distil / L_denoise),

    L = L_distil + gamma k L_denoise,    L_distil = E max(a^2 / s^2, 1) |x0' - x*|^2

where L_denoise is the plain denoising error of the student's prediction under the caption. In a share of the updates teacher
and student are both guided, null + w (cond - null), with one w; the student's gradient then flows through both its passes.

The paper gives neither the grid of t nor a learning rate, and no code was published. Where we fill in or differ:
- The grid is the one that is drawn from: the training times of `ddim` plans with N steps, and with 2 N for the teacher's
  middle. The last t'' is the clean end, a'' = 1 and s'' = 0, where x* = z''.
- k is taken so that both losses are equally large before gamma, as "dynamic" in the paper's Fig. 7b is read.
- Whether an update is guided, and w, are drawn for a batch as a whole (for each piece of a batch that is cut in pieces).
- The paper's student predicts v. One that predicts the noise can be had, but its x0' has 14.6 times its error at the last time.

Draw with a `ddim` plan of N steps, guided as before: the student needs it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from nas.diffusion import schedule
from nas.diffusion.guidance import guided, guided_and_plain
from nas.diffusion.plan import ALONG_A_PATH, MOST_GUIDANCE, Plan
from nas.diffusion.schedule import CLEAN, noise_schedule, signal_and_noise
from nas.diffusion.solvers import times
from nas.objectives import Distillation, LatentBatch

__all__ = ["Objective", "Settings", "noise_schedule"]

Scale = Annotated[float, Field(ge=0, le=MOST_GUIDANCE)]


class Settings(schedule.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    student_sample_steps: int = Field(8, ge=1, le=500)
    """N, the steps that the student is drawn with. The teacher takes 2 N on the same way."""
    guidance_probability: float = Field(0.1, ge=0, le=1)
    """Share of updates in which teacher and student are guided."""
    guidance_range: tuple[Scale, Scale] = (2.0, 14.0)
    """Lowest and highest w of those, which is drawn uniformly between them."""
    original_loss_weight: float = Field(0.2, ge=0)
    """gamma, of the denoising loss after it was scaled to be as large as the distillation loss."""

    @field_validator("guidance_range")
    @classmethod
    def _ascending(cls, given: tuple[float, float]) -> tuple[float, float]:
        if given[0] > given[1]:
            raise ValueError(f"expected the lowest scale before the highest, got {given[0]:g} before {given[1]:g}")
        return given


class Objective(Distillation):
    """Both losses of one network, which must start with the teacher's weights (it may train adapters only).

    Raises InputError without a teacher.
    """

    solvers: tuple[str, ...] = (*ALONG_A_PATH, "one_step")
    guided_drawing = True
    measures_progress = True

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings

    @property
    def passes(self) -> float:
        """The student's 3 and the teacher's two forward passes, all twice where they are guided; the denoising error shares
        the student's."""
        share = 0.0 if self.settings.guidance_range == (1, 1) else self.settings.guidance_probability
        return 5 * (1 - share) + 10 * share

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L. It logs L_distil as `guided_loss` or as `vanilla_loss`."""
        time, middle, end = self._times(batch)
        noise, scale = batch.noise(), self._scale(batch)
        noisy, answer = schedule.corrupted(self.schedule, batch.latents, time, noise)
        target = self._target(noisy, (time, middle, end), scale, batch)
        prediction, plain = guided_and_plain(self.generator, noisy, time, batch.text, batch.null, scale)
        error = (schedule.clean(self.schedule, noisy, time, prediction) - target).square()
        distilled = (self._weight(time) * error).mean()
        original = (plain - answer).square().mean()
        balance = distilled.detach() / original.detach().clamp(min=1e-12)
        self.logged |= {
            "vanilla_loss" if scale == 1 else "guided_loss": distilled.detach(),
            "original_loss": original.detach(),
            "original_loss_scale": balance,
        }
        return distilled + self.settings.original_loss_weight * balance * original

    def _times(self, batch: LatentBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Random times t (B,) of the student's grid, the teacher's t' between, and the student's next t''."""
        index = batch.times(0, self.settings.student_sample_steps)
        time, middle, end = grid(self.settings.student_sample_steps, self.steps).to(index.device)[index].unbind(1)
        return time, middle, end

    def _scale(self, batch: LatentBatch) -> float:
        """w of this batch; 1 in those that are not guided."""
        chance, where = torch.rand(2, generator=batch.generator).tolist()
        low, high = self.settings.guidance_range
        return low + where * (high - low) if chance < self.settings.guidance_probability else 1.0

    @torch.no_grad()
    def _target(self, noisy: Tensor, ways: tuple[Tensor, Tensor, Tensor], scale: float, batch: LatentBatch) -> Tensor:
        """x* (B, C, H, W) of the teacher's two steps."""
        time, middle, end = ways
        landed = noisy
        for here, there in ((time, middle), (middle, end)):
            prediction = guided(self.teacher, landed, here, batch.text, batch.null, scale)
            landed = schedule.ddim_step(self.schedule, landed, here, prediction, there)
        return aim(noisy, landed, signal_and_noise(self.schedule, time), signal_and_noise(self.schedule, end))

    def _weight(self, time: Tensor) -> Tensor:
        """max(SNR, 1), (B, 1, 1, 1)."""
        a, s = signal_and_noise(self.schedule, time)
        return (a / s).square().clamp(min=1)


def aim(noisy: Tensor, landed: Tensor, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]) -> Tensor:
    """x*: the clean latents (B, C, H, W) that take one DDIM step from `noisy` to `landed`, given a and s of both."""
    (a, s), (a_there, s_there) = here, there
    ratio = s_there / s
    return (landed - ratio * noisy) / (a_there - ratio * a)


def grid(steps: int, count: int) -> Tensor:
    """t, t' and t'' (steps, 3) of `count` training times: where `ddim` plans of `steps` and of twice as many ask."""
    student, teacher = times(Plan(steps=steps), count), times(Plan(steps=2 * steps), count)
    return torch.tensor(list(zip(student, teacher[1::2], [*student[1:], CLEAN], strict=True)))
