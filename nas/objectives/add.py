"""ADD: a diffusion model fine-tuned into a generator of few steps by an adversary that looks at pictures.

Adversarial diffusion distillation (Sauer et al. 2023, arXiv 2311.17042). The student G predicts clean latents x' from real ones
x_0 noised to one of a few fixed times s. V is the image decoder, F_k are the stages of a frozen network that was trained on
pictures, and small heads D_k on them, which know the caption and what x_0 shows, tell V(x') from V(x_0) (eq. 2 to 4):

    L_D = sum_k E max(0, 1 - D_k(F_k(V(x_0)))) + E max(0, 1 + D_k(F_k(V(x')))) + R1
    L_G = -sum_k E D_k(F_k(V(x'))) + lambda E c(u) |V(x') - sg(V(x^(x'_u, u, c)))|^2

The last term draws what is made to the clean latents x^ that the teacher predicts from x' noised to a time u. R1 is the squared
slope of each head in its own input. The heads start undecided.

Where we differ: F is the network of `features`, by default the EfficientNet-Lite0 that the metrics `fid` and `mind` read too, so
that these say less of its students than others do; DINOv2 and other models of timm go by path. What x_0 shows is the mean of F's
last stage, of the same network. Real pictures are as the autoencoder gives them back, so that the adversary learns nothing of
what it loses. The last time is no pure noise unless `zero_terminal_snr` says so. Draw with a `one_step` or `renoise` plan,
without guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas.diffusion.plan import Plan
from nas.diffusion.schedule import noise_schedule, signal_and_noise
from nas.diffusion.solvers import times
from nas.networks import feature_maps
from nas.networks.adversary import ConditionedHead, frozen
from nas.objectives import Distillation, LatentBatch, Pictures, ladd

__all__ = ["Objective", "Settings", "noise_schedule"]


class Settings(ladd.Game):
    """`prediction` and `zero_terminal_snr` must be what the teacher was trained with."""

    features: str = feature_maps.SHIPPED
    """F: a model of timm whose stages are read, such as `vit_small_patch14_dinov2`."""
    weights: Path | None = None
    """Its weights, a local file. None: those of EfficientNet-Lite0, which come with the installation."""
    feature_size: int | None = Field(None, ge=8, le=1024)
    """Pixels along a side of what F sees. None: pictures as they are."""
    condition: Literal["text_image", "text", "none"] = "text_image"
    """What the heads know beside the features: the pooled caption, and what the real picture shows, which noise leaves to be
    seen."""


def check(settings: Settings, updates: int) -> None:
    """Raises InputError for a feature network that is not there."""
    feature_maps.check(settings.features, settings.weights)


class Heads(nn.Module):
    """A head on every stage. Logits (B, positions) of each."""

    def __init__(self, widths: Sequence[int], conditions: int):
        super().__init__()
        self.heads = nn.ModuleList(ConditionedHead(width, conditions, seed) for seed, width in enumerate(widths))

    def forward(self, stages: Sequence[Tensor], conditions: Tensor) -> list[Tensor]:
        return [head(stage, conditions) for head, stage in zip(self.heads, stages, strict=True)]


class Objective(ladd.Objective):
    """Both losses, over a student and heads on the frozen stages of a picture network, through the frozen image decoder.

    The student must start with the teacher's weights (it may train adapters only). Raises InputError without a teacher, and as
    `nas.networks.feature_maps.load`.
    """

    requires = frozenset({"teacher", "pictures"})
    settings: Settings  # type: ignore[assignment]

    def __init__(self, generator: nn.Module, teacher: nn.Module | None, settings: Settings, pictures: Pictures):
        Distillation.__init__(self, generator, teacher, settings)
        self.settings = settings
        self.decoder = pictures.decoder
        self.feature_network = feature_maps.load(settings.features, settings.weights, settings.feature_size)
        widths = self.feature_network.widths()
        known = {"none": 0, "text": pictures.pooled_width, "text_image": pictures.pooled_width + widths[-1]}
        self.discriminator = Heads(widths, known[settings.condition])
        self.times = times(Plan(solver="renoise", steps=settings.student_sample_steps), self.steps)

    @property
    def passes(self) -> float:
        """The student's update: 3, and the teacher's prediction; D's turn: 1. What the image decoder and the feature network take
        is not among them, and is most of the time of a small network."""
        predictions = 0 if self.settings.distillation == "none" else 1 if self.settings.guidance_scale == 1 else 2
        return 3 + predictions + 1 / self.settings.critic_every

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        """L_G."""
        made = self._made(batch)
        drawn, conditions = self.decoder(made), self._conditions(batch, None)
        with frozen(self.discriminator):
            logits = self.discriminator(self.feature_network(drawn), conditions)
        fooled = -torch.stack([each.mean() for each in logits]).sum()
        self.logged["gan_loss_gen"] = fooled.detach()
        if self.settings.distillation == "none":
            return fooled
        distilled = self._pixels(made, drawn, batch)
        self.logged["distillation_loss"] = distilled.detach()
        return fooled + self.settings.distillation_weight * distilled

    def critic_loss(self, batch: LatentBatch) -> Tensor:
        """L_D."""
        with torch.no_grad():
            fakes = self.feature_network(self.decoder(self._made(batch)))
            reals = self.feature_network(self.decoder(batch.latents))
            conditions = self._conditions(batch, reals)
        fake = self.discriminator(fakes, conditions)
        real = self.discriminator([stage.requires_grad_() for stage in reals], conditions)
        hinges = [F.relu(1 + f).mean() + F.relu(1 - r).mean() for f, r in zip(fake, real, strict=True)]
        loss = torch.stack(hinges).sum()
        self.logged |= {
            "gan_loss_disc": loss.detach(),
            "critic_accuracy_fake": (_votes(fake) < 0).float().mean(),
            "critic_accuracy_real": (_votes(real) > 0).float().mean(),
        }
        return loss + self._slopes(real, reals) if self.settings.gradient_penalty else loss

    @torch.no_grad()
    def _conditions(self, batch: LatentBatch, reals: Sequence[Tensor] | None) -> Tensor:
        """(B, D): the pooled caption, and the mean of the real picture's last stage, of `reals` if they are at hand."""
        pooled = batch.text.pooled.float()
        if self.settings.condition != "text_image":
            return pooled
        stages = self.feature_network(self.decoder(batch.latents)) if reals is None else reals
        return torch.cat([pooled, stages[-1].mean(2)], dim=1)

    def _pixels(self, made: Tensor, drawn: Tensor, batch: LatentBatch) -> Tensor:
        """Mean of c(u) |V(x') - V(x^)|^2 over the batch and all pixels."""
        target, time = self._taught(made, batch)
        a, s = signal_and_noise(self.schedule, time)
        weight = a if self.settings.distillation == "exponential" else a * s / 2
        with torch.no_grad():
            wanted = self.decoder(target)
        pixels: Tensor = (weight * (drawn - wanted).square()).mean()
        return pixels

    def _slopes(self, logits: Sequence[Tensor], stages: Sequence[Tensor]) -> Tensor:
        """The weighted R1 of every head in its own input, summed."""
        total = torch.stack([each.sum() for each in logits]).sum()
        slopes = torch.autograd.grad(total, list(stages), create_graph=True)
        squares = torch.stack([slope.square().flatten(1).sum(1).mean() for slope in slopes]).sum()
        penalty = self.settings.gradient_penalty / 2 * squares
        self.logged["gradient_penalty"] = penalty.detach()
        return penalty


def _votes(logits: Sequence[Tensor]) -> Tensor:
    """The mean logit (B,) over heads."""
    return torch.stack([each.detach().mean(1) for each in logits]).mean(0)
