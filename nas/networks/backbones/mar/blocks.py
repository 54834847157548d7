"""The blocks that a masked autoregressor is made of, by everything their speed depends on."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from nas.cost.latency_table import Block
from nas.networks.backbones.mar import Config
from nas.networks.backbones.mar.cost import before

if TYPE_CHECKING:
    from torch import Tensor, nn


def blocks(config: Config, latent_size: int, text_tokens: int) -> Counter[Block]:
    """A block of each stack, and the rest: a network of no block."""
    config = config.canonical()
    side, settings = latent_size // config.patch, _settings(config, text_tokens)
    depths = {
        "aligner": config.aligner,
        "encoder": config.encoder_depth,
        "decoder": config.decoder_depth,
        "late": config.decoder_depth if config.text == "late_cross" else 0,
        "head": config.head_depth if config.codes is None else 0,
        "ends": 1,
    }
    return Counter(
        {
            Block(kind, side, (config.width,), config.head_width if kind == "head" else config.width, settings): depth
            for kind, depth in depths.items()
            if depth
        }
    )


def _settings(config: Config, text_tokens: int) -> tuple[tuple[str, Any], ...]:
    """The fields but depths, with the number of text tokens."""
    alike = replace(config, encoder_depth=1, decoder_depth=1, head_depth=1, aligner=0)
    plain = {name: value for name, value in asdict(alike).items() if (name, value) != ("codes", None)}
    return tuple(sorted({**plain, "tokens": text_tokens}.items()))


def build(block: Block) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The block with fresh weights, and inputs for one picture."""
    import torch

    from nas.networks.backbones.mar import network

    read = dict(block.settings)
    tokens = read.pop("tokens")
    config = Config(**read)
    if block.kind == "ends":
        side = block.side * config.patch
        text = torch.randn(1, tokens, config.text_width), torch.randn(1, config.pooled_width or 1)
        time = torch.zeros(1, dtype=torch.long)
        return _ends(config), (torch.randn(1, config.latent_channels, side, side), time, *text)
    if block.kind == "head":
        row = torch.randn(1, block.side**2, config.head_width)
        return network.HeadBlock(config.head_width), (row, row)
    first = before(tokens, config.text, config.buffer)
    rows = {"aligner": tokens, "encoder": first, "decoder": first + block.side**2, "late": block.side**2}[block.kind]
    cross = block.kind == "late" or (block.kind != "aligner" and config.text == "cross")
    made = network.Block(config, own=block.kind != "late", cross=cross)
    return made, (torch.randn(1, rows, config.width), torch.randn(1, tokens, config.width))


def _ends(config: Config) -> nn.Module:
    """What is around the blocks: a network without any."""
    from torch import nn

    from nas.networks.conditioning import Text

    whole = config.build()
    whole.encoder, whole.decoder, whole.late = (nn.ModuleList() for _ in range(3))
    if config.codes is None:
        whole.head.blocks = nn.ModuleList()

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, latents: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
            prediction: Tensor = self.whole(latents, time, Text(tokens, pooled))
            return prediction

    return Ends()
