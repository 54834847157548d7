"""The blocks that a UNet is made of, by everything their speed depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from nas.cost.latency_table import Block, Fields
from nas.networks.backbones.unet import Config, Level


def blocks(config: Config, latent_size: int, text_tokens: int) -> Counter[Block]:
    """The blocks of one call of the network on latents of side `latent_size`, and how often each runs."""
    found: Counter[Block] = Counter()
    for index, level in enumerate(config.levels):
        found.update(_level_blocks(config, index, level, latent_size >> index, text_tokens))
    outer = config.levels[0].channels
    ends = _fields(config, "groups", "latent_channels", "pooled_width", "time_width")
    found[Block("ends", latent_size, (config.latent_channels,), outer, ends)] += 1
    if config.pooled_width and config.pooled_tokens:
        of = (("tokens", config.pooled_tokens),)
        found[Block("pooled tokens", 1, (config.pooled_width,), config.text_width, of)] += 1
    return found


def _level_blocks(config: Config, index: int, level: Level, side: int, text_tokens: int) -> Iterator[Block]:
    last = len(config.levels) - 1
    above, below = config.levels[max(index - 1, 0)].channels, config.levels[min(index + 1, last)].channels
    width, middle = level.channels, config.middle(index)
    inputs: list[tuple[int, ...]] = [(above,), *[(width,)] * (len(level.down) - 1 + len(middle))]
    skips = config.skip_widths(index)
    inputs += [(i, s) if s else (i,) for i, s in zip([below, *[width] * (len(level.up) - 1)], skips, strict=True)]
    depths = (*level.down, *middle, *level.up) if level.attends else ()
    conv = _fields(config, "groups", "time_width") + (("conv", level.conv), ("kernel", level.kernel))
    conv += (("expansion", config.expansion),) if level.conv == "separable" else ()
    for widths in inputs:
        yield Block("conv", side, widths, width, conv)
    for depth in depths:
        for stack in config.stacks(depth):
            yield Block("projections", side, (width,), width, _fields(config, "groups"))
            yield from [Block("transformer", side, (width,), width, _transformer(config, level, text_tokens))] * stack
    if index < last:
        yield Block("downsample", side, (width,), width, ())
    if index > 0:
        yield Block("upsample", side, (width,), width, ())


def _fields(config: Config, *names: str) -> Fields:
    return tuple((name, getattr(config, name)) for name in names)


def _transformer(config: Config, level: Level, text_tokens: int) -> Fields:
    own: Fields = (("self_attention", level.self_attention), ("cross_attention", level.cross_attention))
    own += (("ffn_ratio", level.ffn_ratio), ("heads", config.head_count(level.channels)))
    own += _fields(config, "activation", "attention")
    own += _fields(config, "shared_kv") if level.self_attention else ()
    return own + (
        (("text_width", config.text_width), ("tokens", config.pooled_tokens + text_tokens))
        if level.cross_attention
        else ()
    )


def build(block: Block) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The block with fresh weights, and inputs for one picture."""
    import torch

    from nas.networks.backbones.unet import network

    read = dict(block.settings)
    images = tuple(torch.randn(1, width, block.side, block.side) for width in block.inputs)
    image = images[0]
    if block.kind in ("downsample", "upsample"):
        return _resampling(block), (image,)
    if block.kind == "pooled tokens":
        return nn.Linear(block.inputs[0], read["tokens"] * block.channels), (torch.randn(1, block.inputs[0]),)
    if block.kind == "ends":
        return _ends(block, read), (image, torch.zeros(1, dtype=torch.long), torch.randn(1, read["pooled_width"] or 1))
    config, level = _around(block, read)
    if block.kind == "conv":
        made = network.CONVOLUTIONS[level.conv](block.inputs, block.channels, config, level.kernel)
        return _joined(made), (torch.randn(1, config.time_width), *images)
    tokens = torch.randn(1, read.get("tokens", 1), config.text_width)
    if block.kind == "projections":
        return network.Stack(0, level, config), (image, tokens)
    return network.TransformerBlock(level, config), (image.flatten(2).transpose(1, 2), tokens)  # as a stack hands it on


def _around(block: Block, read: dict[str, Any]) -> tuple[Config, Level]:
    """A network of one level, of which the block could be part."""
    of_level = {
        name: read[name]
        for name in ("self_attention", "cross_attention", "ffn_ratio", "conv", "kernel")
        if name in read
    }
    level = Level(block.channels, (1,), (1,), **of_level)
    names = ("groups", "time_width", "expansion", "activation", "attention", "shared_kv", "text_width")
    given: dict[str, Any] = {"groups": 1, "head_dim": None, "heads": read.get("heads", 1)}
    given |= {name: read[name] for name in names if name in read}
    return Config((level,), **given), level


def _joined(conv: nn.Module) -> nn.Module:
    """The block behind the concatenation of its inputs, where it has several."""
    import torch
    from torch import nn

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, time: Tensor, *images: Tensor) -> Tensor:
            found: Tensor = self.conv(torch.cat(images, dim=1) if len(images) > 1 else images[0], time)
            return found

    return Joined()


def _resampling(block: Block) -> nn.Module:
    from torch import nn

    width = block.channels
    if block.kind == "downsample":
        return nn.Conv2d(width, width, 3, stride=2, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(width, width, 3, padding=1))


def _ends(block: Block, read: dict[str, Any]) -> nn.Module:
    """First and last convolution and the embedding: what a network without levels would be."""
    from torch import nn

    whole = Config((Level(block.channels, (0,), (0,)),), **read).build()

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.conv_in = whole.embedding, whole.conv_in
            self.norm_out, self.conv_out = whole.norm_out, whole.conv_out

        def forward(self, latents: Tensor, time: Tensor, pooled: Tensor) -> Tensor:
            shift = nn.functional.silu(self.embedding(time, pooled)).mean()
            hidden = self.norm_out(self.conv_in(latents)) + shift
            prediction: Tensor = self.conv_out(nn.functional.silu(hidden))
            return prediction

    return Ends()
