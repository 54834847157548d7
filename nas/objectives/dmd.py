"""DMD: distribution matching kept together by a regression on pairs of the teacher's (Yin et al. 2023, arXiv 2311.18828).

`dmd2`'s gradient with one update of the fake score for one of the generator, no head, and beside it a regression: of noise from
which the teacher drew a picture, the generator makes that picture,

    L_G = L_matching + regression_weight E |x0'(z_ref, T - 1, c) - y_ref|^2

Without the regression this loses modes; with it, no picture but the teacher's own is needed. Where we differ: the regression
is the squared error of the latents in place of LPIPS on decoded pictures, which needs the decoder and a network of features
(their ablation has L2 behind LPIPS: FID 2.78 and 2.66). Captions of the pairs serve both terms, and
the fake score learns from fresh noise alone. Draw with a `one_step` plan,
without guidance.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from nas.diffusion.pairs import Pairs
from nas.diffusion.schedule import noise_schedule
from nas.objectives import LatentBatch, dmd2

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(dmd2.Settings):
    """DMD2's with DMD's choices, and the regression."""

    student_update_freq: int = Field(1, ge=1, le=100)
    """Updates of the fake score for one of the generator."""
    gan_loss_weight: float = Field(0.0, ge=0)
    """Of the adversarial term, which DMD does not have."""
    regression_weight: float = Field(0.25, ge=0)
    """Of the squared error against the teacher's pictures."""
    pairs: Pairs = Pairs()
    """Of noise and what the teacher draws from it."""


class Objective(dmd2.Objective):
    """DMD2's losses and the regression. The batch's latents are what the teacher drew from its `start`."""

    requires = frozenset({"teacher", "pairs"})
    settings: Settings

    @property
    def passes(self) -> float:
        return super().passes + 3

    @property
    def offline_passes(self) -> int:
        """Of the teacher, for all pairs."""
        return self.settings.pairs.passes

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L_G, of fresh noise and of the pairs."""
        loss = super().generator_loss(batch)
        assert batch.start is not None
        last = self.all_at(self.steps - 1, batch)
        rebuilt = self.clean(self.generator, batch.start, last, batch.text)
        error = (rebuilt - batch.latents).square().mean()
        self.logged["regression_loss"] = error.detach()
        return loss + self.settings.regression_weight * error
