"""Reflow: a denoiser fine-tuned into a flow whose paths are straight, on pairs that its teacher drew.

Liu et al. 2022 (arXiv 2209.03003, eq. 1 and algorithm 1), as InstaFlow (Liu et al. 2023, arXiv 2309.06380, section 2) uses it
for text. A pair is noise X_0 and the latents X_1 that the teacher draws from it with guidance; the network learns the velocity
of the straight line between the two,

    L = E |velocity(X_tau, tau, c) - (X_1 - X_0)|^2,   X_tau = tau X_1 + (1 - tau) X_0.

Lines of different pairs seldom cross, as the teacher's paths do not, so that the learned paths are nearly straight and few
steps are enough. `nas.diffusion.flow` reads a velocity from the denoiser. Its error is that of a predicted v, times 1 / c^2,
which is 1 to 2, or that of a predicted e, times 1 / tau^2, at most 245: no weight is needed towards tau = 1, and tau is drawn
up to 0.999 only for rounding.

Where we differ from InstaFlow: the network keeps its prediction and its training times, so that it starts as its teacher's
own flow; theirs is a noise predictor taken for a velocity, asked at 1000 (1 - tau). Draw with a `ddim` plan without guidance,
or with `one_step`.
"""

import torch
from torch import Tensor, nn

from nas.diffusion import flow, schedule
from nas.diffusion.pairs import Pairs
from nas.diffusion.plan import ALONG_A_PATH
from nas.diffusion.schedule import noise_schedule
from nas.errors import InputError
from nas.objectives import Distillation, LatentBatch

__all__ = ["Objective", "Settings", "noise_schedule"]

LAST_TAU = 0.999  # nearer to 1, rounding errors of X_tau would show in the velocity


class Settings(schedule.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    pairs: Pairs = Pairs()
    """What the teacher draws before the first update."""


class Objective(Distillation):
    """The velocity's error over one network. Raises InputError without a teacher, which only draws the pairs."""

    requires = frozenset({"teacher", "pairs"})
    solvers: tuple[str, ...] = (*ALONG_A_PATH, "one_step")
    measures_progress = True

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings
        del self.teacher  # a network in memory for nothing

    @property
    def offline_passes(self) -> int:
        """Of the teacher, for all pairs."""
        return self.settings.pairs.passes

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L: the mean over the batch and all elements. Raises InputError for a batch that is not of pairs."""
        start, tau = self._start(batch), self._tau(batch)
        where = flow.position(batch.latents, start, tau)
        error = flow.velocity(self.generator, self.schedule, where, tau, batch.text) - (batch.latents - start)
        return error.square().mean()

    def _start(self, batch: LatentBatch) -> Tensor:
        """The noise (B, C, H, W) of the batch's pairs."""
        if batch.start is None:
            name = type(self).__module__.rpartition(".")[2]
            raise InputError(
                f"objective: {name} learns from pairs of noise and what its teacher drew, and got no noise"
            )
        return batch.start

    def _tau(self, batch: LatentBatch) -> Tensor:
        """tau (B,), uniform from 0 to the last one."""
        tau = LAST_TAU * torch.rand(len(batch.latents), generator=batch.generator)
        return tau.to(batch.latents.device)
