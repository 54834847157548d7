"""Closed-form cost of the diffusion transformer, term by term; equal to what tracing the network counts, to the digit.

d is the width, n the number of image tokens, m the length of the whole row of tokens.
"""

from collections.abc import Iterator
from functools import lru_cache

from nas.cost.count import Call, Count, Pieces, Term, conv2d, linear, term, times, total
from nas.networks.backbones.dit import FREQUENCIES, Config

COMPONENTS = ["embedding", "self-attention", "cross-attention", "mlp", "modulation", "skips", "norm", "output"]


def terms(config: Config, latent_size: int, text_tokens: int) -> Iterator[Call]:
    """The terms of the sum: a function and its arguments, which are fields of the config as they stand."""
    if latent_size % config.patch or latent_size < config.patch:
        raise ValueError(f"latents of side {latent_size} are not filled by patches of side {config.patch}")
    tokens = (latent_size, text_tokens, config.patch, config.text, config.modulation)
    own = config.canonical()
    yield ends, (*tokens, own.width, own.latent_channels, own.text_width, own.pooled_width, own.norm)
    yield (
        row,
        (*tokens, own.depth, own.width, own.heads, own.mlp_ratio, own.shared_kv, own.qk_norm, own.norm, own.skips),
    )


@lru_cache(maxsize=1 << 14)
def ends(
    side: int,
    text_tokens: int,
    patch: int,
    text: str,
    modulation: str,
    d: int,
    channels: int,
    text_width: int,
    pooled_width: int | None,
    norm: str,
) -> Term:
    """What comes before the blocks and after them."""
    n = (side // patch) ** 2
    embedding = [linear(n, patch * patch * channels, d)]
    embedding += [linear(1, FREQUENCIES, d), linear(1, d, d)] if modulation != "token" else []
    embedding += [linear(1, pooled_width, d)] if pooled_width else []
    embedding += [linear(text_tokens, text_width, d)] if text != "none" else []
    embedding += [linear(text_tokens, d, d)] if text == "cross" else []
    output = [linear(n, d, patch * patch * channels)]
    output += [conv2d(side, channels, channels, 3)] if modulation == "token" else []
    pieces: Pieces = [("embedding", side // patch, total(embedding)), ("output", side // patch, total(output))]
    if modulation == "block":
        pieces.append(("modulation", side // patch, linear(1, d, 2 * d)))
    elif modulation == "shared":
        pieces.append(("modulation", side // patch, total([linear(1, d, 6 * d), Count(params=2 * d)])))
    return term([*pieces, ("norm", side // patch, _norm(norm, d, modulation))])


@lru_cache(maxsize=1 << 14)
def row(
    side: int,
    text_tokens: int,
    patch: int,
    text: str,
    modulation: str,
    depth: int,
    d: int,
    heads: int,
    mlp_ratio: int,
    shared_kv: bool,
    qk_norm: bool,
    norm: str,
    skips: bool,
) -> Term:
    """All blocks."""
    m = (side // patch) ** 2 + (text_tokens if text == "sequence" else 0) + (modulation == "token")
    bias = modulation != "token"
    heads_ = Count(params=2 * (d // heads) * qk_norm)
    pieces: Pieces = [
        ("self-attention", side // patch, times(depth, total([_attention(m, m, d, bias, shared_kv), heads_]))),
        ("mlp", side // patch, times(depth, total([linear(m, d, mlp_ratio * d), linear(m, mlp_ratio * d, d)]))),
        ("norm", side // patch, times(2 * depth, _norm(norm, d, modulation))),
    ]
    if text == "cross":
        pieces.append(
            (
                "cross-attention",
                side // patch,
                times(depth, total([_attention(m, text_tokens, d, bias, False), heads_])),
            )
        )
    if modulation != "token":
        own = linear(1, d, 6 * d) if modulation == "block" else Count(params=6 * d)
        pieces.append(("modulation", side // patch, times(depth, own)))
    if skips:
        pieces.append(("skips", side // patch, times(depth // 2, linear(m, 2 * d, d))))
    return term(pieces)


def _attention(m: int, context: int, d: int, bias: bool, shared_kv: bool) -> Count:
    keys = [linear(context, d, d, bias)] * (1 if shared_kv else 2)
    products = Count(0, 2 * m * context * d, 2 * m * context * d, 0, m * d)
    return total([linear(m, d, d, bias), *keys, products, linear(m, d, d)])


def _norm(kind: str, d: int, modulation: str) -> Count:
    """A norm has numbers of its own only where the time does not shift and scale."""
    return Count(params=(2 * d if kind == "layer" else d) if modulation == "token" else 0)
