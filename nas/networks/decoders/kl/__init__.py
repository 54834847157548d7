"""The decoder of SD's KL autoencoder with its width and depth as fields. Nothing here imports torch.

`levels[0]` is the outermost, at the size of the image; each further level is half as large, and `levels[-1]` has the size of the
latents.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from nas.cost.count import Call, Cost, Count, Pieces, Term, conv2d, cost_of, linear, norm, total
from nas.networks.backbones import Proxy, strictly

if TYPE_CHECKING:
    from nas.networks.decoders.kl.network import Decoder

STRICT = {"extra": "forbid"}
MOST_WIDE = 2**17  # of every width
MOST_LEVELS, MOST_BLOCKS = 16, 1_000


@dataclass(frozen=True)
class Level:
    """One resolution of the decoder."""

    __pydantic_config__ = STRICT

    channels: int
    """Width of this level."""
    blocks: int
    """Residual blocks."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.blocks < 1:
            raise ValueError(f"channels={self.channels} and blocks={self.blocks} must be at least 1")
        if self.channels > MOST_WIDE or self.blocks > MOST_BLOCKS:
            raise ValueError(
                f"channels={self.channels} and blocks={self.blocks} must be at most {MOST_WIDE:,} and {MOST_BLOCKS:,}"
            )


@dataclass(frozen=True)
class Config:
    """A whole decoder at deploy scale. Impossible values raise ValueError with the values."""

    __pydantic_config__ = STRICT

    levels: tuple[Level, ...]
    """Outermost first."""
    latent_channels: int = 4
    """Channels of the latents."""
    mid_blocks: int = 2
    """Residual blocks at the size of the latents, before the first level."""
    attention: bool = True
    """Self-attention after the first of the mid blocks."""
    groups: int = 32
    """Groups of every group norm."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels or min(self.latent_channels, self.mid_blocks, self.groups) < 1:
            raise ValueError(
                f"levels={self.levels}, latent_channels={self.latent_channels}, mid_blocks={self.mid_blocks} and "
                f"groups={self.groups}: expected at least one of each"
            )
        if len(self.levels) > MOST_LEVELS or self.mid_blocks > MOST_BLOCKS:
            raise ValueError(
                f"{len(self.levels)} levels and mid_blocks={self.mid_blocks} must be at most {MOST_LEVELS} and {MOST_BLOCKS:,}"
            )
        for index, level in enumerate(self.levels):
            if level.channels % self.groups:
                raise ValueError(f"levels.{index}.channels={level.channels} is not divisible by groups={self.groups}")

    def canonical(self) -> "Config":
        """The one spelling of this network: every field builds something, so its own."""
        return self

    @property
    def granularity(self) -> int:
        """The side of the latents is a multiple of it: any will do."""
        return 1

    @cached_property
    def key(self) -> str:
        """Twelve hex digits equal networks share."""
        return hashlib.sha256(json.dumps(["kl", self.to_dict()], sort_keys=True).encode()).hexdigest()[:12]

    def scaled(self, proxy: Proxy) -> "Config":
        """The same decoder, every width divided, for the proxy's latents; ValueError if one doesn't divide."""
        divisor = proxy.width_divisor
        if any(level.channels % divisor for level in self.levels):
            widths = [level.channels for level in self.levels]
            raise ValueError(f"channels {widths} are not all divisible by the proxy's width_divisor={divisor}")
        levels = tuple(replace(level, channels=level.channels // divisor) for level in self.levels)
        groups = max(1, self.groups // divisor)
        return replace(self, levels=levels, latent_channels=proxy.latent_channels, groups=groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as YAML and JSON write them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The decoder `to_dict` or a person wrote. Unknown fields and wrong types raise ValueError with their path."""
        return strictly(cls, values)

    def cost(self, latent_size: int, text_tokens: int = 0) -> Cost:
        """Closed-form cost of decoding one image from latents latent_size x latent_size; no text is read."""
        return cost_of(self.cost_terms(latent_size, text_tokens))

    def cost_terms(self, latent_size: int, text_tokens: int = 0) -> Iterator[Call]:
        """The terms that `cost` sums: functions and arguments, each argument a field as it stands (see
        `nas.space.cost_tables`)."""
        levels, last = self.levels, len(self.levels) - 1
        for index, level in enumerate(levels):
            below = levels[min(index + 1, last)].channels
            yield _level, (latent_size << (last - index), index == 0, below, level.channels, level.blocks)
        yield _middle, (latent_size, levels[-1].channels, self.latent_channels, self.mid_blocks, self.attention)
        yield _output, (latent_size << last, levels[0].channels)

    def build(self) -> "Decoder":
        """The network with fresh weights, on torch's default device."""
        from nas.networks.decoders.kl.network import Decoder

        return Decoder(self)


def presets() -> dict[str, Config]:
    """Published decoders, by name."""
    widths = (128, 256, 512, 512)
    return {"sd15-decoder": Config(tuple(Level(width, blocks=3) for width in widths))}


@lru_cache(maxsize=1 << 16)
def _level(side: int, outermost: bool, below: int, channels: int, blocks: int) -> Term:
    """The residual blocks of one level, and its upsampling."""
    pieces: Pieces = []
    for width in [below] + [channels] * (blocks - 1):
        pieces += _residual(side, width, channels)
    if not outermost:
        pieces.append(("upsample", side * 2, conv2d(side * 2, channels, channels, 3)))
    return Term(total([count for _, _, count in pieces]), pieces)


@lru_cache(maxsize=1 << 16)
def _middle(side: int, c: int, latent_channels: int, blocks: int, attention: bool) -> Term:
    """First convolution, mid blocks and attention."""
    pieces: Pieces = [("first and last conv", side, conv2d(side, latent_channels, c, 3))]
    for _ in range(blocks):
        pieces += _residual(side, c, c)
    if attention:
        n = side * side
        products = Count(0, 2 * n * n * c, 2 * n * n * c, 0, n * c)
        pieces.append(("self-attention", side, total([*[linear(n, c, c)] * 4, products, norm(c)])))
    return Term(total([count for _, _, count in pieces]), pieces)


@lru_cache(maxsize=1 << 16)
def _output(side: int, channels: int) -> Term:
    pieces: Pieces = [("first and last conv", side, conv2d(side, channels, 3, 3)), ("norm", side, norm(channels))]
    return Term(total([count for _, _, count in pieces]), pieces)


def _residual(n: int, i: int, o: int) -> Pieces:
    body = [conv2d(n, i, o, 3), conv2d(n, o, o, 3)] + [conv2d(n, i, o, 1)] * (i != o)
    return [("full conv", n, total(body)), ("norm", n, norm(i + o))]
