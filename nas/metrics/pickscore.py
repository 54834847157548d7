"""PickScore: what people who compared two pictures of a caption would choose (Kirstain et al. 2023, arXiv 2305.01569), averaged.

100 times a cosine with the weights that its authors published: differences count, not values. Needs the extra `preference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric

from nas.documents.section import Section
from nas.metrics import Reference
from nas.metrics.fid import resized
from nas.networks import preference

CAPTIONED = True


class Settings(Section):
    """Whose weights."""

    weights: Path | None = None
    """A folder with config.json and model.safetensors of huggingface.co/yuvalkirstain/PickScore_v1, and
    preprocessor_config.json and tokenizer.json of huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K. Nothing is downloaded."""


def columns(settings: Settings) -> tuple[str, ...]:
    return ("pickscore",)


def check(settings: Settings, captions: Sequence[str]) -> None:
    """Raises InputError, beginning with the setting, for a file that is not there."""
    preference.check_pickscore(settings.weights)


def build(settings: Settings, reference: Reference) -> Preference:
    """The metric; it needs no real pictures."""
    check(settings, ())
    assert settings.weights is not None
    return Preference("pickscore", "logit", preference.pickscore(settings.weights))


class Preference(Metric):
    """Mean over pictures of a scorer's opinion of each beside its caption."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, column: str, unit: str, scorer: preference.Scorer):
        super().__init__()
        self.columns, self.unit = (column,), unit
        self.scorer, self.conditions = scorer, scorer.conditions
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor, captions: list[str]) -> None:
        self.total += self.scorer.score(resized(images, preference.SIZE), captions).double().sum()
        self.count += len(captions)

    def compute(self) -> dict[str, Tensor]:
        if self.count == 0:
            raise ValueError(f"{self.columns[0]}: no pictures")
        return {self.columns[0]: self.total / self.count}
