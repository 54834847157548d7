"""Classifier-free guidance (Ho & Salimans 2022, eq. 6): null + w (cond - null), w = 1 for none.

LCM and PixArt-delta write cond + w' (cond - null), which is w = 1 + w'.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nas.networks.conditioning import Text

Denoiser = Callable[[Tensor, Tensor, Text], Tensor]  # latents (B, C, H, W), times (B,), text -> prediction


def guided(network: Denoiser, noisy: Tensor, time: Tensor, text: Text, null: Text, scale: Tensor | float) -> Tensor:
    """The network's prediction (B, C, H, W), float32, under the text, guided away from the one row of `null`.

    `scale` is one number, or one a row, (B, 1, 1, 1). Scale 1 costs one pass, any other two, side by side in one batch.
    """
    return guided_and_plain(network, noisy, time, text, null, scale)[0]


def guided_and_plain(
    network: Denoiser, noisy: Tensor, time: Tensor, text: Text, null: Text, scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """`guided`, and the prediction under the text alone that it was made of, at no further pass."""
    if not isinstance(scale, Tensor) and scale == 1:
        plain: Tensor = network(noisy, time, text)
        return plain.float(), plain.float()
    both = Text(*(torch.cat([n.expand(len(noisy), *n.shape[1:]), t]) for n, t in zip(null, text, strict=True)))
    prediction: Tensor = network(torch.cat([noisy, noisy]), torch.cat([time, time]), both)
    unconditional, conditional = prediction.float().chunk(2)
    return unconditional + scale * (conditional - unconditional), conditional
