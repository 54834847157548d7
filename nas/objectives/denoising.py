"""Denoising score matching: the plain diffusion loss E ||f(x_t, t, c) - target||^2 (Ho et al. 2020, eq. 14).

The target is the noise, or v = a_t e - s_t x_0 (Salimans & Ho 2022, section 4), with x_t = a_t x_0 + s_t e and t uniform.
Where we differ from Stable Diffusion: v is the default, because a brief training reaches usable samples sooner with it
(assumption; `prediction: epsilon` is one setting away).
"""

from torch import Tensor

from nas.diffusion.plan import ALONG_A_PATH
from nas.diffusion.schedule import Settings, denoising_error, noise_schedule
from nas.objectives import LatentBatch, Lone

__all__ = ["Objective", "Settings", "noise_schedule"]


class Objective(Lone):
    """The denoising loss over one network; no critic, no teacher."""

    solvers: tuple[str, ...] = (*ALONG_A_PATH, "one_step")
    guided_drawing = True
    measures_progress = True

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """Mean squared error over the batch and all elements, at uniform random times."""
        time, noise = batch.draw(self.steps)
        return denoising_error(self.generator, self.schedule, batch.latents, batch.text, time, noise).mean()
