"""Embeddings of pictures that a denoiser is conditioned on, by a frozen network, and how they are joined to captions.

B rows, F the width of the network's features, E that of an embedding. Kandinsky (Razzhigaev et al. 2023, arXiv 2310.03502) takes
CLIP's embedding, and gives it to the network by its time embedding and by ten tokens. Here it goes into the pooled vector, which
every family takes that has one; tokens are the architecture's affair (`pooled_tokens` of a UNet).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.networks import efficientnet
from nas.networks.conditioning import Text

SIZE = 64  # pixels at which the network sees pictures
FLOOR = 1e-3  # of the largest standard deviation of a component; smaller ones are not blown up


def features(pictures: Iterable[Tensor]) -> Tensor:
    """(N, F) of batches of pictures (B, 3, H, W) in [-1, 1]."""
    network = efficientnet.load()
    return torch.cat([efficientnet.features(network, _resized(some)) for some in pictures])


def blank() -> Tensor:
    """The picture (1, 3, SIZE, SIZE) whose embedding means none: all zero, as Kandinsky's, a middle grey."""
    return torch.zeros(1, 3, SIZE, SIZE)


def _resized(images: Tensor) -> Tensor:
    if images.shape[-1] == SIZE:
        return images
    return F.interpolate(images, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(-1, 1)


@dataclass(frozen=True)
class Projection:
    """Principal components of features, each with mean 0 and variance 1."""

    mean: Tensor  # (F,)
    directions: Tensor  # (F, E), each divided by the standard deviation along it

    @classmethod
    def fitted(cls, found: Tensor, width: int) -> Projection:
        """To features (N, F), the `width` components of largest variance."""
        mean = found.double().mean(0)
        triangle = torch.linalg.qr((found.double() - mean) / (len(found) - 1) ** 0.5, mode="r").R
        _, spread, rows = torch.linalg.svd(triangle, full_matrices=False)
        spread, vectors = spread[:width], rows[:width].T
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # the sign is open
        return cls(mean.float(), (vectors / spread.clamp_min(FLOOR * spread[0])).float())

    def __call__(self, found: Tensor) -> Tensor:
        """Embeddings (B, E) of features (B, F)."""
        return (found - self.mean) @ self.directions


def joined(how: Literal["alone", "with_text"], text: Text, image: Tensor, null: Text) -> Text:
    """What the denoiser reads of captions with embeddings (B, E); `null` is the empty caption, one row."""
    if how == "alone":
        return Text(null.tokens.expand_as(text.tokens), image)
    return Text(text.tokens, torch.cat([text.pooled, image], 1))


def width(how: str, pooled: int, image: int) -> int:
    """Of the pooled vector that the denoiser reads."""
    return {"none": pooled, "alone": image, "with_text": pooled + image}[how]
