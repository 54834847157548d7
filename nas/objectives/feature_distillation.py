"""A smaller network learns from the pictures and from a larger one: from what it predicts, and from what its stages put out.

BK-SDM (Kim et al. 2023, arXiv 2305.15798, eq. 1 to 4), of one noisy x_t, time and caption for both networks:

    L = L_task + w_out |f(x_t) - f_T(x_t)|^2 + w_feat sum_l |f_l(x_t) - f_T,l(x_t)|^2

each a mean over a tensor's elements; L_task is the plain denoising loss. The teacher is the study's base, without guidance. It
may have blocks that the student lacks; what is compared are the stages that both have, which must be alike.

Where we differ: a stage is what its last block puts out, before the image is resampled for the next. So stages of a network
whose innermost stage was removed (BK-SDM-Tiny) are compared like those of any other; the authors take another layer there.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from nas.diffusion import schedule
from nas.diffusion.plan import ALONG_A_PATH
from nas.diffusion.schedule import noise_schedule
from nas.errors import InputError
from nas.networks import stages
from nas.objectives import Distillation, LatentBatch

__all__ = ["Objective", "Settings", "check_teacher", "noise_schedule"]


class Settings(schedule.Settings):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    output_loss_weight: float = Field(1.0, ge=0)
    """w_out, of the distance to the teacher's prediction; theirs."""
    feature_loss_weight: float = Field(1.0, ge=0)
    """w_feat, of the distances to what the teacher's stages put out; theirs. 0 distils the prediction alone."""

    @model_validator(mode="after")
    def _distils(self) -> Settings:
        if self.output_loss_weight == self.feature_loss_weight == 0:
            raise ValueError("output_loss_weight and feature_loss_weight are both 0; expected objective denoising")
        return self


def check_teacher(settings: Settings, own: stages.Shapes, taught: stages.Shapes) -> None:
    """Raises InputError where stages are to be compared, and one of the student's is not the teacher's, or it has none."""
    if settings.feature_loss_weight == 0:
        return
    asked = f"objective.feature_loss_weight: {settings.feature_loss_weight:g}, but"
    if not own:
        raise InputError(f"{asked} the network names no stages (nas.networks.backbones.Staged); expected 0")
    for name, shape in own.items():
        if taught.get(name) != shape:
            there = f"puts out {_said(taught[name])} there" if name in taught else "has no such stage"
            raise InputError(
                f"{asked} stage {name} of the student puts out {_said(shape)} and its teacher (base) {there}; expected the "
                "teacher's widths and stages, or 0"
            )


def _said(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


class Objective(Distillation):
    """The three losses of one network, which need not start with the teacher's weights.

    Raises InputError without a teacher.
    """

    requires = frozenset({"teacher", "base"})
    solvers: tuple[str, ...] = (*ALONG_A_PATH, "one_step")
    guided_drawing = True
    measures_progress = True

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings):
        super().__init__(generator, teacher, settings)
        self.settings = settings

    @property
    def passes(self) -> float:
        """The student's 3, and the teacher's forward pass, though the teacher is larger."""
        return 4.0

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L. It logs its three terms, before their weights."""
        time, noise = batch.draw(self.steps)
        noisy, target = schedule.corrupted(self.schedule, batch.latents, time, noise)
        with stages.heard(self.teacher) as taught, torch.no_grad():
            answer = self.teacher(noisy, time, batch.text)
        with stages.heard(self.generator) as own:
            prediction = self.generator(noisy, time, batch.text)
        original, output = _distance(prediction, target), _distance(prediction, answer)
        feature = sum((_distance(found, taught[name]) for name, found in own.items()), start=torch.zeros_like(output))
        self.logged |= {
            "original_loss": original.detach(),
            "distillation_loss": output.detach(),
            "feature_loss": feature.detach(),
        }
        return original + self.settings.output_loss_weight * output + self.settings.feature_loss_weight * feature


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference, in float32."""
    return (one.float() - other.float()).square().mean()
