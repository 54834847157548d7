"""Diffusion transformers: DiT, PixArt-alpha and U-ViT as settings of one network. Nothing here imports torch.

Latents are cut into patches, each a token; the tokens go through a row of alike blocks, and every token is turned back into its
patch. What the systems decide differently are fields: how the text gets in, what the time does to a block, and whether the second
half of the row takes over what the first half put out.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from nas.cost.count import cost_of, parts_of
from nas.networks.backbones import FAMILY, Proxy, strictly

if TYPE_CHECKING:
    from collections import Counter

    from torch import Tensor, nn

    from nas.cost.count import Call, Cost, Part
    from nas.cost.latency_table import Block
    from nas.cost.units import Units
    from nas.networks.backbones.dit.network import Transformer

MOST_WIDE = 2**17  # of every width and ratio
MOST_BLOCKS = 1_000
FREQUENCIES = 256  # sines and cosines of the time, before they are embedded


@dataclass(frozen=True)
class Config:
    """A whole transformer at deploy scale. Impossible values raise ValueError with the values."""

    __pydantic_config__ = {"extra": "forbid"}

    depth: int
    """Blocks."""
    width: int
    """Width of a token, a multiple of 4 and of `heads`."""
    heads: int
    """Attention heads."""
    mlp_ratio: int = 4
    """Inner width of the MLP over `width`."""
    patch: int = 2
    """Side of a patch: latents of side n are (n / patch)^2 tokens."""
    text: Literal["cross", "sequence", "none"] = "cross"
    """How the text gets in: every block attends to it (PixArt), it stands before the image's tokens (U-ViT), or it does not
    (DiT)."""
    modulation: Literal["block", "shared", "token"] = "shared"
    """What the time does: each block makes shifts, scales and gates of it (adaLN-zero, DiT), all share them but for a table of
    their own (adaLN-single, PixArt), or it is one more token (U-ViT)."""
    shared_kv: bool = False
    """Self-attention takes the same projection for keys and values."""
    qk_norm: bool = False
    """Queries and keys are normalised (RMS norm, per head)."""
    norm: Literal["layer", "rms"] = "layer"
    """Kind of norm before attention and MLP."""
    skips: bool = False
    """Each block of the second half takes over what its counterpart in the first put out (U-ViT)."""
    latent_channels: int = 4
    """Channels of the latents."""
    text_width: int = 768
    """Width of a text token."""
    pooled_width: int | None = None
    """Width of the pooled text vector that is added to the time; None: it is not used."""

    def __post_init__(self) -> None:
        whole = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), int)}
        for name, value in whole.items():
            if not isinstance(value, bool) and not 1 <= value <= MOST_WIDE:
                raise ValueError(f"{name}={value} must be from 1 to {MOST_WIDE:,}")
        if self.depth > MOST_BLOCKS:
            raise ValueError(f"depth={self.depth} must be at most {MOST_BLOCKS:,}")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of 4 and of heads={self.heads}")

    @property
    def granularity(self) -> int:
        """The side of the latents is a multiple of it."""
        return self.patch

    def skip(self, index: int) -> bool:
        """Whether block `index` takes over the output of its counterpart."""
        return self.skips and index >= self.depth - self.depth // 2

    def canonical(self) -> "Config":
        """The one spelling of this network: a row of one block has no halves."""
        return replace(self, skips=False) if self.depth < 2 else self

    @cached_property
    def key(self) -> str:
        """Twelve hex digits equal networks share. Fields at their default don't enter: new fields keep old keys."""
        own = self.canonical()
        plain = {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) != f.default}
        return hashlib.sha256(json.dumps(["dit", plain], sort_keys=True).encode()).hexdigest()[:12]

    def scaled(self, proxy: Proxy) -> "Config":
        """The same network, its width divided, for the proxy's latents and text; ValueError if it doesn't divide.

        It keeps as many heads as divide the new width.
        """
        if self.width % (4 * proxy.width_divisor):
            raise ValueError(f"width={self.width} is not divisible by 4 times the width_divisor={proxy.width_divisor}")
        width = self.width // proxy.width_divisor
        return replace(
            self,
            width=width,
            heads=math.gcd(self.heads, width),
            latent_channels=proxy.latent_channels,
            text_width=proxy.text_width,
            pooled_width=None if self.pooled_width is None else proxy.pooled_width,
        )

    def to_dict(self) -> dict[str, Any]:
        """Numbers and words, as YAML and JSON write them, with the family."""
        return {FAMILY: "dit", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The network `to_dict` or a person wrote. Unknown fields and wrong types raise ValueError with their path."""
        return strictly(cls, {name: value for name, value in values.items() if name != FAMILY})

    def cost(self, latent_size: int, text_tokens: int) -> "Cost":
        """Closed-form cost of one call on one image: latents latent_size x latent_size, text_tokens tokens."""
        return cost_of(self.cost_terms(latent_size, text_tokens))

    def cost_terms(self, latent_size: int, text_tokens: int) -> "Iterator[Call]":
        """The terms that `cost` sums: functions and arguments, each argument a field as it stands."""
        from nas.networks.backbones.dit.cost import terms

        return terms(self, latent_size, text_tokens)

    def parts(self, latent_size: int, text_tokens: int) -> "list[Part]":
        """The same cost by component."""
        from nas.networks.backbones.dit.cost import COMPONENTS

        return parts_of(self.cost_terms(latent_size, text_tokens), COMPONENTS)

    def blocks(self, latent_size: int, text_tokens: int) -> "Counter[Block]":
        """The blocks of one call on latents of side `latent_size`, and how often each runs."""
        from nas.networks.backbones.dit.blocks import blocks

        return blocks(self, latent_size, text_tokens)

    def units(self, latent_size: int, text_tokens: int) -> "Units":
        """The units of one call whose outputs a sampling plan may keep, with their closed-form cost."""
        from nas.networks.backbones.dit import units

        return units.of(self, latent_size, text_tokens)

    def sources(self, whole: "Config") -> dict[str, str]:
        """Of equal groups of blocks the first is kept in the first half, the last in the second: BK-SDM's rule as TinyFusion
        (Fang et al. 2024, arXiv 2412.01199) carries it over to transformers."""
        half = self.depth / 2
        kept = [
            index * whole.depth // self.depth if index < half else -(-(index + 1) * whole.depth // self.depth) - 1
            for index in range(self.depth)
        ]
        return {f"blocks.{index}": f"blocks.{place}" for index, place in enumerate(kept) if self.depth <= whole.depth}

    def build(self) -> "Transformer":
        """The network with fresh weights, on torch's default device."""
        from nas.networks.backbones.dit.network import Transformer

        return Transformer(self)


def build_block(block: "Block") -> "tuple[nn.Module, tuple[Tensor, ...]]":
    """A block of `Config.blocks` with fresh weights, and inputs for one picture."""
    from nas.networks.backbones.dit.blocks import build

    return build(block)


def presets() -> dict[str, Config]:
    """Published networks this one can express, by name."""
    from nas.networks.backbones.dit.published import PRESETS

    return dict(PRESETS)
