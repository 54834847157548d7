"""Closed-form cost of the UNet, term by term; equal to what tracing the network counts, to the digit.

A network's cost is a sum of terms: for each level its convolutions and its transformer blocks, and one for the rest. A
term is a cached function of the fields it reads, so that a candidate costs a few look-ups, and a whole space a few
tables (`nas.space.cost_tables`).

Throughout: n is a square image's side, i and o are input and output channels, c a width, T text tokens.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from nas.cost.count import Call, Count, Pieces, Term, conv2d, depthwise2d, linear, norm, term, times, total
from nas.networks.backbones.unet import Config


def terms(config: Config, latent_size: int, text_tokens: int) -> Iterator[Call]:
    """The terms of the sum: a function and its arguments, which are fields of the config as they stand.

    Arguments must not be derived from several fields: `nas.space.cost_tables` finds out which fields a term reads by changing one
    at a time.
    """
    levels, last = config.levels, len(config.levels) - 1
    if latent_size % 2**last or latent_size < 2**last:
        raise ValueError(f"latents of side {latent_size} cannot be halved {last} times, once per level below the first")
    for index, level in enumerate(levels):
        side, mid = latent_size >> index, config.mid if index == last else ()
        above, below = levels[max(index - 1, 0)].channels, levels[min(index + 1, last)].channels
        yield (
            convolutions,
            (side, index == 0, index == last, above, level.channels, below, len(level.down), len(mid), len(level.up))
            + (level.conv, level.kernel, config.skips, config.expansion, config.time_width),
        )
        yield (
            transformers,
            (side, level.channels, level.down, mid, level.up, level.self_attention, level.cross_attention)
            + (level.ffn_ratio, config.projections, config.shared_kv)
            + (config.text_width, text_tokens, config.pooled_tokens)
            + ((config.head_dim, config.heads) if config.attention == "relu" else (1, None)),
        )
    yield (
        ends,
        (latent_size, levels[0].channels, config.latent_channels, config.time_width)
        + (config.pooled_width, config.pooled_tokens, config.text_width),
    )


@lru_cache(maxsize=1 << 16)
def convolutions(
    side: int,
    first: bool,
    last: bool,
    above: int,
    channels: int,
    below: int,
    downs: int,
    mids: int,
    ups: int,
    conv: Literal["full", "separable"],
    kernel: int,
    skips: Literal["outer", "all"],
    expansion: int,
    time_width: int,
) -> Term:
    """All conv blocks of one level, and its convolutions to the next smaller and the next larger image."""
    kept = ([channels] * downs + [above]) if skips == "all" or not last else []
    skip = (kept + [0] * ups)[:ups]
    inputs = [above] + [channels] * (downs - 1) + [channels] * mids
    inputs += [width + extra for width, extra in zip([below] + [channels] * (ups - 1), skip, strict=True)]
    pieces: Pieces = []
    for width in inputs:
        pieces += _conv_block(side, width, channels, conv, kernel, expansion, time_width)
    if not last:
        pieces.append(("downsample", side // 2, conv2d(side, channels, channels, 3, stride=2)))
    if not first:
        pieces.append(("upsample", side * 2, conv2d(side * 2, channels, channels, 3)))
    return term(pieces)


def _conv_block(n: int, i: int, o: int, conv: str, kernel: int, expansion: int, time_width: int) -> Pieces:
    if conv == "full":
        body = [conv2d(n, i, o, kernel), conv2d(n, o, o, kernel)]
        norms = norm(i + o)
    else:
        inner = expansion * o
        body = [depthwise2d(n, i, kernel), conv2d(n, i, inner, 1), conv2d(n, inner, o, 1)]
        norms = norm(i)
    if i != o:
        body.append(conv2d(n, i, o, 1))
    return [(f"{conv} conv", n, total(body)), ("time projection", n, linear(1, time_width, o)), ("norm", n, norms)]


@lru_cache(maxsize=1 << 16)
def transformers(
    side: int,
    c: int,
    down: tuple[int, ...],
    mid: tuple[int, ...],
    up: tuple[int, ...],
    self_attention: bool,
    cross_attention: bool,
    ffn_ratio: int,
    projections: Literal["stack", "block"],
    shared_kv: bool,
    text_width: int,
    text_tokens: int,
    pooled_tokens: int,
    head_dim: int | None,
    heads: int | None,
) -> Term:
    """All transformer blocks of one level, with the pointwise convolutions around them.

    head_dim and heads matter only for relu attention, whose weights are a tensor of their own; softmax is fused.
    """
    depths = down + mid + up if self_attention or cross_attention else ()
    blocks = sum(depths)
    stacks = blocks if projections == "block" else sum(depth > 0 for depth in depths)
    if not blocks:
        return term([])
    n, inner = side * side, ffn_ratio * c
    weights = 0 if head_dim == 1 else (heads or c // (head_dim or c)) * n
    pieces: Pieces = [
        ("projections", side, times(stacks, total([linear(n, c, c), linear(n, c, c)]))),
        ("ffn", side, times(blocks, total([linear(n, c, 2 * inner), linear(n, inner, c)]))),
        ("norm", side, norm((stacks + blocks * (1 + self_attention + cross_attention)) * c)),
    ]
    if self_attention:
        keys = [linear(n, c, c, bias=False)] * (1 if shared_kv else 2)
        products = Count(0, 2 * n * n * c, 2 * n * n * c, 0, n * c + n * weights)
        parts_ = [linear(n, c, c, bias=False), *keys, products, linear(n, c, c)]
        pieces.append(("self-attention", side, times(blocks, total(parts_))))
    if cross_attention:
        tokens = pooled_tokens + text_tokens
        keys = [linear(tokens, text_width, c, bias=False)] * 2
        products = Count(0, 2 * n * tokens * c, 2 * n * tokens * c, 0, n * c + tokens * weights)
        parts_ = [linear(n, c, c, bias=False), *keys, products, linear(n, c, c)]
        pieces.append(("cross-attention", side, times(blocks, total(parts_))))
    return term(pieces)


@lru_cache(maxsize=1 << 16)
def ends(
    side: int,
    channels: int,
    latent_channels: int,
    time_width: int,
    pooled_width: int | None,
    pooled_tokens: int,
    text_width: int,
) -> Term:
    """First and last convolution, the embedding of time and pooled text, and the tokens made of the latter."""
    embedding = [linear(1, channels, time_width), linear(1, time_width, time_width)]
    if pooled_width:
        embedding += [linear(1, pooled_width, time_width), linear(1, time_width, time_width)]
    convs = [conv2d(side, latent_channels, channels, 3), conv2d(side, channels, latent_channels, 3)]
    pieces = [("embedding", side, total(embedding)), ("first and last conv", side, total(convs))]
    if pooled_width and pooled_tokens:
        pieces.append(("pooled tokens", side, linear(1, pooled_width, pooled_tokens * text_width)))
    return term([*pieces, ("norm", side, norm(channels))])


COMPONENTS = [
    "embedding",
    "pooled tokens",
    "first and last conv",
    "full conv",
    "separable conv",
    "time projection",
    "self-attention",
    "cross-attention",
    "ffn",
    "projections",
    "downsample",
    "upsample",
    "norm",
]
