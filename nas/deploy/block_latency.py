"""Latency of a denoiser as the sum of its blocks, each measured once on this machine: cheap enough to search with.

A table maps blocks to milliseconds. Blocks are timed in rounds, one after the other, so that none finds its weights in the
cache because it has just run, and what else the machine does falls on all alike. Inputs lie in memory as they do in a
network: tokens are a transposed image, which costs a transformer block 6.5 % (1,024 tokens, width 640), and skips are
concatenated on the spot. `benchmarks/block_latency.py` measures the error of the sum on whole networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nas.cost.latency_table import Block, Clock, Table
from nas.errors import InputError
from nas.networks.backbones.unet import Config, Level
from nas.networks.backbones.unet.blocks import blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.space.search_space import SearchSpace

MOST_MEMBERS = 200_000  # of a space that are all looked at for their blocks; of a larger one, this many at random


# --- a block as a module ---------------------------------------------------------------------------------------------


def build(block: Block) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The block with fresh weights, and inputs for one picture."""
    import torch

    from nas.networks.backbones.unet import network

    read = dict(block.settings)
    images = tuple(torch.randn(1, width, block.side, block.side) for width in block.inputs)
    image = images[0]
    if block.kind in ("downsample", "upsample"):
        return _resampling(block), (image,)
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


# --- tables ----------------------------------------------------------------------------------------------------------


def of_space(space: SearchSpace, latent_size: int, text_tokens: int) -> list[Block]:
    """Every block that members of a space are made of, in a fixed order. Raises InputError when these are no denoisers."""
    import random

    if space.family[0] != "backbones":
        raise InputError(
            f"--blocks: {space.name!r} holds {space.family[0]}, not denoisers; blocks of denoisers are measured"
        )
    rng = random.Random(0)
    if space.size() <= MOST_MEMBERS:
        members: Iterable[dict[str, Any]] = space.decided()
    else:
        members = (space.sample(rng) for _ in range(MOST_MEMBERS))
    found: set[Block] = set()
    for choices in members:
        found.update(blocks(space.architecture(choices), latent_size, text_tokens))
    return sorted(found, key=lambda block: block.name)


def measure(
    wanted: Sequence[Block], latent_size: int, text_tokens: int, threads: int = 1, rounds: int = 5, clock: Clock = "cpu"
) -> Table:
    """Time every block in PyTorch, `rounds` times in turn after one to warm up, and keep the medians."""
    import statistics
    import time

    import torch

    from nas.deploy.latency import EAGER
    from nas.machine import device

    spent: dict[str, list[float]] = {block.name: [] for block in wanted}
    now = time.process_time if clock == "cpu" else time.perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            built = [(block.name, *build(block)) for block in wanted]
            for round_ in range(rounds + 1):
                for name, module, inputs in built:
                    began = now()
                    module(*inputs)
                    if round_:
                        spent[name].append(1e3 * (now() - began))
    finally:
        torch.set_num_threads(before)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    words, fingerprint = device()
    return Table(medians, latent_size, text_tokens, threads, clock, rounds, EAGER, words, fingerprint)
