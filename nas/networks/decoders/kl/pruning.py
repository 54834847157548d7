"""A decoder with fewer channels and blocks, cut out of a trained one.

Channels are pruned uniformly, the same share at every level, as SnapFusion prunes its decoder by half (Li et al. 2023, arXiv
2306.00980, section 3.2; its criterion is not published). Here whole groups of the group norms go, so that what stays is
normalised as before; of every set of channels those groups stay whose weights, in and out, are largest in sum (Li et al.
2017, arXiv 1608.08710, ranks filters by the same norm). Blocks are pruned from the end of each level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.errors import InputError
from nas.networks.decoders.kl import Config, Level

if TYPE_CHECKING:
    from nas.networks.decoders.kl.network import Decoder

Labels = dict[str, tuple[str | None, ...]]  # tensor -> the set of channels that each of its first dimensions counts


def of_autoencoder(model: Any) -> Decoder:
    """The decoder of a diffusers `AutoencoderKL`, with its weights, as `nas.networks.decoders.kl`; without `post_quant_conv`."""
    settings, theirs = model.config, model.decoder
    levels = tuple(Level(width, settings["layers_per_block"] + 1) for width in settings["block_out_channels"])
    attention = theirs.mid_block.attentions[0] is not None
    channels, groups = settings["latent_channels"], settings["norm_num_groups"]
    ours = Config(levels, channels, len(theirs.mid_block.resnets), attention, groups).build()
    for mine, other in _pairs(ours, theirs):
        mine.load_state_dict(other.state_dict())
    return ours


def pruned(decoder: Decoder, groups: int, blocks: int | None = None) -> Decoder:
    """A new decoder with `groups` of the groups of every norm, and at most `blocks` residual blocks at each level.

    Raises InputError when there are not so many groups, or no block would stay.
    """
    config = decoder.config
    if not 1 <= groups <= config.groups or (blocks is not None and blocks < 1):
        raise InputError(
            f"pruning: {groups} groups and {blocks} blocks asked for, expected 1 .. {config.groups} groups"
        )
    levels = tuple(
        Level(level.channels * groups // config.groups, min(level.blocks, blocks or level.blocks))
        for level in config.levels
    )
    smaller = replace(config, levels=levels, groups=groups).build()
    weights, labels = decoder.state_dict(), labels_of(smaller)
    kept = _kept(weights, labels_of(decoder), groups, config.groups)
    smaller.load_state_dict({name: _sliced(weights[name], labels[name], kept) for name in smaller.state_dict()})
    return smaller


def labels_of(decoder: Decoder) -> Labels:
    """Which channels the dimensions of every tensor count. Levels of equal width are one residual stream, so one set."""
    labels: Labels = {}
    streams = _streams(decoder.config)
    inner = streams[-1]
    labels |= {"conv_in.weight": (inner, None), "conv_in.bias": (inner,)}
    for index in range(len(decoder.mid)):
        labels |= _residual(f"mid.{index}", inner, inner, False)
    if decoder.attention is not None:
        labels |= _norm("attention.norm", inner) | _layer("attention.to_out", inner, "attended")
        for name in ("to_q", "to_k", "to_v"):
            labels |= _layer(f"attention.{name}", "attended", inner)
    for level, stream in enumerate(streams):
        below = streams[min(level + 1, len(streams) - 1)]
        for index in range(decoder.config.levels[level].blocks):
            source = stream if index else below
            labels |= _residual(f"levels.{level}.{index}", source, stream, source != stream)
        if level:
            labels |= _layer(f"upsample.{level}", stream, stream)
    return labels | _norm("norm_out", streams[0]) | {"conv_out.weight": (None, streams[0]), "conv_out.bias": (None,)}


def _streams(config: Config) -> list[str]:
    names: list[str] = []
    for index, level in enumerate(config.levels):
        same = index and level.channels == config.levels[index - 1].channels
        names.append(names[-1] if same else f"stream {index}")
    return names


def _residual(name: str, source: str, target: str, shortcut: bool) -> Labels:
    hidden = f"{name} hidden"
    labels = _norm(f"{name}.norm1", source) | _layer(f"{name}.conv1", hidden, source)
    labels |= _norm(f"{name}.norm2", hidden) | _layer(f"{name}.conv2", target, hidden)
    return labels | (_layer(f"{name}.shortcut", target, source) if shortcut else {})


def _norm(name: str, channels: str) -> Labels:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _layer(name: str, outputs: str, inputs: str) -> Labels:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _kept(weights: dict[str, Tensor], labels: Labels, groups: int, of: int) -> dict[str, Tensor]:
    """The channels that stay, ascending, by the name of their set."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    for name, named in labels.items():
        if len(named) == 2:  # weights of layers, not biases or norms
            for place, channels in enumerate(named):
                if channels is not None:
                    others = [d for d in range(weights[name].dim()) if d != place]
                    sums[channels] = sums[channels] + weights[name].abs().sum(others)
    kept = {}
    for channels, total in sums.items():
        grouped = total.view(of, -1)
        best = grouped.sum(1).topk(groups).indices.sort().values
        kept[channels] = torch.arange(total.numel()).view(of, -1)[best].flatten()
    return kept


def _sliced(weight: Tensor, named: tuple[str | None, ...], kept: dict[str, Tensor]) -> Tensor:
    for place, channels in enumerate(named):
        if channels is not None:
            weight = weight.index_select(place, kept[channels])
    return weight


def _pairs(ours: Decoder, theirs: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Layers of the same meaning."""
    yield ours.conv_in, theirs.conv_in
    yield ours.norm_out, theirs.conv_norm_out
    yield ours.conv_out, theirs.conv_out
    residuals: list[tuple[Any, Any]] = list(zip(ours.mid, theirs.mid_block.resnets, strict=True))
    for index in range(len(ours.levels)):
        block, level = theirs.up_blocks[-1 - index], ours.levels[index]
        assert isinstance(level, nn.Sequential)
        residuals += zip(level, block.resnets, strict=True)
        if index:
            yield ours.upsample[index], block.upsamplers[0].conv
    for mine, other in residuals:
        yield from ((getattr(mine, name), getattr(other, name)) for name in ("norm1", "conv1", "norm2", "conv2"))
        if other.conv_shortcut is not None:
            yield mine.shortcut, other.conv_shortcut
    if ours.attention is not None:
        attention = theirs.mid_block.attentions[0]
        yield ours.attention.norm, attention.group_norm
        yield ours.attention.to_q, attention.to_q
        yield ours.attention.to_k, attention.to_k
        yield ours.attention.to_v, attention.to_v
        yield ours.attention.to_out, attention.to_out[0]
