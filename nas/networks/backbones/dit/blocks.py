"""The blocks that a diffusion transformer is made of, by everything their speed depends on."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

from nas.cost.latency_table import Block
from nas.networks.backbones.dit import Config

if TYPE_CHECKING:
    from torch import Tensor, nn


def blocks(config: Config, latent_size: int, text_tokens: int) -> Counter[Block]:
    """A plain block, one that takes over a skip, and the rest: a network of no block."""
    config = config.canonical()
    side = latent_size // config.patch
    taking = sum(config.skip(index) for index in range(config.depth))
    found: Counter[Block] = Counter()
    for kind, count in (("block", config.depth - taking), ("block with skip", taking), ("ends", 1)):
        if count:
            found[Block(kind, side, (config.width,), config.width, _settings(config, text_tokens))] += count
    return found


def _settings(config: Config, text_tokens: int) -> tuple[tuple[str, Any], ...]:
    """The fields but depth, with the number of text tokens."""
    plain = {**asdict(replace(config, depth=2)), "tokens": text_tokens}
    return tuple(sorted(plain.items()))


def build(block: Block) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The block with fresh weights, and inputs for one picture."""
    import torch

    from nas.networks.backbones.dit import network

    read = dict(block.settings)
    tokens = read.pop("tokens")
    config = Config(**read)
    if block.kind == "ends":
        side = block.side * config.patch
        text = torch.randn(1, tokens, config.text_width), torch.randn(1, config.pooled_width or 1)
        return _ends(config), (
            torch.randn(1, config.latent_channels, side, side),
            torch.zeros(1, dtype=torch.long),
            *text,
        )
    length = block.side**2 + (tokens if config.text == "sequence" else 0) + (config.modulation == "token")
    row, text_row = torch.randn(1, length, config.width), torch.randn(1, tokens, config.width)
    time = torch.randn(1, 6, config.width) if config.modulation == "shared" else torch.randn(1, config.width)
    if block.kind == "block":
        return network.Block(0, config), (row, text_row, time)
    return _taking(network.Block(1, config)), (row, row, text_row, time)


def _ends(config: Config) -> nn.Module:
    """What comes before the blocks and after them: a network without any."""
    from torch import nn

    from nas.networks.conditioning import Text

    whole = config.build()
    whole.blocks = nn.ModuleList()

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, latents: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
            prediction: Tensor = self.whole(latents, time, Text(tokens, pooled))
            return prediction

    return Ends()


def _taking(block: nn.Module) -> nn.Module:
    """The block behind the layer that takes over a skip."""
    import torch
    from torch import nn

    class Taking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor, kept: Tensor, text: Tensor, time: Tensor) -> Tensor:
            skip = cast(nn.Linear, self.block.skip)
            found: Tensor = self.block(skip(torch.cat([x, kept], dim=-1)), text, time)
            return found

    return Taking()
