"""Blocks that are left out of an update by chance, so that a network learns to do without any of them.

SnapFusion's robust training (Li et al. 2023, arXiv 2306.00980, section 4.1): each residual and each transformer block is
computed, or replaced by the identity, independently in every update; it is stochastic depth (Huang et al. 2016, arXiv
1603.09382) without their rescaling of what is drawn afterwards. Where we fill in or differ:
- The identity is possible only where a block keeps the width. Elsewhere its projection of the input stays.
- At most half of the blocks are left out at once.
- What `nas.cost.units` counts are branches inside blocks, to which others of a block's terms (the time's in a separable
  convolution) may be added. A block is left out as a whole: `nas.networks.backbones.Residual`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.errors import InputError
from nas.networks.backbones import Residual


@dataclass(frozen=True)
class Blocks:
    """The residual blocks of a network."""

    members: tuple[nn.Module, ...]
    """Those that hold no others: these are drawn."""
    holders: tuple[tuple[nn.Module, tuple[int, ...]], ...]
    """Those that hold others, each with the places of these among the members."""
    names: tuple[str, ...]
    """Of the members, as the network's modules are named."""


def blocks_of(network: nn.Module) -> Blocks:
    """All of them, in the order of the network's modules."""
    inside = {module: [m for m in module.modules() if isinstance(m, Residual)] for module in _residual(network)}
    members = [module for module, held in inside.items() if len(held) == 1]
    places = {module: place for place, module in enumerate(members)}
    holders = (
        (module, tuple(places[m] for m in held if m in places)) for module, held in inside.items() if len(held) > 1
    )
    names = {module: name for name, module in network.named_modules()}
    return Blocks(tuple(members), tuple(holders), tuple(names[module] for module in members))


def _residual(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, Residual)]


def drawn(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which of so many blocks are left out (count,): each with this probability, and at most half of them."""
    chance = torch.rand(count, generator=generator)
    dropped = chance < probability
    dropped[chance.argsort()[count // 2 :]] = False
    return dropped


@contextmanager
def dropping(blocks: Blocks, dropped: Tensor) -> Iterator[None]:
    """Within it the network is without the members that are True (members,), and without blocks that hold none but such."""
    out = dropped.tolist()
    gone = [module for module, left in zip(blocks.members, out, strict=True) if left]
    gone += [module for module, places in blocks.holders if all(out[place] for place in places)]
    with ExitStack() as changed:
        for module in gone:
            vars(module)["forward"] = module.skipped
            changed.callback(vars(module).pop, "forward")
        yield


def check(network: nn.Module) -> None:
    """Raises InputError when a network has no two blocks, of which one could be left out."""
    if (count := len(blocks_of(network).members)) < 2:
        raise InputError(
            f"training.block_drop: the network has {count} blocks that can be left out (nas.networks.backbones.Residual), "
            "expected at least 2"
        )
