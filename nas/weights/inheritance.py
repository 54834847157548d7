"""Weights of a network from one that has more blocks: what is left of each block is what it was there.

BK-SDM (Kim et al. 2023, arXiv 2305.15798, section 3.1) removes blocks of Stable Diffusion and trains the rest from its weights.
Which block a block was is the family's to say (`nas.networks.backbones.Removable`); otherwise names are the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nas.errors import InputError
from nas.networks.backbones import Backbone, Removable
from nas.weights.checkpoints import first_difference

Shape = tuple[int, ...]


def sources(own: Backbone, whole: Backbone) -> dict[str, str]:
    """The blocks of a network that have other names in the whole one, and these names. One of another family has none."""
    if type(own) is not type(whole) or not isinstance(own, Removable):
        return {}
    return {name: source for name, source in own.sources(whole).items() if name != source}


def inherit(network: nn.Module, whole: nn.Module, renamed: Mapping[str, str]) -> None:
    """Give `network` the weights that its blocks have in `whole`. Raises InputError as `check`."""
    check(network, whole, renamed)
    network.load_state_dict(_found(network, whole, renamed))


def check(network: nn.Module, whole: nn.Module, renamed: Mapping[str, str]) -> None:
    """Raises InputError naming the first tensor that the whole network does not have, or has in another shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in _found(network, whole, renamed).items()}
    if difference := first_difference(found, wanted):
        raise InputError(
            f"training.init: inherited: the network is not the base with blocks removed: there, {difference}"
        )


def _found(network: nn.Module, whole: nn.Module, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """The whole network's tensors by the names that the other has for them."""
    theirs = whole.state_dict()
    names = {name: source(name, renamed) for name in network.state_dict()}
    return {name: theirs[there] for name, there in names.items() if there in theirs}


def source(name: str, renamed: Mapping[str, str]) -> str:
    """What a tensor is called in the whole network."""
    for block, there in renamed.items():
        if name.startswith(f"{block}."):
            return there + name.removeprefix(block)
    return name
