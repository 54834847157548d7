"""Weights of a network from one that has more blocks: what is left of each block is what it was there.

BK-SDM (Kim et al. 2023, arXiv 2305.15798, section 3.1) removes blocks of Stable Diffusion and trains the rest from its weights.
Which block a block was is the family's to say (`nas.networks.backbones.Removable`); otherwise names are the same.

A network may also have blocks more (`grown`), as SnapFusion copies blocks (Li et al. 2023, arXiv 2306.00980, section 4.1). Such
a block has the weights of the one before it, but for its last layers, which are zero, so that it adds nothing at first
(assumption: they say "copy", and not how the copy starts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from nas.errors import InputError
from nas.networks.backbones import Backbone, Removable, Silent
from nas.weights import checkpoints

Shape = tuple[int, ...]


def sources(own: Backbone, whole: Backbone) -> dict[str, str]:
    """The blocks of a network that have other names in the whole one, and these names. One of another family has none."""
    if type(own) is not type(whole) or not isinstance(own, Removable):
        return {}
    return {name: source for name, source in own.sources(whole).items() if name != source}


def inherit(network: nn.Module, whole: nn.Module, renamed: Mapping[str, str], grown: bool = False) -> None:
    """Give `network` the weights that its blocks have in `whole`. Raises InputError as `check`."""
    check(network, whole, renamed, grown)
    own = network.state_dict()
    found = _found(own, whole, renamed)
    copies = _copies(network, found) if grown else {}
    network.load_state_dict({**own, **_before(found, copies), **found})
    for copy in copies.values():
        copy.silence()


def check(network: nn.Module, whole: nn.Module, renamed: Mapping[str, str], grown: bool = False) -> None:
    """Raises InputError naming the first tensor that the whole network does not have, or has in another shape; with `grown` one
    may be missing there that is of a block which can start as nothing."""
    wanted = checkpoints.shapes(network)
    found = {name: tuple(tensor.shape) for name, tensor in _found(wanted, whole, renamed).items()}
    if grown and len(found) < len(wanted):
        found |= {name: wanted[name] for copy in _copies(network, found) for name in _inside(wanted, copy)}
    if difference := checkpoints.first_difference(found, wanted) or (_twice(wanted, renamed) if grown else ""):
        raise InputError(
            f"training.init: inherited: the network is not the base with blocks removed: there, {difference}"
        )


def _found(own: Iterable[str], whole: nn.Module, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """The whole network's tensors by the names that the other has for them."""
    theirs = whole.state_dict()
    names = {name: source(name, renamed) for name in own}
    return {name: theirs[there] for name, there in names.items() if there in theirs}


def source(name: str, renamed: Mapping[str, str]) -> str:
    """What a tensor is called in the whole network."""
    for block, there in renamed.items():
        if name.startswith(f"{block}."):
            return there + name.removeprefix(block)
    return name


# --- blocks that the whole network does not have ----------------------------------------------------------------------


def _copies(network: nn.Module, found: Iterable[str]) -> dict[str, Silent]:
    """Blocks that can start as nothing, of which no tensor was found, by name; in the order of the network."""
    known, copies = set(found), dict[str, Silent]()
    for name, module in network.named_modules():
        new = isinstance(module, Silent) and not _inside(known, name)
        if new and not any(name.startswith(f"{copy}.") for copy in copies):
            copies[name] = module
    return copies


def _before(found: Mapping[str, Tensor], copies: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of each copy as those of the block before it, of a row of blocks; none of one that is the first."""
    tensors = dict(found)
    for copy in copies:
        row, _, place = copy.rpartition(".")
        before = f"{row}.{int(place) - 1}" if place.isdecimal() else row
        tensors |= {copy + name.removeprefix(before): tensors[name] for name in _inside(tensors, before)}
    return {name: tensor for name, tensor in tensors.items() if name not in found}


def _inside(names: Iterable[str], block: str) -> list[str]:
    return [name for name in names if name.startswith(f"{block}.")]


def _twice(own: Iterable[str], renamed: Mapping[str, str]) -> str:
    """What two blocks would both take, in words: then neither is known to be the copy."""
    taken: dict[str, str] = {}
    for name in own:
        there = source(name, renamed)
        if there in taken:
            return f"{there} is asked for twice, for {taken[there]} and for {name}"
        taken[there] = name
    return ""
