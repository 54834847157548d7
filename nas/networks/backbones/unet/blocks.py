"""The blocks that a UNet is made of, by everything their speed depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

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
    return own + ((("text_width", config.text_width), ("tokens", text_tokens)) if level.cross_attention else ())
