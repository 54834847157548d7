"""One set of weights for a whole search space: every member's weights are slices of it.

A member keeps the leading channels of every width, the leading hidden units of every FFN, the leading blocks of every
stack, and the weights of the kinds of layer it has (full and separable convolutions have their own). Nothing here knows
the backbone: two networks of one space share the names of what they share (`nas.networks.backbones`), and a layer whose axis is
several tensors side by side says so with `in_parts` / `out_parts`, so that each part is sliced on its own. After
once-for-all (Cai et al. 2020) and slimmable networks (Yu & Huang 2019); there is no elastic layer, because a member is
an ordinary network called with sliced weights. `nas.trial.supernet_training` trains one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from nas import assets
from nas.disk.packed import unpack
from nas.errors import InputError, brief
from nas.networks.backbones import Backbone, Proxy, strictly
from nas.networks.conditioning import Text
from nas.space.search_space import Choices, SearchSpace

Shape = tuple[tuple[int, ...], ...]  # sizes of the parts of each axis
DAMAGED = (OSError, ValueError, RuntimeError, SafetensorError)  # what reading such a file may raise


class Supernet(nn.Module):
    """The shared weights of a space at a proxy. `weights_of(member)` are a member's, as differentiable slices."""

    def __init__(self, shapes: Mapping[str, Shape]):
        super().__init__()
        self.shapes = dict(shapes)
        self.weights = nn.ParameterDict()
        for name, shape in shapes.items():
            self.weights[_flat(name)] = nn.Parameter(torch.empty([sum(parts) for parts in shape]))

    @classmethod
    def of(cls, space: SearchSpace, proxy: Proxy, seed: int = 0) -> Supernet:
        """A fresh supernet: as large as the largest member, with the weights of every kind of layer in the space."""
        supernet = cls.covering(space, proxy)
        torch.manual_seed(seed)
        for config in reversed(_members(space)):  # the largest last, so that what is shared starts as it does there
            supernet.assign(config.scaled(proxy).build())
        return supernet

    @classmethod
    def covering(cls, space: SearchSpace, proxy: Proxy) -> Supernet:
        """The same with its weights left to be filled."""
        shapes: dict[str, Shape] = {}
        for config in _members(space):
            for name, shape in shapes_of(skeleton(config.scaled(proxy))).items():
                shapes[name] = _union(shapes[name], shape) if name in shapes else shape
        return cls(shapes)

    @torch.no_grad()
    def assign(self, member: nn.Module) -> None:
        """Write a member's weights into its slices."""
        own = member.state_dict()
        for name, shape in shapes_of(member).items():
            places = _pieces(self.weights[_flat(name)], self.shapes[name], shape)
            for place, value in zip(places, _pieces(own[name], shape, shape), strict=True):
                place.copy_(value)

    def weights_of(self, member: nn.Module) -> dict[str, Tensor]:
        """A member's weights by name. Raises InputError naming the first layer the supernet does not have."""
        shapes = shapes_of(member)
        for name, shape in shapes.items():
            if name not in self.shapes or not _covers(self.shapes[name], shape):
                have = self.shapes.get(name, "nothing")
                raise InputError(f"supernet: does not cover {name}: has {have}, the network needs {shape}")
        return {name: _slice(self.weights[_flat(name)], self.shapes[name], shape) for name, shape in shapes.items()}

    def call(self, member: nn.Module, latents: Tensor, time: Tensor, text: Text) -> Tensor:
        """A member's prediction with the shared weights; gradients flow into them."""
        prediction: Tensor = functional_call(member, self.weights_of(member), (latents, time, text))
        return prediction

    def save(self, path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Half-precision `weights` (by this module's parameter names) with the shapes needed to slice them."""
        tensors = {name: value.detach().half().contiguous() for name, value in weights.items()}
        save_file(tensors, path, {**metadata, "shapes": json.dumps(self.shapes)})

    @classmethod
    def load(cls, path: Path) -> tuple[Supernet, dict[str, str]]:
        """A saved supernet and its metadata. Raises InputError when the shapes it tells are not those of its tensors."""
        try:
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
                shapes: dict[str, Shape] = _told(metadata, "shapes", dict[str, Shape])
                del metadata["shapes"]
                stored = unpack({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
                weights = {name: value.float() for name, value in stored.items()}
            for name, shape in shapes.items():
                held = weights.get(f"weights.{_flat(name)}", torch.empty(0)).shape
                if tuple(held) != tuple(map(sum, shape)):
                    raise ValueError(f"shapes: {name} is {tuple(held)}, not {tuple(map(sum, shape))}")
            supernet = cls(shapes)
            supernet.load_state_dict(weights)
        except DAMAGED as error:
            raise _unreadable(path, error) from None
        return supernet, metadata


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read as supernet weights: {brief(error)}")


def weights_path(init: str, space: str | Sequence[str] | None, dataset: str) -> Path:
    """Where `training.init` points: `supernet` is the weights shipped for the space, made for the data set if some were.

    Raises InputError if there is no such file.
    """
    if space is None:
        raise InputError(f"training.init: {init}: supernet weights belong to a search space; name it under `space`")
    if not isinstance(space, str):
        raise InputError(
            f"training.init: {init}: supernet weights belong to one search space, not to {len(space)}; expected scratch"
        )
    path = _shipped(Path(space).stem, dataset) if init == "supernet" else Path(init)
    if not os.path.isfile(path):
        shipped = sorted(p.stem.removeprefix("supernet_") for p in assets.FOLDER.glob("supernet_*.safetensors"))
        what = (
            f"no supernet is shipped for space {space!r} (only for: {', '.join(shipped)})"
            if init == "supernet"
            else "no such file"
        )
        raise InputError(
            f"training.init: {init}: {what}; expected scratch, base, inherited, supernet or a path to supernet weights"
        )
    return path


def _shipped(space: str, dataset: str) -> Path:
    own = assets.FOLDER / f"supernet_{space}_{dataset}.safetensors"
    return own if own.is_file() else assets.FOLDER / f"supernet_{space}.safetensors"


def require_covers(path: Path, space: SearchSpace, proxy: Proxy) -> None:
    """Raises InputError when the weights at `path` are for something else, or lack a choice of the space (named)."""
    supernet = _of(path, space.name, proxy)

    def missing(choices: Choices) -> str:
        try:
            supernet.weights_of(skeleton(space.architecture(choices).scaled(proxy)))
        except InputError as error:
            return str(error).removeprefix("supernet: ")
        return ""

    for choices in corners(space):
        if what := missing(choices):
            name, choice = _culprit(space, choices, missing)
            raise InputError(
                f"training.init: {path} does not cover axis {name!r} of space {space.name!r} at {choice!r} "
                f"({what}); train one with: nas supernet train {space.name}"
            )


def _culprit(space: SearchSpace, choices: Choices, missing: Callable[[Choices], str]) -> tuple[str, Any]:
    """The axis whose other choices are covered, and the choice that is not. Conditions precede what they decide, so the last
    such axis is the one."""
    for axis in reversed([axis for axis in space.axes if axis.name in choices]):
        others = (choice for choice in axis.choices if choice != choices[axis.name])
        if any(not missing({**choices, axis.name: other}) for other in others):
            return axis.name, choices[axis.name]
    return next(iter(choices.items()))


def initialise(network: nn.Module, path: Path, space: str, proxy: Proxy) -> None:
    """Give `network` its slices of the weights at `path`. Raises InputError when they belong to something else."""
    network.load_state_dict(_of(path, space, proxy).weights_of(network))


def _of(path: Path, space: str, proxy: Proxy) -> Supernet:
    """The supernet at `path`, which must have been trained for this space and proxy."""
    supernet, metadata = _loaded(path)
    made_for = {"space": metadata.get("space"), **asdict(_proxy_of(path, metadata))}
    for name, value in {"space": Path(space).stem, **asdict(proxy)}.items():
        if made_for.get(name) != value:
            raise InputError(f"training.init: {path} holds weights for {name} {made_for.get(name)!r}, not {value!r}")
    return supernet


@lru_cache(maxsize=1024)  # cells often differ in their settings alone
def check_covers(config: Backbone, path: Path, space: str, width_divisor: int) -> None:
    """Raises InputError when the weights at `path` have no slices for a deploy-scale network."""
    supernet, metadata = _loaded(path)
    made_for = _proxy_of(path, metadata)
    for name, has, wants in (
        ("space", metadata.get("space"), Path(space).stem),
        ("width_divisor", made_for.width_divisor, width_divisor),
    ):
        if has != wants:
            raise InputError(f"training.init: {path} holds weights for {name} {has!r}, not {wants!r}")
    try:
        supernet.weights_of(skeleton(config.scaled(made_for)))
    except InputError as error:
        raise InputError(f"training.init: {path.name}: {error}") from None


def _proxy_of(path: Path, metadata: Mapping[str, str]) -> Proxy:
    """The proxy that the weights were trained for. Raises InputError when the file does not say."""
    try:
        proxy: Proxy = _told(metadata, "proxy", Proxy)
    except DAMAGED as error:
        raise _unreadable(path, error) from None
    return proxy


def _told(metadata: Mapping[str, str], name: str, kind: Any) -> Any:
    """What the metadata says under `name`. Raises ValueError when that is of another kind, or not there."""
    try:
        return strictly(kind, json.loads(metadata.get(name, "null")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}") from None


@lru_cache(maxsize=1)
def _loaded(path: Path) -> tuple[Supernet, dict[str, str]]:
    return Supernet.load(path)


class _Unfilled(TorchFunctionMode):
    """Inside, `torch.nn.init` leaves tensors as they are: on the meta device it would take half of the time of building."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@lru_cache(maxsize=128)  # the corners of a space are asked for again and again
def skeleton(config: Backbone) -> nn.Module:
    """A network without storage: its layers' shapes and its forward pass. Not to be changed."""
    with _Unfilled(), torch.device("meta"):
        return config.build()


def corners(space: SearchSpace) -> Iterator[Choices]:
    """The largest member, then for every choice of every axis the largest that have it: together they have every layer."""
    largest = space.largest()
    yield largest
    for axis in space.axes:
        for choice in axis.choices:
            if choice != largest.get(axis.name):
                yield from space.largest_with(axis, choice)


def _members(space: SearchSpace) -> list[Backbone]:
    return list(dict.fromkeys(map(space.architecture, corners(space))))


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    """For each parameter the sizes of the parts of each of its axes."""
    shapes: dict[str, Shape] = {}
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            parts = (_parts(module, axis, size) for axis, size in enumerate(parameter.shape))
            shapes[f"{prefix}.{name}" if prefix else name] = tuple(parts)
    return shapes


def _parts(module: nn.Module, axis: int, size: int) -> tuple[int, ...]:
    """Axis 0 is a layer's output (for a norm its input too), axis 1 its input."""
    marked = "in_parts" if axis == 1 or isinstance(module, nn.GroupNorm) else "out_parts"
    parts: tuple[int, ...] = getattr(module, marked, (size,))
    return parts if sum(parts) == size else (size,)


def _union(a: Shape, b: Shape) -> Shape:
    return tuple(tuple(map(max, x, y)) for x, y in zip(a, b, strict=True))


def _covers(whole: Shape, part: Shape) -> bool:
    return all(
        len(w) == len(p) and all(a >= b for a, b in zip(w, p, strict=True)) for w, p in zip(whole, part, strict=True)
    )


def _slice(tensor: Tensor, whole: Shape, part: Shape) -> Tensor:
    """The leading entries of every part of every axis; of a convolution's kernel (axes 2 and 3) the middle."""
    for axis, (sizes, wanted) in enumerate(zip(whole, part, strict=True)):
        if sizes != wanted:
            pieces = _along(tensor, axis, sizes, wanted)
            tensor = torch.cat(pieces, axis) if len(pieces) > 1 else pieces[0]
    return tensor


def _pieces(tensor: Tensor, whole: Shape, part: Shape) -> list[Tensor]:
    """What `_slice` joins, as views that can be written to: one for each combination of parts."""
    pieces = [tensor]
    for axis, (sizes, wanted) in enumerate(zip(whole, part, strict=True)):
        pieces = [piece for each in pieces for piece in _along(each, axis, sizes, wanted)]
    return pieces


def _along(tensor: Tensor, axis: int, sizes: Sequence[int], wanted: Sequence[int]) -> list[Tensor]:
    if axis >= 2:
        return [tensor.narrow(axis, (sizes[0] - wanted[0]) // 2, wanted[0])]
    return [p.narrow(axis, 0, n) for p, n in zip(torch.split(tensor, list(sizes), axis), wanted, strict=True)]


def _flat(name: str) -> str:
    """Parameter names as ParameterDict keys, which may not contain dots."""
    return name.replace(".", "/")
