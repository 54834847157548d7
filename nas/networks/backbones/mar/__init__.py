"""Masked autoregression over tokens, continuous or discrete: MAR (Li et al. 2024, arXiv 2406.11838) and Fluid (Fan et al. 2024,
arXiv 2410.13863) as settings of one network. Nothing here imports torch.

Latents are cut into patches, each a token. An encoder reads the tokens that are known, a decoder makes of them, and of where the
others are missing, a condition for every token, and a small head denoises each token by itself under its condition. The network
is an `Autoregressor`; called as a denoiser it knows no token, so that it takes all of them for independent, given the text.
Discrete tokens are indices of a codebook: each has a learned row, and a linear layer in the head's place says how likely each is.
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
    from nas.networks.backbones.mar.network import Network

MOST_WIDE = 2**17  # of every width and ratio
MOST_BLOCKS = 1_000
FREQUENCIES = 256  # sines and cosines of the head's time, before they are embedded
NONE_ALLOWED = ("aligner",)  # numbers that may be 0


@dataclass(frozen=True)
class Config:
    """A whole network at deploy scale. Impossible values raise ValueError with the values."""

    __pydantic_config__ = {"extra": "forbid"}

    encoder_depth: int
    """Blocks that read the known tokens."""
    decoder_depth: int
    """Blocks that read the places of all tokens."""
    width: int
    """Width of a row of the encoder and decoder, a multiple of `heads`."""
    heads: int
    """Attention heads."""
    head_depth: int
    """Residual blocks of the head that denoises a token."""
    head_width: int
    """Width of the head."""
    mlp_ratio: int = 4
    """Inner width of an MLP of encoder and decoder over `width`."""
    text: Literal["prefix", "cross", "late_cross"] = "prefix"
    """How the text gets in: it stands before the image's tokens (in the place of MAR's class), every block attends to it
    (Fluid), or blocks after the decoder do, as many as the decoder has."""
    aligner: int = 0
    """Blocks that the text's tokens go through first, among themselves (Fluid: 6)."""
    buffer: int = 64
    """Learned rows before the image's tokens, unless the text stands there."""
    patch: int = 1
    """Side of a patch: latents of side n are (n / patch)^2 tokens."""
    grid: int = 16
    """Side, in tokens, of the learned tables of places. They are resampled for latents of another size."""
    latent_channels: int = 16
    """Channels of the latents."""
    text_width: int = 768
    """Width of a text token."""
    pooled_width: int | None = None
    """Width of the pooled text vector that is added to the rows before the image; None: it is not used."""
    codes: int | None = None
    """Entries of the codebook that the latents are indices of (autoencoder `vq`, latents: indices), with `patch` and
    `latent_channels` 1; the fields of the head then build nothing. None: tokens are numbers."""

    def __post_init__(self) -> None:
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            least = 0 if name in NONE_ALLOWED else 1
            if isinstance(value, int) and not least <= value <= MOST_WIDE:
                raise ValueError(f"{name}={value} must be from {least} to {MOST_WIDE:,}")
        for name in ("encoder_depth", "decoder_depth", "head_depth", "aligner", "grid"):
            if getattr(self, name) > MOST_BLOCKS:
                raise ValueError(f"{name}={getattr(self, name)} must be at most {MOST_BLOCKS:,}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.codes is not None and (self.patch, self.latent_channels) != (1, 1):
            raise ValueError(
                f"codes={self.codes}: a token is one index, expected patch=1 and latent_channels=1, got patch={self.patch} and "
                f"latent_channels={self.latent_channels}"
            )

    @property
    def granularity(self) -> int:
        """The side of the latents is a multiple of it."""
        return self.patch

    @property
    def token_width(self) -> int:
        """Numbers of a token."""
        return self.patch**2 * self.latent_channels

    def canonical(self) -> "Config":
        """The one spelling of this network: where the text stands first there is no buffer, and discrete tokens have no head."""
        own = replace(self, buffer=type(self).buffer) if self.text == "prefix" else self
        return own if own.codes is None else replace(own, head_depth=1, head_width=own.width)

    @cached_property
    def key(self) -> str:
        """Twelve hex digits equal networks share. Fields at their default don't enter: new fields keep old keys."""
        own = self.canonical()
        plain = {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) != f.default}
        return hashlib.sha256(json.dumps(["mar", plain], sort_keys=True).encode()).hexdigest()[:12]

    def scaled(self, proxy: Proxy) -> "Config":
        """The same network, both widths divided, for the proxy's latents and text; ValueError if one doesn't divide.

        It keeps as many heads as divide the new width.
        """
        for name in ("width", "head_width"):
            if getattr(self, name) % proxy.width_divisor:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not divisible by the width_divisor={proxy.width_divisor}"
                )
        width = self.width // proxy.width_divisor
        return replace(
            self,
            width=width,
            heads=math.gcd(self.heads, width),
            head_width=self.head_width // proxy.width_divisor,
            latent_channels=proxy.latent_channels if self.codes is None else 1,
            text_width=proxy.text_width,
            pooled_width=None if self.pooled_width is None else proxy.pooled_width,
        )

    def to_dict(self) -> dict[str, Any]:
        """Numbers and words, as YAML and JSON write them, with the family; `codes` where there are any."""
        return {
            FAMILY: "mar",
            **{name: value for name, value in asdict(self).items() if (name, value) != ("codes", None)},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The network `to_dict` or a person wrote. Unknown fields and wrong types raise ValueError with their path."""
        return strictly(cls, {name: value for name, value in values.items() if name != FAMILY})

    def cost(self, latent_size: int, text_tokens: int) -> "Cost":
        """Closed-form cost of one call on one image, no token known: latents latent_size x latent_size, text_tokens tokens."""
        return cost_of(self.cost_terms(latent_size, text_tokens))

    def cost_terms(self, latent_size: int, text_tokens: int) -> "Iterator[Call]":
        """The terms that `cost` sums: functions and arguments, each argument a field as it stands."""
        from nas.networks.backbones.mar.cost import terms

        return terms(self, latent_size, text_tokens)

    def parts(self, latent_size: int, text_tokens: int) -> "list[Part]":
        """The same cost by component."""
        from nas.networks.backbones.mar.cost import COMPONENTS

        return parts_of(self.cost_terms(latent_size, text_tokens), COMPONENTS)

    def blocks(self, latent_size: int, text_tokens: int) -> "Counter[Block]":
        """The blocks of one call on latents of side `latent_size`, and how often each runs."""
        from nas.networks.backbones.mar.blocks import blocks

        return blocks(self, latent_size, text_tokens)

    def units(self, latent_size: int, text_tokens: int) -> "Units":
        """The units of one call whose outputs a sampling plan may keep, with what drawing token by token costs."""
        from nas.networks.backbones.mar import units

        return units.of(self, latent_size, text_tokens)

    def build(self) -> "Network":
        """The network with fresh weights, on torch's default device."""
        if self.codes is not None:
            from nas.networks.backbones.mar.discrete import DiscreteNetwork

            return DiscreteNetwork(self)
        from nas.networks.backbones.mar.network import Network

        return Network(self)


def build_block(block: "Block") -> "tuple[nn.Module, tuple[Tensor, ...]]":
    """A block of `Config.blocks` with fresh weights, and inputs for one picture."""
    from nas.networks.backbones.mar.blocks import build

    return build(block)


def presets() -> dict[str, Config]:
    """Published networks this one can express, by name."""
    from nas.networks.backbones.mar.published import PRESETS

    return dict(PRESETS)
