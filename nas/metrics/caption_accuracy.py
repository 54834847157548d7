"""Caption accuracy: how often the judge finds a picture's caption among 100 others (chance: 1 in 101).

CLIP R-precision (Park et al. 2021) with fixed distractors: the same captions of the reference set stand against every picture,
so that trials compare.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torchmetrics import Metric

from nas.metrics import Reference
from nas.metrics.clip_score import OTHERWISE, Judge, Settings, check, weights

__all__ = ["OTHERWISE", "Settings", "build", "check", "columns", "weights"]
CAPTIONED = True
OTHERS = 100


def columns(settings: Settings) -> tuple[str, ...]:
    return ("caption_accuracy",)


def build(settings: Settings, reference: Reference) -> CaptionAccuracy:
    """The metric, with its pool of captions drawn from the real pictures' captions."""
    return CaptionAccuracy(Judge(settings), reference.captions)


class CaptionAccuracy(Metric):
    """Share of pictures whose caption has a larger cosine than all of the others."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    columns = ("caption_accuracy",)
    unit = "share of pictures"

    def __init__(self, judge: Judge, pool: list[str], others: int = OTHERS):
        super().__init__()
        different = sorted(set(pool))
        self.pool = random.Random(0).sample(different, min(others, len(different)))
        self.judge, self.conditions = judge, {**judge.conditions, "others": len(self.pool)}
        self.pool_features = judge.captions(self.pool)
        self.right: Tensor
        self.count: Tensor
        self.add_state("right", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor, captions: list[str]) -> None:
        drawn, own = self.judge.images(images), self.judge.captions(captions)
        rivals = drawn @ self.pool_features.T
        same = torch.tensor([[caption == other for other in self.pool] for caption in captions])
        rivals[same] = -1.0  # a caption is no rival of itself
        self.right += ((drawn * own).sum(1) > rivals.max(1).values).sum()
        self.count += len(captions)

    def compute(self) -> dict[str, Tensor]:
        if self.count == 0:
            raise ValueError("caption_accuracy: no pictures")
        return {"caption_accuracy": self.right / self.count}
