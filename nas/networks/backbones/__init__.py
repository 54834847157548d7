"""The menu of backbones: one package per family of denoisers, named as `backbone:` in a search space names it.

Each provides

    Config                 a frozen dataclass that imports without torch: a `Backbone`, one network at deploy scale
    presets()              published networks of the family, by name
    build_block(block)     a block of `Config.blocks` with fresh weights, and inputs for one picture

`from_dict` reads an architecture of any family.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable

from nas import menu
from nas.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from torch import Tensor, nn

    from nas.cost.count import Call, Cost, Part
    from nas.cost.latency_table import Block
    from nas.cost.units import Units
    from nas.networks.conditioning import Text

FAMILY = "backbone"  # the key under which an architecture of plain values names its family
FIRST = "unet"  # the family of architectures that name none

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


class Backbone(Protocol):
    """One network at deploy scale: what every family's `Config` is.

    The module it builds is called as `network(latents, time, text) -> prediction`: latents (B, C, H, W), time (B,) in 0..999,
    text a `nas.networks.conditioning.Text`, prediction of the shape of latents. Its `output` is its last layer: a critic made
    of a copy of the network starts with that layer at zero. Its `middle` is the layer half-way, whose output, (B, C, H, W) or
    (B, N, D), critics take for features, `middle_width` (C or D) of them.
    """

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled text vector; None where the network takes none."""

    @property
    def text_width(self) -> int:
        """Width of one text token."""

    @property
    def granularity(self) -> int:
        """The side of the latents is a multiple of it."""

    def __hash__(self) -> int:
        """Equal descriptions have equal hashes: they are looked up in caches."""

    @property
    def key(self) -> str:
        """Short hash of the canonical form: equal networks share it, of whatever family."""

    def canonical(self) -> Self:
        """The one spelling of this network."""

    def scaled(self, proxy: Proxy) -> Self:
        """The same network at proxy scale. Raises ValueError where a width cannot be divided."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON write them; `FAMILY` among them unless it is the first."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` or a person wrote. Raises ValueError naming the field for what cannot be."""

    def cost(self, latent_size: int, text_tokens: int) -> Cost:
        """Closed-form cost of one call on one image. Raises ValueError for latents that the network cannot take."""

    def cost_terms(self, latent_size: int, text_tokens: int) -> Iterator[Call]:
        """The terms that `cost` sums: functions and arguments, each argument a field as it stands
        (see `nas.space.cost_tables`)."""

    def parts(self, latent_size: int, text_tokens: int) -> list[Part]:
        """The same cost by component and resolution."""

    def blocks(self, latent_size: int, text_tokens: int) -> Mapping[Block, int]:
        """The blocks of one call, by everything their speed depends on, and how often each runs."""

    def units(self, latent_size: int, text_tokens: int) -> Units:
        """The units of one call whose outputs a sampling plan may keep (`nas.diffusion.caches.caching`), and their closed-form
        cost."""

    def build(self) -> nn.Module:
        """The network with fresh weights, on torch's default device."""


@runtime_checkable
class Autoregressor(Protocol):
    """A network that also draws a picture token by token: what MAR (Li et al. 2024, arXiv 2406.11838) needs of one.

    It makes a condition of every token from those that are known, and denoises each token by itself under its condition. B rows,
    L tokens of c numbers each, D the width of a condition. Called as any network, it knows no token.
    """

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents (B, C, n, n) as tokens (B, L, c), those of the first row of the picture first."""

    def latents(self, tokens: Tensor) -> Tensor:
        """The reverse."""

    def conditions(self, tokens: Tensor, known: Tensor | None, text: Text) -> Tensor:
        """(B, L, D), from those among `tokens` (B, L, c) that `known` (B, L) says are known, None for none of them.

        Nothing else of `tokens` enters. Raises ValueError where rows know unequally many.
        """

    def denoised(self, tokens: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        """The prediction (B, N, c) for any N noisy tokens at times (B,) or (B, N) under their conditions (B, N, D)."""


@runtime_checkable
class Discrete(Autoregressor, Protocol):
    """One whose tokens are indices of a codebook of K entries, as numbers (c = 1): they are drawn at once, not denoised."""

    def logits(self, conditions: Tensor) -> Tensor:
        """Of all entries, (B, N, K), for any N conditions (B, N, D)."""


@runtime_checkable
class Linearised(Protocol):
    """A layer of a network that is not linear, and has a linear stand-in: what SynFlow is computed on."""

    def linearise(self) -> None:
        """Compute linearly from now on."""


@runtime_checkable
class Residual(Protocol):
    """A block that adds something to its input, and what is left of it when it is dropped (`training.block_drop`). One that
    holds others is dropped where all of those are."""

    def skipped(self, x: Tensor, *given: Any) -> Tensor:
        """In place of `forward`: the input, or its projection alone where the block changes the width."""


@runtime_checkable
class Silent(Protocol):
    """A residual block that can be told to add nothing until it is trained: so a copy of a block starts."""

    def silence(self) -> None:
        """Make zero what puts out the block's share, so that its output is its input."""


@runtime_checkable
class Removable(Protocol):
    """A family whose networks find their weights in one with more blocks under other names than their own."""

    def sources(self, whole: Any) -> Mapping[str, str]:
        """Blocks that are called otherwise in `whole`, a network of the family with more blocks: their names here and there."""


@runtime_checkable
class Staged(Protocol):
    """A network that says where its stages end, for distillation of one into another: stages of one name are compared."""

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """The last block of every stage, in the order in which they are called; what they put out are tensors."""


def from_dict(values: Mapping[str, Any]) -> Backbone:
    """The network that plain values describe, of whatever family. Raises ValueError naming the field, or an unknown family."""
    name = values.get(FAMILY, FIRST)
    try:
        config = menu.pick("backbones", str(name)).Config
    except InputError as error:
        raise ValueError(f"{FAMILY}: {error}") from None
    made: Backbone = config.from_dict({key: value for key, value in values.items() if key != FAMILY})
    return made


@lru_cache
def presets() -> dict[str, Backbone]:
    """Published networks that can be searched around, by name."""
    return {
        name: made
        for family in menu.names("backbones")
        for name, made in menu.pick("backbones", family).presets().items()
    }


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
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Made once: that takes longer than a thousand descriptions."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
