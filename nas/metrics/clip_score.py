"""CLIP score: 100 x the cosine between a picture and its caption, averaged (Hessel et al. 2021, without their factor 2.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric

from nas import assets
from nas.documents.section import Section
from nas.errors import InputError, about
from nas.metrics import Reference
from nas.metrics.fid import resized
from nas.networks.conditioning import clip

CAPTIONED = True
SHIPPED = assets.FOLDER / "judge"


class Settings(Section):
    """Which judge. Never the text encoder that conditions the model."""

    judge: str = "shipped"
    """`shipped` (a small open_clip model trained on the emoji set), a folder, or an open_clip name such as ViT-g-14."""
    pretrained: str | None = None
    """A pretrained tag (laion2b_s34b_b88k, ...) or a checkpoint file; an HPS v2 checkpoint is a ViT-H-14 judge, a file of
    OpenAI's, DFN's or MetaCLIP's a ViT-L-14-quickgelu, and so on."""


OTHERWISE = "judge: one that nas prepare trains, or a model of open_clip"


def weights(settings: Settings) -> Path | None:
    """Where those lie that ship or are a folder's."""
    if settings.judge == "shipped":
        return SHIPPED
    return Path(settings.judge) if Path(settings.judge).is_dir() else None


def columns(settings: Settings) -> tuple[str, ...]:
    return ("clip_score",)


def check(settings: Settings, captions: Sequence[str]) -> None:
    """Raises InputError, beginning with the setting, for a judge that is known not to be there."""
    if settings.judge != "shipped":
        with about("judge"):
            clip.check(settings.judge, settings.pretrained)


def build(settings: Settings, reference: Reference) -> ClipScore:
    """The metric; it needs no real pictures."""
    return ClipScore(Judge(settings))


class Judge:
    """Unit-norm features of pictures and captions."""

    def __init__(self, settings: Settings):
        where = SHIPPED if settings.judge == "shipped" else settings.judge
        self.model, self.tokenizer = clip.load(where, settings.pretrained)
        size = getattr(self.model.visual, "image_size", None)
        if size is None:
            raise InputError(f"metrics.judge: {settings.judge} has no picture tower")
        self.size = size[0] if isinstance(size, tuple | list) else int(size)
        mean, std = self.model.visual.image_mean, self.model.visual.image_std
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.conditions = {"judge": settings.judge, "pretrained": settings.pretrained}
        if known := clip.fingerprint(where):
            self.conditions["weights"] = known
        if clip.quick_gelu(where, settings.pretrained):
            self.conditions["activation"] = "quick_gelu"

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E)."""
        features: Tensor = self.model.encode_image(self.pixels(images), normalize=True)
        return features

    def pixels(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] as its picture tower takes them."""
        return (resized(images, self.size) / 2 + 0.5 - self.mean) / self.std

    @torch.no_grad()
    def captions(self, captions: list[str]) -> Tensor:
        """B captions -> (B, E)."""
        features: Tensor = self.model.encode_text(self.tokenizer(captions), normalize=True)
        return features


class ClipScore(Metric):
    """Mean over pictures. Captions' features are kept, because trials draw the same ones."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    columns = ("clip_score",)
    unit = "100 x cosine"

    def __init__(self, judge: Judge):
        super().__init__()
        self.judge, self.conditions = judge, judge.conditions
        self._known: dict[str, Tensor] = {}
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor, captions: list[str]) -> None:
        cosines = (self.judge.images(images) * self._captions(captions)).sum(1)
        self.total += 100 * cosines.double().sum()
        self.count += len(captions)

    def compute(self) -> dict[str, Tensor]:
        if self.count == 0:
            raise ValueError("clip_score: no pictures")
        return {"clip_score": self.total / self.count}

    def _captions(self, captions: list[str]) -> Tensor:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            self._known |= dict(zip(new, self.judge.captions(new), strict=True))
        return torch.stack([self._known[caption] for caption in captions])
