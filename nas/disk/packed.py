"""Weights stored in 8 bits: int8 with a scale per row of a matrix or kernel; what has one axis or few numbers stays as it is.

Rounding costs at most half of 1/127 of a row's largest weight, which for the shipped networks no score notices (studies/LOG.md).
`nas/assets/pack.py` packs a file; whoever reads weights unpacks them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALES = ":scales"  # the name of the tensor of all scales, of the packed tensors in the order of their names
FEWEST = 256  # numbers of a tensor that is packed


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, the large ones in 8 bits, the rest in half precision."""
    packed: dict[str, Tensor] = {}
    scales: list[Tensor] = []
    for name, tensor in sorted(tensors.items()):
        if tensor.ndim < 2 or tensor.numel() < FEWEST:
            packed[name] = tensor.half().contiguous()
            continue
        rows = tensor.float().flatten(1)
        scales.append(rows.abs().amax(dim=1).clamp(min=1e-12) / 127)
        packed[name] = (rows / scales[-1][:, None]).round().to(torch.int8).view(tensor.shape)
    return {**packed, SCALES: torch.cat([torch.zeros(0), *scales])}


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with those in 8 bits as float32. Raises ValueError when there are not as many scales as rows."""
    if SCALES not in tensors:
        return dict(tensors)
    whole = {name: tensor for name, tensor in tensors.items() if name != SCALES}
    stored = [name for name in sorted(whole) if whole[name].dtype == torch.int8]
    rows = [len(whole[name]) for name in stored]
    if sum(rows) != len(tensors[SCALES]):
        raise ValueError(f"{len(tensors[SCALES])} scales for {sum(rows)} rows in 8 bits")
    for name, scale in zip(stored, torch.split(tensors[SCALES].float(), rows), strict=True):
        whole[name] = (whole[name].flatten(1).float() * scale[:, None]).view(whole[name].shape)
    return whole
