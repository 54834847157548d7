"""Networks of one architecture that were fine-tuned apart, from one start: asked by time, or merged into one.

Merging adds task vectors to the start's weights (Ilharco et al. 2023, arXiv 2212.04089, section 2), as DeMe (Ma et al. 2024,
arXiv 2410.06664) does with experts for ranges of the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nas.networks.conditioning import Text

State = Mapping[str, Tensor]


def merged(start: State, experts: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """theta + sum_i w_i (theta_i - theta) of every floating tensor; others are the start's.

    Summed in float64 as (1 - sum_i w_i) theta + sum_i w_i theta_i, which is the start for weights of zero and an expert for its
    own weight of 1 alone, to the bit.
    """
    rest = 1 - sum(weights)
    found = {}
    for name, tensor in start.items():
        total = tensor.double() * rest
        for expert, weight in zip(experts, weights, strict=True):
            total += weight * expert[name].double()
        found[name] = total.to(tensor.dtype) if tensor.is_floating_point() else tensor.clone()
    return found


class Experts(nn.Module):
    """A denoiser that asks one of its networks, by time: network i from boundary i - 1 on and below boundary i, or as it is told.

    It costs a pass of one network, and the memory of all.
    """

    boundaries: Tensor

    def __init__(self, networks: Sequence[nn.Module], boundaries: Sequence[int]):
        super().__init__()
        self.experts = nn.ModuleList(networks)
        self.register_buffer("boundaries", torch.tensor(boundaries, dtype=torch.int64))
        self._told: Callable[[], int] | None = None

    @contextmanager
    def told(self, which: Callable[[], int]) -> Iterator[None]:
        """Inside, every row is asked of the network of this number, whatever its time."""
        self._told = which
        try:
            yield
        finally:
            self._told = None

    def forward(self, latents: Tensor, time: Tensor, text: Text) -> Tensor:
        """The prediction (B, C, H, W) for latents of that shape at times (B,)."""
        if self._told is not None:
            told: Tensor = self.experts[self._told()](latents, time, text)
            return told
        which = torch.bucketize(time.contiguous(), self.boundaries, right=True)
        asked = [(which == index).nonzero().squeeze(1) for index in range(len(self.experts))]
        parts = [
            expert(latents[rows], time[rows], Text(text.tokens[rows], text.pooled[rows]))
            for expert, rows in zip(self.experts, asked, strict=True)
            if len(rows)
        ]
        prediction: Tensor = torch.cat(parts)[torch.cat(asked).argsort()]
        return prediction


def count(names: Iterable[str]) -> int:
    """How many networks the state of an `Experts` holds, by the names of its tensors; 0 for any other network's."""
    found = (re.match(r"experts\.(\d+)\.", name) for name in names)
    return max((1 + int(one.group(1)) for one in found if one), default=0)
