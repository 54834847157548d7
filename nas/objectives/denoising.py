"""Denoising score matching: the plain diffusion loss E ||f(x_t, t, c) - target||^2 (Ho et al. 2020, eq. 14).

The target is the noise, or v = a_t e - s_t x_0 (Salimans & Ho 2022, section 4), with x_t = a_t x_0 + s_t e and t uniform.
Where we differ from Stable Diffusion: v is the default, because a brief training reaches usable samples sooner with it
(assumption; `prediction: epsilon` is one setting away).
"""

from typing import Any

from torch import Tensor, nn

from nas.diffusion.schedule import Settings, denoising_error, noise_schedule
from nas.objectives import Critic, LatentBatch


class Objective(nn.Module):
    """The denoising loss over one network; no critic, no teacher."""

    requires: frozenset[str] = frozenset()
    guided_drawing = True
    measures_progress = True

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__()
        self.generator = generator
        self.logged: dict[str, Tensor] = {}
        self.schedule = noise_schedule(settings)

    @property
    def critics(self) -> dict[str, Critic]:
        return {}

    @property
    def schedule_config(self) -> dict[str, Any]:
        return dict(self.schedule.config)

    @property
    def passes(self) -> float:
        return 3.0

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """Mean squared error over the batch and all elements, at uniform random times."""
        time, noise = batch.draw(self.schedule.config["num_train_timesteps"])
        return denoising_error(self.generator, self.schedule, batch.latents, batch.text, time, noise).mean()

    def after_step(self) -> None:
        """Nothing moves besides the generator."""
