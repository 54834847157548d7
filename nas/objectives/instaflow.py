"""InstaFlow: reflow first, then the straight flow distilled into one step.

Liu et al. 2023 (arXiv 2309.06380, section 3). For `reflow_updates` updates the generator learns a rectified flow as `reflow`
has it. The moving average of its weights is then that flow and stays, and it learns to reach in one step what the flow does
in a few:

    L = E |G(X_0, c) - Euler(flow, X_0, c)|^2,   X_0 fresh noise,

G(X_0, c) being the clean latents predicted from pure noise at the last time, which `one_step` draws. Straight paths make this
second task easy, the paper's point: the same network distilled at once from the teacher's pairs does worse. With
`reflow_updates: 0` that is what is done, X_0 and the target being a pair of the teacher's.

With `perceptual` the last updates have the distance of decoded pictures in place of |.|^2, as the paper's last stage has LPIPS.

Where we differ from the paper: the flow draws the target in the update, a few steps without guidance, rather than 25 steps
with guidance 1.5 into a store, as its pairs had the teacher's guidance; the generator and its optimizer go on from the last
weights, not from the average; and the perceptual distance has no fitted weights (`nas.networks.perceptual`).
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
from nas.networks.perceptual import Features, Perceptual
from nas.objectives import LatentBatch, Pictures, reflow

__all__ = ["Objective", "Settings", "noise_schedule"]


class LastStage(Features):
    """The last updates of the second task."""

    after: int = Field(0, ge=0)
    """Updates of the second task before them, whose error is that of latents."""


class Settings(reflow.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    reflow_updates: int = Field(1000, ge=0)
    """Updates of the generator before it is distilled. 0: the teacher's pairs are distilled directly."""
    rectified_steps: int = Field(8, ge=1, le=100)
    """Euler steps of the rectified flow to a target."""
    rectified_decay: Decay = 0.99
    """Of the moving average that becomes the rectified flow, per update of the first task, after a warm-up. 0: the last weights,
    which a noise predictor's error at the last time, times 15 in the clean latents, makes a worse flow."""
    perceptual: LastStage | None = Field(None, exclude_if=lambda given: given is None)
    """The network whose distance of decoded pictures is the last updates' error; {} is the shipped one, in all updates of the
    second task. None: no such stage."""


def check(settings: Settings, updates: int) -> None:
    """Raises InputError where a training of so many updates never comes to the second task, or to its perceptual stage, and for
    a perceptual network that is not there."""
    if settings.reflow_updates >= updates:
        raise InputError(
            f"objective.reflow_updates: {settings.reflow_updates:,}, but training.images_seen is {updates:,} updates, so that "
            "none is left for the one step; expected fewer"
        )
    if settings.perceptual is None:
        return
    settings.perceptual.check()
    if settings.perceptual.after >= (left := updates - settings.reflow_updates):
        raise InputError(
            f"objective.perceptual.after: {settings.perceptual.after:,}, but the one step has {left:,} updates "
            "(training.images_seen), so that none is left for the perceptual distance; expected fewer"
        )


class Objective(reflow.Objective):
    """Both losses, one after the other, over one network and a frozen copy of it.

    Raises InputError as reflow's, and as `nas.networks.feature_maps.load`.
    """

    solvers: tuple[str, ...] = ONE_STEP
    measures_progress = False  # the second loss starts anywhere but where the first one ended
    settings: Settings

    def __init__(
        self, generator: nn.Module, teacher: nn.Module | None, settings: Settings, pictures: Pictures | None = None
    ):
        super().__init__(generator, teacher, settings)
        self.update = 0  # number of the last loss's
        self.rectified = None
        if settings.reflow_updates:
            self.rectified = Average(generator, settings.rectified_decay, warmup=True)
        self.perceptual = None
        if settings.perceptual is not None:
            assert pictures is not None
            self.perceptual = Perceptual(pictures.decoder, settings.perceptual)
            self.perceptual_from = settings.reflow_updates + settings.perceptual.after

    @property
    def passes(self) -> float:
        """Of an update of the second task: 3, and the flow's steps to the target. One of the first costs 3. What the perceptual
        distance takes in the image decoder and its own network is not among them."""
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
        return self._error(self.clean(self.generator, noise, last, batch.text), target)

    def _error(self, made: Tensor, target: Tensor) -> Tensor:
        """Of the second task, as its update has it."""
        if self.perceptual is None or self.update < self.perceptual_from:
            return F.mse_loss(made, target)
        distance: Tensor = self.perceptual(made, target)
        return distance

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
