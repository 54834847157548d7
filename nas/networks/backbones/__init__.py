"""The menu of backbones: one file or package per family of denoisers, named as `backbone:` in a search space names it.

Each provides `Config`, a frozen dataclass that describes one network at deploy scale and imports without torch:

    Config.canonical() -> Config     equal networks have one spelling
    Config.key -> str                short hash of the canonical form
    Config.scaled(proxy) -> Config   the same network at proxy scale
    Config.to_dict() / from_dict(d)  plain values, as YAML writes them
    Config.cost(latent_size, text_tokens) -> nas.cost.traced.Cost    closed form, no torch
    Config.build() -> torch.nn.Module

and the module it builds is called as `network(latents, time, text) -> prediction`: latents (B, C, H, W), time (B,) in
0..999, text a `nas.networks.conditioning.Text`, prediction of the shape of latents. Its `output` is its last layer: a critic made
of a copy of the network starts with that layer at zero.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Description = TypeVar("Description")


@dataclass(frozen=True)
class Proxy:
    """How an architecture is made small enough to be trained briefly. Depth and wiring stay; widths shrink."""

    width_divisor: int
    """Every width of the network is divided by this; it must divide all of them."""
    latent_channels: int
    """Channels of the latents the proxy is trained on."""
    text_width: int
    """Width of one text token."""
    pooled_width: int
    """Width of the pooled text vector."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"proxy: {name}={value} must be at least 1")


def strictly(kind: type[Description], values: Mapping[str, Any]) -> Description:
    """A `kind` (a dataclass) from plain values. Unknown fields and wrong types raise ValueError with their path."""
    from pydantic import ValidationError

    try:
        made: Description = _adapter(kind).validate_json(json.dumps(values), strict=True)  # type: ignore[arg-type]
        return made
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}: {message}" if path else message) from None


@lru_cache
def _adapter(kind: type[Any]) -> "TypeAdapter[Any]":
    """Made once: that takes longer than a thousand descriptions."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
