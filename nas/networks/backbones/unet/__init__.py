"""The U-shaped denoiser of MobileDiffusion, with every decision of that paper as a field (arXiv 2311.16567).

SD-1.5, BK-SDM and SnapFusion are settings of the same network. Nothing here imports torch; `network.py` holds the
modules and `cost.py` the closed-form cost.

A level is one resolution. Going down, each level runs its conv blocks, each followed by a stack of transformer blocks,
and then halves the resolution; going up, the same in reverse, with the outputs kept on the way down concatenated to the
input. `levels[0]` is the outermost (64x64 for 512 px images), `levels[-1]` the bottleneck.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from nas.cost.count import cost_of, parts_of
from nas.networks.backbones import Proxy, strictly

if TYPE_CHECKING:
    from collections import Counter

    from torch import Tensor, nn

    from nas.cost.count import Call, Cost, Part
    from nas.cost.latency_table import Block
    from nas.cost.units import Units
    from nas.networks.backbones.unet.network import UNet

STRICT = {"extra": "forbid"}
MOST_WIDE = 2**17  # of every width, ratio and count; beyond it nothing could be built
MOST_KERNEL = 255
MOST_TOKENS = 1_000
MOST_BLOCKS = 1_000  # conv and transformer blocks together, which are built one by one


@dataclass(frozen=True)
class Level:
    """One resolution of the network."""

    __pydantic_config__ = STRICT

    channels: int
    """Width of this level."""
    down: tuple[int, ...]
    """One conv block per entry on the way down; the entry is the number of transformer blocks that follow it. A bottleneck
    without any is left out, and the level above is the bottleneck."""
    up: tuple[int, ...]
    """The same on the way up."""
    self_attention: bool = False
    """Transformer blocks of this level attend to the image."""
    cross_attention: bool = False
    """Transformer blocks of this level attend to the text. With neither kind there are no transformer blocks."""
    conv: Literal["full", "separable"] = "full"
    """Residual block of two convolutions, or the separable (ConvNeXt-like) block."""
    kernel: int = 3
    """Kernel of those convolutions, odd."""
    ffn_ratio: int = 3
    """Inner width of the gated FFN over `channels`."""

    @property
    def attends(self) -> bool:
        """Whether the transformer blocks of this level exist."""
        return self.self_attention or self.cross_attention

    def __post_init__(self) -> None:
        if self.channels < 1 or self.ffn_ratio < 1:
            raise ValueError(f"channels={self.channels} and ffn_ratio={self.ffn_ratio} must be at least 1")
        if bool(self.down) != bool(self.up):
            raise ValueError(f"down={self.down} and up={self.up} need at least one conv block each, or none both")
        if min(self.down + self.up, default=0) < 0:
            raise ValueError(f"down={self.down} and up={self.up} count transformer blocks and cannot be negative")
        if self.conv not in ("full", "separable"):
            raise ValueError(f"conv={self.conv!r} must be 'full' or 'separable'")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd, so that the image keeps its size")
        for name, most in (("channels", MOST_WIDE), ("ffn_ratio", MOST_WIDE), ("kernel", MOST_KERNEL)):
            if getattr(self, name) > most:
                raise ValueError(f"{name}={getattr(self, name)} must be at most {most:,}")


@dataclass(frozen=True)
class Config:
    """A whole network at deploy scale. Impossible values raise ValueError with the values."""

    __pydantic_config__ = STRICT

    levels: tuple[Level, ...]
    """Outermost first."""
    mid: tuple[int, ...] = ()
    """Conv blocks between the halves of the bottleneck, each with its number of transformer blocks; SD has (1, 0)."""
    latent_channels: int = 8
    """Channels of the autoencoder's latents."""
    text_width: int = 768
    """Width of one text token."""
    pooled_width: int | None = 768
    """Width of the pooled text vector added to the time embedding; None leaves it out, as in SD."""
    pooled_tokens: int = 0
    """Tokens that one linear layer makes of the pooled vector, set before those of the text; Kandinsky makes 10 of a picture's
    embedding (Razzhigaev et al. 2023, arXiv 2310.03502)."""
    time_width: int = 1280
    """Width of the time embedding."""
    shared_kv: bool = True
    """Self-attention uses one matrix for keys and values."""
    activation: Literal["gelu", "swish"] = "swish"
    """Gate of the FFN. GELU's cubic term overflows in 8 and 16 bits."""
    attention: Literal["softmax", "relu"] = "softmax"
    """Activation of attention weights; relu is meant for fine-tuning a softmax-trained network."""
    projections: Literal["stack", "block"] = "stack"
    """Pointwise convolutions go around each stack of transformer blocks, or around each block (SnapFusion)."""
    skips: Literal["outer", "all"] = "outer"
    """Concatenate skips on all levels but the bottleneck, or on all."""
    groups: int = 32
    """Groups of every group norm."""
    head_dim: int | None = 64
    """Channels of one attention head; give this or `heads`."""
    heads: int | None = None
    """Attention heads of every level; give this or `head_dim`."""
    expansion: int = 4
    """Inner width of a separable block over its output width."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _without_empty_bottleneck(tuple(self.levels)))
        self._check_numbers()
        self._check_words()
        for index, level in enumerate(self.levels):
            self._check_level(index, level)
        self._check_pooled_tokens()

    def _check_numbers(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; a network has at least one")
        if self.levels[0].channels % 2:
            raise ValueError(f"levels.0.channels={self.levels[0].channels} must be even (it holds sines and cosines)")
        for name in SIZES:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST_WIDE:
                raise ValueError(f"{name}={value} must be at least 1 and at most {MOST_WIDE:,}")
        if min(self.mid, default=0) < 0:
            raise ValueError(f"mid={self.mid} counts transformer blocks and cannot be negative")
        stacks = [level.down + level.up for level in self.levels] + [self.mid]
        if (blocks := sum(len(stack) + sum(stack) for stack in stacks)) > MOST_BLOCKS:
            raise ValueError(f"down, up and mid have {blocks:,} blocks in all, expected at most {MOST_BLOCKS:,}")
        if (self.head_dim is None) == (self.heads is None):
            raise ValueError(f"give one of head_dim={self.head_dim} and heads={self.heads}, the other null")

    def _check_words(self) -> None:
        words = {
            "activation": ("gelu", "swish"),
            "attention": ("softmax", "relu"),
            "projections": ("stack", "block"),
            "skips": ("outer", "all"),
        }
        for name, valid in words.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(valid)}")

    def _check_level(self, index: int, level: Level) -> None:
        if not level.down:
            raise ValueError(f"levels.{index}.down=() leaves a hole; only the innermost levels may have no conv blocks")
        if level.channels % self.groups:
            raise ValueError(f"levels.{index}.channels={level.channels} is not divisible by groups={self.groups}")
        divisor, name = (self.head_dim, "head_dim") if self.head_dim is not None else (self.heads, "heads")
        if divisor is not None and self.has_stack(index) and level.channels % divisor:
            raise ValueError(f"levels.{index}.channels={level.channels} is not divisible by {name}={divisor}")

    def _check_pooled_tokens(self) -> None:
        if not 0 <= self.pooled_tokens <= MOST_TOKENS:
            raise ValueError(f"pooled_tokens={self.pooled_tokens} must be at least 0 and at most {MOST_TOKENS:,}")
        if self.pooled_tokens and self.pooled_width is None:
            raise ValueError(
                f"pooled_tokens={self.pooled_tokens} are made of a pooled vector, but pooled_width is null"
            )
        read = any(level.cross_attention and self.has_stack(index) for index, level in enumerate(self.levels))
        if self.pooled_tokens and not read:
            raise ValueError(f"pooled_tokens={self.pooled_tokens} are read by cross_attention, which no level has")

    def has_stack(self, index: int) -> bool:
        """Whether level `index` has any transformer block; the middle belongs to the bottleneck."""
        level = self.levels[index]
        return level.attends and any(level.down + level.up + self.middle(index))

    def middle(self, index: int) -> tuple[int, ...]:
        """The conv blocks of the middle that run at level `index`: all at the bottleneck, none elsewhere."""
        return self.mid if index == len(self.levels) - 1 else ()

    def head_count(self, channels: int) -> int:
        """Attention heads at a level of this width."""
        return self.heads if self.head_dim is None and self.heads else channels // (self.head_dim or channels)

    def stacks(self, depth: int) -> tuple[int, ...]:
        """The stacks that hold `depth` transformer blocks: the number of blocks in each."""
        return (1,) * depth if self.projections == "block" else (depth,) * (depth > 0)

    def skip_widths(self, index: int) -> tuple[int, ...]:
        """Channels concatenated to the input of each conv block on the way up at level `index`, 0 for none.

        The last output kept is the first used. A level keeps its input (the outermost: the first convolution's output)
        and the output of each of its conv blocks; what `up` has no block for is not used, and blocks beyond that get
        none.
        """
        level = self.levels[index]
        kept: tuple[int, ...] = ()
        if self.skips == "all" or index < len(self.levels) - 1:
            kept = (level.channels,) * len(level.down) + (self.levels[max(index - 1, 0)].channels,)
        return (kept + (0,) * len(level.up))[: len(level.up)]

    def canonical(self) -> "Config":
        """The one spelling of this network: fields that build nothing take their defaults."""
        levels = tuple(self._canonical_level(index) for index in range(len(self.levels)))
        mid = self.mid if levels[-1].attends else (0,) * len(self.mid)
        if (
            self.skips == "outer"
        ):  # without skips the bottleneck is one row of blocks, and where it is cut means nothing
            row = levels[-1].down + mid + levels[-1].up
            half = len(row) // 2
            levels, mid = (*levels[:-1], replace(levels[-1], down=row[:half], up=row[half:])), ()
        stacks = [index for index in range(len(levels)) if self.has_stack(index)]
        changes: dict[str, Any] = {"levels": levels, "mid": mid}
        unused = ["activation", "attention", "head_dim", "heads"] if not stacks else []
        if not any(level.self_attention for level in levels):
            unused.append("shared_kv")
        if not any(level.conv == "separable" for level in levels):
            unused.append("expansion")
        if max(depth for level in levels for depth in level.down + level.up + mid) < 2:
            unused.append("projections")
        changes |= {name: DEFAULTS[name] for name in unused}
        widths = {levels[index].channels // self.head_count(levels[index].channels) for index in stacks}
        if len(widths) == 1:
            changes |= {"head_dim": widths.pop(), "heads": None}
        return replace(self, **changes)

    def _canonical_level(self, index: int) -> Level:
        level = self.levels[index]
        if self.has_stack(index):
            return level
        down, up = (0,) * len(level.down), (0,) * len(level.up)
        unused: dict[str, Any] = {
            name: LEVEL_DEFAULTS[name] for name in ("self_attention", "cross_attention", "ffn_ratio")
        }
        return replace(level, down=down, up=up, **unused)

    @property
    def granularity(self) -> int:
        """The side of the latents is a multiple of it: each level but the last halves them."""
        return int(2 ** (len(self.levels) - 1))

    @cached_property
    def key(self) -> str:
        """Twelve hex digits equal networks share. Fields at their default don't enter: new fields keep old keys."""
        spelled = json.dumps(["unet", _spelled(self.canonical())], sort_keys=True)
        return hashlib.sha256(spelled.encode()).hexdigest()[:12]

    def scaled(self, proxy: Proxy) -> "Config":
        """The same network, every width divided, for the proxy's latents and text; ValueError if one doesn't divide."""
        divisor = proxy.width_divisor
        levels = tuple(
            replace(level, channels=_divided(f"levels.{i}.channels", level.channels, divisor))
            for i, level in enumerate(self.levels)
        )
        return replace(
            self,
            levels=levels,
            time_width=_divided("time_width", self.time_width, divisor),
            groups=max(1, self.groups // divisor),
            head_dim=None if self.head_dim is None else max(1, self.head_dim // divisor),
            latent_channels=proxy.latent_channels,
            text_width=proxy.text_width,
            pooled_width=None if self.pooled_width is None else proxy.pooled_width,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and words, as YAML and JSON write them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The network `to_dict` or a person wrote. Unknown fields and wrong types raise ValueError with their path."""
        return strictly(cls, values)

    def cost(self, latent_size: int, text_tokens: int) -> "Cost":
        """Closed-form cost of one call on one image: latents latent_size x latent_size, text_tokens tokens."""
        return cost_of(self.cost_terms(latent_size, text_tokens))

    def cost_terms(self, latent_size: int, text_tokens: int) -> "Iterator[Call]":
        """The terms that `cost` sums: functions and arguments, each argument a field as it stands (see
        `nas.space.cost_tables`)."""
        from nas.networks.backbones.unet.cost import terms

        return terms(self, latent_size, text_tokens)

    def parts(self, latent_size: int, text_tokens: int) -> "list[Part]":
        """The same cost by component and resolution."""
        from nas.networks.backbones.unet.cost import COMPONENTS

        return parts_of(self.cost_terms(latent_size, text_tokens), COMPONENTS)

    def blocks(self, latent_size: int, text_tokens: int) -> "Counter[Block]":
        """The blocks of one call on latents of side `latent_size`, and how often each runs."""
        from nas.networks.backbones.unet.blocks import blocks

        return blocks(self, latent_size, text_tokens)

    def units(self, latent_size: int, text_tokens: int) -> "Units":
        """The units of one call whose outputs a sampling plan may keep, with their closed-form cost."""
        from nas.networks.backbones.unet import units

        return units.of(self, latent_size, text_tokens)

    def sources(self, whole: "Config") -> dict[str, str]:
        """Of the blocks on the way up the first is the first of the whole network's, the others are its last: so they take over
        what the same blocks on the way down put out, as in BK-SDM (Kim et al. 2023, arXiv 2305.15798, section 3.1)."""
        pairs = zip(self.canonical().levels, whole.canonical().levels, strict=False)  # a whole stage may be missing
        return {
            f"levels.{index}.up.{place}": f"levels.{index}.up.{len(full.up) - len(own.up) + place}"
            for index, (own, full) in enumerate(pairs)
            for place in range(1, len(own.up))
        }

    def build(self) -> "UNet":
        """The network with fresh weights, on torch's default device."""
        from nas.networks.backbones.unet.network import UNet

        return UNet(self)


SIZES = ("latent_channels", "text_width", "time_width", "groups", "expansion", "pooled_width", "head_dim", "heads")
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Config)}
LEVEL_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Level)}


def _without_empty_bottleneck(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    while levels and not levels[-1].down:
        levels = levels[:-1]
    return levels


def _divided(name: str, width: int, divisor: int) -> int:
    if width % divisor:
        raise ValueError(f"{name}={width} is not divisible by the proxy's width_divisor={divisor}")
    return width // divisor


def _spelled(config: Config) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    plain = {name: value for name, value in vars(config).items() if name in DEFAULTS and value != DEFAULTS[name]}
    levels = [
        {name: value for name, value in vars(level).items() if value != LEVEL_DEFAULTS[name]} for level in config.levels
    ]
    return plain | {"levels": levels}


def build_block(block: "Block") -> "tuple[nn.Module, tuple[Tensor, ...]]":
    """A block of `Config.blocks` with fresh weights, and inputs for one picture."""
    from nas.networks.backbones.unet.blocks import build

    return build(block)


def presets() -> dict[str, Config]:
    """Published networks this one can express, by name."""
    from nas.networks.backbones.unet.published import PRESETS

    return PRESETS
