"""Edge maps: where a picture's brightness changes, and how well two such maps agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
THRESHOLD = 0.5
"""Of the length of Sobel's gradient of brightness in 0 .. 1, whose largest value is 4 sqrt(2); a step of an eighth across a
straight edge has 0.5 (assumption: looks like outlines on the emoji)."""


def edges(images: Tensor) -> Tensor:
    """Binary edge maps (B, 1, H, W), 0 or 1, of pictures (B, 3, H, W) in [-1, 1]: Sobel's gradient above THRESHOLD."""
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1) / 2
    brightness = F.pad((images * weights).sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    gradient = F.conv2d(brightness, torch.stack([across, across.T])[:, None])
    return (gradient.square().sum(1, keepdim=True).sqrt() > THRESHOLD).float()


def agreement(found: Tensor, wanted: Tensor, tolerance: int = 1) -> Tensor:
    """The boundary F-measure (B,) of binary maps (B, 1, H, W): an edge is matched by one at most `tolerance` pixels away.

    Precision and recall as Martin, Fowlkes and Malik 2004 use them, by dilation instead of one-to-one assignment. Two maps
    without any edge agree fully; one without and one with, not at all.
    """
    precision, recall = _matched(found, wanted, tolerance), _matched(wanted, found, tolerance)
    both = precision + recall
    return torch.where(both > 0, 2 * precision * recall / both.clamp_min(1e-12), torch.zeros_like(both))


def _matched(edges: Tensor, near: Tensor, tolerance: int) -> Tensor:
    """Share of the edges that lie near the other map's, (B,); without edges, whether the other has none either."""
    wide = F.max_pool2d(near, 2 * tolerance + 1, stride=1, padding=tolerance)
    count = edges.flatten(1).sum(1)
    nothing = (near.flatten(1).sum(1) == 0).float()
    return torch.where(count > 0, (edges * wide).flatten(1).sum(1) / count.clamp_min(1), nothing)
