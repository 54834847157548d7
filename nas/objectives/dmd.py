"""DMD: distribution matching kept together by a regression on pairs of the teacher's (Yin et al. 2023, arXiv 2311.18828).

`dmd2`'s gradient with one update of the fake score for one of the generator, no head, and beside it a regression: of noise from
which the teacher drew a picture, the generator makes that picture,

    L_G = L_matching + regression_weight E |x0'(z_ref, T - 1, c) - y_ref|^2

Without the regression this loses modes; with it, no picture but the teacher's own is needed. The squared error of latents is
the default; with `perceptual` it is the distance of decoded pictures, as in the paper, which has LPIPS (their ablation: FID 2.66,
and 2.78 with L2).

Where we differ: the perceptual distance has no fitted weights (`nas.networks.perceptual`); captions of the pairs serve both
terms; and the fake score learns from fresh noise alone. Draw with a `one_step` plan, without guidance.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from nas.diffusion.pairs import Pairs
from nas.diffusion.schedule import noise_schedule
from nas.networks.perceptual import Features, Perceptual
from nas.objectives import LatentBatch, Pictures, dmd2

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(dmd2.Settings):
    """DMD2's with DMD's choices, and the regression."""

    student_update_freq: int = Field(1, ge=1, le=100)
    """Updates of the fake score for one of the generator."""
    gan_loss_weight: float = Field(0.0, ge=0)
    """Of the adversarial term, which DMD does not have."""
    regression_weight: float = Field(0.25, ge=0)
    """Of the error against the teacher's pictures. A perceptual distance and a squared error of latents differ in size."""
    pairs: Pairs = Pairs()
    """Of noise and what the teacher draws from it."""
    perceptual: Features | None = Field(None, exclude_if=lambda given: given is None)
    """The network whose distance of decoded pictures is the error; {} is the shipped one. None: the squared error of latents."""


def check(settings: Settings, updates: int) -> None:
    """Raises InputError for a perceptual network that is not there."""
    if settings.perceptual is not None:
        settings.perceptual.check()


class Objective(dmd2.Objective):
    """DMD2's losses and the regression. The batch's latents are what the teacher drew from its `start`.

    Raises InputError as dmd2's, and as `nas.networks.feature_maps.load`.
    """

    requires = frozenset({"teacher", "pairs"})
    settings: Settings

    def __init__(
        self, generator: nn.Module, teacher: nn.Module | None, settings: Settings, pictures: Pictures | None = None
    ):
        super().__init__(generator, teacher, settings)
        self.perceptual = None
        if settings.perceptual is not None:
            assert pictures is not None
            self.perceptual = Perceptual(pictures.decoder, settings.perceptual)

    @property
    def passes(self) -> float:
        """DMD2's, and the regression's 3, without what a perceptual one takes in the image decoder and its own network."""
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
        error = self._error(rebuilt, batch.latents)
        self.logged["regression_loss"] = error.detach()
        return loss + self.settings.regression_weight * error

    def _error(self, rebuilt: Tensor, drawn: Tensor) -> Tensor:
        if self.perceptual is None:
            return (rebuilt - drawn).square().mean()
        distance: Tensor = self.perceptual(rebuilt, drawn)
        return distance
