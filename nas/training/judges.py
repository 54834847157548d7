"""A small open_clip model trained on captioned pictures to tell which caption belongs to which picture, and its folder.

The loss is CLIP's (Radford et al. 2021, arXiv 2103.00020). Statistics of batch norms stay as they are: batches are small.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from nas.disk import files
from nas.metrics.clip_score import Judge
from nas.networks.conditioning import clip, clip_config
from nas.seeds import stream_seed
from nas.training.autoencoders import fingerprint
from nas.training.fitting import Fitting

WARMUP = 20  # updates


class Lessons(NamedTuple):
    """Captioned pictures."""

    pictures: Tensor  # (N, 3, H, W) in [-1, 1]
    captions: list[str]


class Contrast(Fitting[Lessons]):
    """A model that goes on from its weights, picture tower and text tower alike."""

    def __init__(self, judge: Judge, updates: int, batch: int = 64, rate: float = 3e-4, seed: int = 0):
        self.judge, self.model, self.seed, self.full = judge, judge.model, seed, rate
        self.model.eval().requires_grad_()
        adam = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
        super().__init__(self.model, adam, updates, batch)

    def loss(self, lessons: Lessons) -> Tensor:
        """The mean of both cross entropies; a caption that several pictures of the batch have is none's rival."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.step))
        rows = torch.randint(len(lessons.captions), (self.batch,), generator=generator)
        captions = [lessons.captions[row] for row in rows]
        seen = self.judge.pixels(augmented(lessons.pictures[rows], generator))
        pictures = self.model.encode_image(seen, normalize=True)
        texts = self.model.encode_text(self.judge.tokenizer(captions), normalize=True)
        scale = self.model.logit_scale.exp().clamp(max=100)
        return contrast(scale * pictures @ texts.T, captions)

    def rate(self) -> float:
        return self.full * min(1.0, (self.step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * self.step / self.updates))


def contrast(logits: Tensor, captions: list[str]) -> Tensor:
    """CLIP's loss of logits (B, B), pictures by captions, without the places of equal captions off the diagonal."""
    number = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    which = torch.tensor([number[caption] for caption in captions])
    twins = (which[:, None] == which) & ~torch.eye(len(captions), dtype=torch.bool)
    logits = logits.masked_fill(twins, -math.inf)
    own = torch.arange(len(captions))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted and scaled by up to 15 %, brighter or darker, half of them blurred, with a little noise; never mirrored."""
    size = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    scale, zero = uniform(0.85, 1.15), torch.zeros(size)
    shift_x, shift_y = uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    theta = torch.stack([scale, zero, shift_x, zero, scale, shift_y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    out = F.grid_sample(images - 1, grid, align_corners=False) + 1  # white outside
    blurred = F.interpolate(F.avg_pool2d(out, 2), scale_factor=2.0, mode="bilinear")
    out = torch.where((uniform(0, 1) < 0.5)[:, None, None, None], blurred, out)
    out = out * uniform(0.85, 1.15)[:, None, None, None] + uniform(-0.1, 0.1)[:, None, None, None]
    return (out + 0.05 * torch.randn(out.shape, generator=generator)).clamp(-1, 1)


def write(model: nn.Module, start: Path, folder: Path, about: Mapping[str, str]) -> None:
    """A folder that `judge` takes: the configuration and the vocabulary of the one it began with, and the weights, in half
    precision, which come last: a folder without them is no judge yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (clip_config.FILE, clip.BPE):
        shutil.copyfile(start / name, folder / name)
    kept = model.state_dict().items()
    tensors = {name: (v.half() if v.is_floating_point() else v).detach().contiguous() for name, v in kept}
    with files.replacing(folder / clip.WEIGHTS) as partial:
        save_file(tensors, partial, {**about, "fingerprint": fingerprint(tensors)})
