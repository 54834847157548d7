"""Checkpoints: where they lie, and whether they fit a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.disk import weight_files
from nas.errors import InputError
from nas.networks import experts
from nas.networks.experts import Experts

PROXY, TRAINED = "proxy", "network"  # where the weights are: of a study's trial, and of `nas train`


def checkpoint_file(path: Path, setting: str = "base.checkpoint") -> Path:
    """The weights in a folder that `nas export` or `nas train` wrote, or the file itself. Raises InputError if there is none."""
    places = (path / folder / "weights.safetensors" for folder in (TRAINED, PROXY, "."))
    found = next((p for p in (*places, path) if p.is_file()), None)
    if found is None:
        raise InputError(
            f"{setting}: {path}: no such file; expected a folder that nas export wrote, or weights.safetensors"
        )
    return found


def load_weights(network: nn.Module, path: Path, setting: str) -> None:
    """Give the network the weights at `path`. Raises InputError naming the first tensor in which they differ."""
    weights = weight_files.read(path, setting).tensors
    if (count := experts.count(weights)) and not isinstance(network, Experts):
        raise InputError(
            f"{setting}: {path} holds {count} experts by time (objective deme, merge none), which only their run draws; "
            "expected one network, such as those of merge searched"
        )
    difference = first_difference({n: tuple(t.shape) for n, t in weights.items()}, shapes(network))
    if difference:
        raise InputError(f"{setting}: {path} holds another architecture: {difference}")
    network.load_state_dict(weights)


def restored(build: Callable[[], nn.Module], path: Path, setting: str) -> nn.Module:
    """What the weights at `path` are of: the network that `build` makes, or experts by time. Raises InputError as above."""
    count = experts.count(weight_files.read(path, setting).tensors)
    network = Experts([build() for _ in range(count)], [0] * (count - 1)) if count else build()
    load_weights(network, path, setting)
    return network


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def first_difference(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str:
    """Where two networks' tensors first differ, in words; empty if nowhere."""
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            return f"{name} is {_said(found.get(name))}, expected {_said(wanted.get(name))}"
    return ""


def _said(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else "x".join(map(str, shape)) or "a scalar"


@torch.no_grad()
def copy_agreeing(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the tensors of `source` that have the same name and shape."""
    own: dict[str, Tensor] = target.state_dict()
    for name, tensor in source.state_dict().items():
        if name in own and own[name].shape == tensor.shape:
            own[name].copy_(tensor)


def images_seen(path: Path) -> int | None:
    """How many images the weights at `path` were trained on, if their file says so."""
    told = weight_files.metadata(path, "base.checkpoint").get("images_seen", "")
    return int(told) if told.isdecimal() else None
