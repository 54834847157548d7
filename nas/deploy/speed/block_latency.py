"""Latency of a denoiser as the sum of its blocks, each measured once on this machine: cheap enough to search with.

A table maps blocks to milliseconds. Blocks are timed in rounds, one after the other, so that none finds its weights in the
cache because it has just run, and what else the machine does falls on all alike. Inputs lie in memory as they do in a
network: tokens are a transposed image, which costs a transformer block 6.5 % (1,024 tokens, width 640), and skips are
concatenated on the spot. `benchmarks/block_latency.py` measures the error of the sum on whole networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nas.cost.latency_table import Block, Clock, Table
from nas.deploy.speed.latency import EAGER
from nas.errors import InputError
from nas.machine import device

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.space.search_space import SearchSpace

MOST_MEMBERS = 200_000  # of a space that are all looked at for their blocks; of a larger one, this many at random


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
        found.update(space.architecture(choices).blocks(latent_size, text_tokens))
    return sorted(found, key=lambda block: block.name)


def measure(
    wanted: Sequence[Block],
    build: Callable[[Block], tuple[nn.Module, tuple[Tensor, ...]]],
    latent_size: int,
    text_tokens: int,
    threads: int = 1,
    rounds: int = 5,
    clock: Clock = "cpu",
) -> Table:
    """Time every block, as `build` makes it with inputs for one picture, in PyTorch: `rounds` times in turn after one to
    warm up. The table holds medians."""
    import statistics
    import time

    import torch

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
