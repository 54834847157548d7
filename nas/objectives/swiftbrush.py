"""SwiftBrush: variational score distillation of a one-step generator from captions alone (Nguyen & Tran 2023, arXiv 2312.05239).

The gradient is DMD's (see `dmd2`) with three differences: the fake score is the teacher with adapters (LoRA) that learn what the
generator makes, both scores are guided alike, and their difference is weighed by the variance of the noise:

    L_G = 1/2 E |x - sg(x - s_t^2 (eps_teacher - eps_fake))|^2

No picture is needed, real or drawn. Nothing keeps the two time scales apart but the adapters' learning rate, 1,000 times the
generator's in the authors' code: it is the first thing to tune. Where we differ: the adapters' denoising error is the one the
teacher was trained with, times a_t^2 as theirs; its adapters are in all layers, for a proxy has few; and their learning rate is
10 times the generator's, for ours is a hundred times theirs.
Draw with a `one_step` plan, without guidance.
"""

from __future__ import annotations

from copy import deepcopy

from pydantic import Field
from torch import Tensor, nn

from nas.diffusion import score_distillation
from nas.diffusion.plan import MOST_GUIDANCE
from nas.diffusion.schedule import noise_schedule, signal_and_noise
from nas.networks import lora
from nas.networks.lora import Lora
from nas.objectives import dmd2

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(dmd2.Settings):
    """DMD2's with SwiftBrush's choices, and the adapters."""

    guidance_scale: float = Field(4.5, ge=0, le=MOST_GUIDANCE)
    """Of the teacher, the real score."""
    fake_guidance_scale: float = Field(4.5, ge=0, le=MOST_GUIDANCE)
    """Of the fake score."""
    weighting: score_distillation.Weighting = "variance"
    """What the difference of the scores is weighed with."""
    student_update_freq: int = Field(1, ge=1, le=100)
    """Updates of the fake score for one of the generator."""
    fake_score_learning_rate: float = Field(10.0, gt=0)
    """The fake score's learning rate, times the generator's."""
    fake_caption_dropout: float = Field(0.1, ge=0, le=1)
    """Probability that an update of the fake score sees the null caption alone."""
    gan_loss_weight: float = Field(0.0, ge=0)
    """Of the adversarial term, which SwiftBrush does not have."""
    fake_lora: Lora | None = Lora()
    """The fake score's adapters (theirs: rank 64 at to_q and to_v of Stable Diffusion); null: a full network, as DMD2's."""


class Objective(dmd2.Objective):
    """DMD2's losses with a fake score that is the teacher, its weights shared, and adapters."""

    settings: Settings

    def copied(self, teacher: nn.Module, settings: dmd2.Settings) -> nn.Module:
        """The fake score's denoiser as it starts: the teacher, for its adapters start without effect."""
        assert isinstance(settings, Settings)
        if settings.fake_lora is None:
            return super().copied(teacher, settings)
        shared = {id(parameter): parameter for parameter in teacher.parameters()}
        denoiser = deepcopy(teacher, shared)
        lora.adapt(denoiser, settings.fake_lora, 0, "objective.fake_lora")
        return denoiser

    @property
    def fake_passes(self) -> float:
        """Forward, and backward to inputs and, where the network is full, to weights."""
        return 3.0 if self.settings.fake_lora is None else 2.0

    def weighed(self, error: Tensor, time: Tensor) -> Tensor:
        """times a_t^2."""
        a, _ = signal_and_noise(self.schedule, time)
        return a.square() * error
