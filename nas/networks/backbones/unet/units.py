"""The units of the UNet that a schedule may keep: whole blocks and resamplings, and the residual branches in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nas.cost import units
from nas.cost.count import Count, conv2d, depthwise2d, linear, total
from nas.cost.units import CONV, CROSS, FEED_FORWARD, SELF, WHOLE, Unit
from nas.networks.backbones.unet import Config, Level
from nas.networks.backbones.unet.cost import transformers

TRANSFORMER = (  # component, its piece of the closed form, its module in a transformer block
    (SELF, "self-attention", "attend_self"),
    (CROSS, "cross-attention", "attend_cross"),
    (FEED_FORWARD, "ffn", "ffn"),
)


def of(config: Config, latent_size: int, text_tokens: int) -> units.Units:
    """All of them. Raises ValueError for latents that the network cannot take."""
    config = config.canonical()  # which is what is built
    network = total([function(*given).total for function, given in config.cost_terms(latent_size, text_tokens)])
    deep = depths(config)
    levels = [_At(config, index, latent_size >> index, text_tokens) for index in range(len(config.levels))]
    down = [unit for level in levels for unit in level.downwards(deep)]
    up = [unit for level in reversed(levels) for unit in level.upwards(deep)]
    return units.of([*down, *up], network)


@dataclass(frozen=True)
class _At:
    """One level of a network."""

    config: Config
    index: int
    side: int
    text_tokens: int

    @property
    def level(self) -> Level:
        return self.config.levels[self.index]

    def downwards(self, deep: Mapping[str, int]) -> Iterator[Unit]:
        """The blocks on the way down, the convolution to the next smaller image, and the middle after the last."""
        levels, width = self.config.levels, self.level.channels
        inputs = [levels[max(self.index - 1, 0)].channels, *[width] * (len(self.level.down) - 1)]
        for place, given in enumerate(zip(inputs, self.level.down, strict=True)):
            name = f"levels.{self.index}.down.{place}"
            yield from self.block(name, *given, deep[name])
        if self.index < len(levels) - 1:
            name = f"levels.{self.index}.downsample"
            yield Unit(name, WHOLE, conv2d(self.side, width, width, 3, stride=2), depth=deep[name])
        for place, depth in enumerate(self.config.middle(self.index)):
            yield from self.block(f"mid.{place}", width, depth, deep[f"mid.{place}"])

    def upwards(self, deep: Mapping[str, int]) -> Iterator[Unit]:
        """The blocks on the way up, and the convolution to the next larger image."""
        levels, width = self.config.levels, self.level.channels
        below = levels[min(self.index + 1, len(levels) - 1)].channels
        inputs, skips = [below, *[width] * (len(self.level.up) - 1)], self.config.skip_widths(self.index)
        for place, (given, skip, depth) in enumerate(zip(inputs, skips, self.level.up, strict=True)):
            name = f"levels.{self.index}.up.{place}"
            yield from self.block(name, given + skip, depth, deep[name])
        if self.index > 0:
            name = f"levels.{self.index}.upsample"
            yield Unit(name, WHOLE, conv2d(2 * self.side, width, width, 3), depth=deep[name])

    def block(self, name: str, width: int, depth: int, deep: int) -> Iterator[Unit]:
        """A block, and what lies in it."""
        branch, rest = self._convolution(width)
        pieces = self._transformer() if depth else {}
        stacks = self.config.stacks(depth)
        yield Unit(name, WHOLE, total([rest, *[pieces["projections"]] * len(stacks)] if depth else [rest]), depth=deep)
        yield Unit(f"{name}.conv.{self.level.conv}", CONV, branch, name, "branch")
        for stack, blocks in enumerate(stacks):
            for place in range(blocks):
                for component, piece, module in TRANSFORMER:
                    if piece in pieces:
                        inner = f"{name}.stacks.{stack}.blocks.{place}.{module}"
                        yield Unit(inner, component, pieces[piece], name)

    def _convolution(self, width: int) -> tuple[Count, Count]:
        """What the residual branch of the level's conv block costs, and what is computed beside it."""
        n, o, kernel = self.side, self.level.channels, self.level.kernel
        time, shortcut = linear(1, self.config.time_width, o), conv2d(n, width, o, 1) if width != o else Count()
        if self.level.conv == "full":
            return total([conv2d(n, width, o, kernel), conv2d(n, o, o, kernel), time]), shortcut
        inner = self.config.expansion * o
        return total([depthwise2d(n, width, kernel), conv2d(n, width, inner, 1), conv2d(n, inner, o, 1)]), total(
            [time, shortcut]
        )

    def _transformer(self) -> dict[str, Count]:
        """The pieces of one stack with one block."""
        level, config = self.level, self.config
        heads = (config.head_dim, config.heads) if config.attention == "relu" else (1, None)
        found = transformers(
            self.side,
            level.channels,
            (1,),
            (),
            (),
            level.self_attention,
            level.cross_attention,
            level.ffn_ratio,
            config.projections,
            config.shared_kv,
            config.text_width,
            self.text_tokens,
            config.pooled_tokens,
            *heads,
        )
        return {piece: count for piece, _, count in found.pieces}


def depths(config: Config) -> dict[str, int]:
    """Of every block and resampling, the outermost skip connection b it lies within: computing what the skip b carries and
    all that is outside it needs every unit whose depth is b or less.

    Going up, the last block has depth 0, the one before 1, and so on. A unit on the way down is needed by the outermost of
    the blocks that take over what it, or a later one, puts out; the bottleneck, from which nothing is taken over, lies deepest.
    """
    last = len(config.levels) - 1
    upwards = [(index, place) for index in reversed(range(last + 1)) for place in range(len(config.levels[index].up))]
    order = {at: len(upwards) - 1 - number for number, at in enumerate(upwards)}
    deepest = len(upwards)
    found: dict[str, int] = {}
    for (index, place), depth in order.items():
        found[f"levels.{index}.up.{place}"] = depth
    for index in range(1, last + 1):
        outside = [depth for (level, _), depth in order.items() if level < index]
        found[f"levels.{index}.upsample"] = max(outside, default=-1) + 1
    needed = deepest  # by the outermost block that takes over anything put out from here on, going back
    for name, taker in reversed(list(_downwards(config, order))):
        needed = min(needed, deepest if taker is None else taker)
        if name:
            found[name] = needed
    return found | {f"mid.{place}": deepest for place in range(len(config.mid))}


def _downwards(config: Config, order: dict[tuple[int, int], int]) -> Iterator[tuple[str, int | None]]:
    """Every output that a level keeps, in order: its unit (of the first convolution none), and the depth of the block that takes
    it over, if any does."""
    for index, level in enumerate(config.levels):
        takers: list[int | None] = [
            order[index, place] for place, width in enumerate(config.skip_widths(index)) if width
        ]
        kept = len(level.down) + 1
        takers = [*[None] * (kept - len(takers)), *reversed(takers)]
        yield (f"levels.{index - 1}.downsample" if index else ""), takers[0]
        for place, taker in enumerate(takers[1:]):
            yield f"levels.{index}.down.{place}", taker
