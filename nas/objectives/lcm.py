"""Latent consistency distillation: a network learns to name the end of the teacher's guided path from anywhere on it.

Luo et al. 2023 (arXiv 2310.04378). From real latents noised to a time t of the teacher's grid, the frozen teacher takes one
guided DDIM step to the next less noisy time u. The student must say the same at both ends of it:

    L = E d(f(x_t, t, c), sg f'(x_u, u, c)),    f(x, t, c) = c_skip x + c_out x0'(x, t, c)

with x0' the clean latents that a network predicts, c_skip = 0.25 / (tt^2 + 0.25), c_out = tt / (tt^2 + 0.25)^(1/2) and
tt = 10 t, so that f is the identity at t = 0 (Song et al. 2023, arXiv 2303.01469, eq. 5) and, to 7e-6, x0' from the first
time of the grid on. f' has the student's moving average, or the student's own weights, as LCM-LoRA (arXiv 2311.05556) does.
d is the pseudo-Huber distance (d^2 + c^2)^(1/2) - c, or the squared error. Constants are those of diffusers' scripts.

Where we differ from the paper:
- The guidance scale is fixed, not drawn for each sample and given to the student as an embedding: PixArt-delta (Chen et al.
  2024, arXiv 2401.05252) found a fixed one better. It is w in null + w (cond - null); the paper's w' is w - 1.
  An embedding of w would have to be a part of what is drawn, and that is a backbone, network(latents, time, text), which has no
  place for it: a layer beside it would be in no saved weights, no export and no cost. Drawn by one w its output is a constant,
  so that what a fixed w loses is the choice after training alone.
- The paper guides x0' and the noise each. Both are linear in the prediction, which we guide once.
- The grid of another number of steps than divides 1,000 is rounded, as `ddim` plans are.

Draw with a `one_step` or `renoise` plan, without guidance: the student has it inside. Its loss compares neighbours on a path,
not the drawn latents with any others, and a network that says the same of everything has none, so it is no measure of
progress.
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.diffusion import schedule
from nas.diffusion.guidance import Denoiser, guided
from nas.diffusion.plan import MOST_GUIDANCE, Plan
from nas.diffusion.schedule import noise_schedule
from nas.diffusion.solvers import times
from nas.networks.averages import Average
from nas.networks.conditioning import Text
from nas.objectives import Distillation, LatentBatch

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(schedule.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    guidance_scale: float = Field(3.0, ge=0, le=MOST_GUIDANCE)
    """w of the teacher, null + w (cond - null); 1 for none. LCM's and PixArt-delta's w' is w - 1."""
    solver_steps: int = Field(50, ge=2, le=500)
    """Times of the teacher's grid, t_n = 1000 n / this - 1: its DDIM step goes from one to the next, and from the first to 0."""
    target: Literal["ema", "online"] = "ema"
    """Whose f' the student agrees with: its moving average's, or its own."""
    ema_decay: float = Field(0.95, ge=0, lt=1)
    """Of the moving average that is the target, per update."""
    distance: Literal["huber", "l2"] = "huber"
    """Pseudo-Huber, or the squared error."""
    huber_c: float = Field(0.001, gt=0, le=1)
    """c: below it pseudo-Huber is a squared error / 2c, above it an absolute one."""


class Objective(Distillation):
    """The consistency loss of one network, which must start with the teacher's weights (it may train adapters only).

    Raises InputError without a teacher.
    """

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings
        self.average = Average(generator, settings.ema_decay) if settings.target == "ema" else None

    @property
    def passes(self) -> float:
        """The student's 3, the target's forward pass, and the teacher's one or, guided, two."""
        return 4.0 + (1 if self.settings.guidance_scale == 1 else 2)

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """The mean distance over the batch and all elements."""
        time, earlier = self._neighbours(batch)
        noisy = self.noised(batch.latents, batch.noise(), time)
        said = self._consistency(self.generator, noisy, time, batch.text)
        difference = said - self._target(noisy, time, earlier, batch)
        self.logged["mean_difference"] = difference.detach().abs().mean()
        return self._distance(difference).mean()

    def after_step(self) -> None:
        """The target follows the student."""
        if self.average is not None:
            self.average.update(self.generator)

    def _neighbours(self, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """Random times (B,) of the teacher's grid, and the next less noisy ones."""
        grid = torch.tensor([0, *reversed(times(Plan(steps=self.settings.solver_steps), self.steps))])
        index = batch.times(1, len(grid))
        grid = grid.to(index.device)
        return grid[index], grid[index - 1]

    @torch.no_grad()
    def _target(self, noisy: Tensor, time: Tensor, earlier: Tensor, batch: LatentBatch) -> Tensor:
        """f' (B, C, H, W) where the teacher's step from x_t ends."""
        prediction = guided(self.teacher, noisy, time, batch.text, batch.null, self.settings.guidance_scale)
        stepped = schedule.ddim_step(self.schedule, noisy, time, prediction, earlier)
        network = self.generator if self.average is None else partial(self.average.call, self.generator)
        return self._consistency(network, stepped, earlier, batch.text)

    def _consistency(self, network: Denoiser, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
        """f (B, C, H, W), float32."""
        skip, out = boundary(time)
        return skip * noisy + out * self.clean(network, noisy, time, text)

    def _distance(self, difference: Tensor) -> Tensor:
        if self.settings.distance == "l2":
            return difference.square()
        c = self.settings.huber_c
        return (difference.square() + c**2).sqrt() - c


def boundary(time: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out at times (B,), shaped (B, 1, 1, 1)."""
    scaled = 10.0 * time.float().view(-1, 1, 1, 1)
    return 0.25 / (scaled.square() + 0.25), scaled / (scaled.square() + 0.25).sqrt()
