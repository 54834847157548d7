"""InstaFlow: reflow first, then the straight flow distilled into one step.

Liu et al. 2023 (arXiv 2309.06380, section 3). For `reflow_updates` updates the generator learns a rectified flow as `reflow`
has it. The moving average of its weights is then that flow and stays, and it learns to reach in one step what the flow does
in a few:

    L = E |G(X_0, c) - Euler(flow, X_0, c)|^2,   X_0 fresh noise,

G(X_0, c) being the clean latents predicted from pure noise at the last time, which `one_step` draws. Straight paths make this
second task easy, the paper's point: the same network distilled at once from the teacher's pairs does worse. With
`reflow_updates: 0` that is what is done, X_0 and the target being a pair of the teacher's.

Where we differ from the paper: the flow draws the target in the update, a few steps without guidance, rather than 25 steps
with guidance 1.5 into a store, as its pairs had the teacher's guidance; the generator and its optimizer go on from the last
weights, not from the average; and the later stage under LPIPS is left out, because it needs decoded pictures.
"""

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas.diffusion import flow
from nas.diffusion.plan import ONE_STEP
from nas.diffusion.schedule import noise_schedule
from nas.documents.strict import Decay
from nas.errors import InputError
from nas.networks.averages import Average
from nas.objectives import LatentBatch, reflow

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(reflow.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    reflow_updates: int = Field(1000, ge=0)
    """Updates of the generator before it is distilled. 0: the teacher's pairs are distilled directly."""
    rectified_steps: int = Field(8, ge=1, le=100)
    """Euler steps of the rectified flow to a target."""
    rectified_decay: Decay = 0.99
    """Of the moving average that becomes the rectified flow, per update of the first task, after a warm-up. 0: the last weights,
    which a noise predictor's error at the last time, times 15 in the clean latents, makes a worse flow."""


def check(settings: Settings, updates: int) -> None:
    """Raises InputError where a training of so many updates never comes to the second task."""
    if settings.reflow_updates >= updates:
        raise InputError(
            f"objective.reflow_updates: {settings.reflow_updates:,}, but training.images_seen is {updates:,} updates, so that "
            "none is left for the one step; expected fewer"
        )


class Objective(reflow.Objective):
    """Both losses, one after the other, over one network and a frozen copy of it."""

    solvers: tuple[str, ...] = ONE_STEP
    measures_progress = False  # the second loss starts anywhere but where the first one ended
    settings: Settings

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.update = 0  # number of the last loss's
        self.rectified = None
        if settings.reflow_updates:
            self.rectified = Average(generator, settings.rectified_decay, warmup=True)

    @property
    def passes(self) -> float:
        """Of an update of the second task: 3, and the flow's steps to the target. One of the first costs 3."""
        return 3.0 + (self.settings.rectified_steps if self.rectified is not None else 0)

    def passes_of(self, updates: int) -> float:
        first = min(updates, self.settings.reflow_updates)
        return (3 * first + self.passes * (updates - first)) / updates

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L, or reflow's while the batch's update is below `reflow_updates`."""
        self.update = batch.update
        if batch.update < self.settings.reflow_updates:
            return super().generator_loss(batch)
        noise, target = self._pair(batch)
        last = torch.full((len(noise),), self.steps - 1, device=noise.device)
        return F.mse_loss(self.clean(self.generator, noise, last, batch.text), target)

    def after_step(self) -> None:
        """The average follows the generator through the first task."""
        if self.rectified is not None and self.update < self.settings.reflow_updates:
            self.rectified.update(self.generator, self.update)

    @torch.no_grad()
    def _pair(self, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """Noise, and what the rectified flow draws from it; without one, what the teacher drew."""
        if self.rectified is None:
            return self._start(batch), batch.latents
        noise, network = batch.noise(), partial(self.rectified.call, self.generator)
        return noise, flow.euler(network, self.schedule, noise, batch.text, self.settings.rectified_steps)
