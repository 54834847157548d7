"""Closed-form cost of the masked autoregressor, term by term; equal to what tracing the network counts, to the digit.

d is the width, n the number of image tokens, of which `known` enter the encoder: none where the network is called as a denoiser.
"""

from collections.abc import Iterator
from functools import lru_cache

from nas.cost.count import Call, Count, Term, linear, norm, term, times, total
from nas.networks.backbones.mar import FREQUENCIES, Config

COMPONENTS = ["embedding", "aligner", "encoder", "decoder", "late cross-attention", "head"]


def terms(config: Config, latent_size: int, text_tokens: int, known: int = 0) -> Iterator[Call]:
    """The terms of the sum: a function and its arguments, which are fields of the config as they stand."""
    yield from condition_terms(config, latent_size, text_tokens, known)
    own = config.canonical()
    if own.codes is not None:
        yield likelihoods, (latent_size, own.width, own.codes)
        return
    yield (
        head,
        (latent_size, own.patch, own.latent_channels, own.width, own.head_depth, own.head_width),
    )


def condition_terms(config: Config, latent_size: int, text_tokens: int, known: int = 0) -> Iterator[Call]:
    """The terms of what makes the conditions of all tokens, of which so many are known."""
    if latent_size % config.patch or latent_size < config.patch:
        raise ValueError(f"latents of side {latent_size} are not filled by patches of side {config.patch}")
    own = config.canonical()
    rows = (latent_size, text_tokens, known, own.patch, own.text, own.buffer)
    layer = (own.width, own.mlp_ratio)
    yield ends, (*rows, own.grid, own.latent_channels, own.codes, own.text_width, own.pooled_width, own.width)
    yield aligner, (latent_size, text_tokens, own.patch, own.aligner, *layer)
    yield encoder, (*rows, own.encoder_depth, *layer)
    yield decoder, (*rows, own.decoder_depth, *layer)
    yield late, (latent_size, text_tokens, own.patch, own.text, own.decoder_depth, *layer)


def before(text_tokens: int, text: str, buffer: int) -> int:
    """Rows before the image's tokens."""
    return text_tokens if text == "prefix" else buffer


@lru_cache(maxsize=1 << 14)
def ends(
    side: int,
    text_tokens: int,
    known: int,
    patch: int,
    text: str,
    buffer: int,
    grid: int,
    channels: int,
    codes: int | None,
    text_width: int,
    pooled_width: int | None,
    d: int,
) -> Term:
    """What is around encoder and decoder."""
    counts = [
        linear(known, patch**2 * channels, d) if codes is None else Count(params=codes * d),
        linear(text_tokens, text_width, d),
        linear(before(text_tokens, text, buffer) + known, d, d),
        times(3, norm(d)),
        Count(params=(3 * grid**2 + 1 + (0 if text == "prefix" else 2 * buffer)) * d),
    ]
    counts += [linear(1, pooled_width, d)] if pooled_width else []
    return term([("embedding", side // patch, total(counts))])


@lru_cache(maxsize=1 << 14)
def aligner(side: int, text_tokens: int, patch: int, depth: int, d: int, mlp_ratio: int) -> Term:
    """The blocks that the text goes through by itself."""
    one = total([*layers(text_tokens, 0, d, mlp_ratio, True, False).values()])
    return term([("aligner", side // patch, times(depth, one))])


@lru_cache(maxsize=1 << 14)
def encoder(
    side: int,
    text_tokens: int,
    known: int,
    patch: int,
    text: str,
    buffer: int,
    depth: int,
    d: int,
    mlp_ratio: int,
) -> Term:
    """The blocks over the rows before the image and the known tokens."""
    rows = before(text_tokens, text, buffer) + known
    one = total([*layers(rows, text_tokens, d, mlp_ratio, True, text == "cross").values()])
    return term([("encoder", side // patch, times(depth, one))])


@lru_cache(maxsize=1 << 14)
def decoder(
    side: int,
    text_tokens: int,
    known: int,
    patch: int,
    text: str,
    buffer: int,
    depth: int,
    d: int,
    mlp_ratio: int,
) -> Term:
    """The blocks over the rows before the image and all tokens, however many are known."""
    rows = before(text_tokens, text, buffer) + (side // patch) ** 2
    one = total([*layers(rows, text_tokens, d, mlp_ratio, True, text == "cross").values()])
    return term([("decoder", side // patch, times(depth, one))])


@lru_cache(maxsize=1 << 14)
def late(side: int, text_tokens: int, patch: int, text: str, depth: int, d: int, mlp_ratio: int) -> Term:
    """The blocks after the decoder in which the image's tokens attend to the text."""
    one = total([*layers((side // patch) ** 2, text_tokens, d, mlp_ratio, False, True).values()])
    return term([("late cross-attention", side // patch, times(depth if text == "late_cross" else 0, one))])


@lru_cache(maxsize=1 << 14)
def head(side: int, patch: int, channels: int, d: int, depth: int, width: int) -> Term:
    """The head on all tokens."""
    return term([("head", side // patch, head_on((side // patch) ** 2, patch**2 * channels, d, depth, width))])


@lru_cache(maxsize=1 << 14)
def likelihoods(side: int, d: int, codes: int) -> Term:
    """How likely each entry of the codebook is, of all tokens."""
    return term([("head", side, linear(side**2, d, codes))])


def head_on(tokens: int, token_width: int, d: int, depth: int, width: int) -> Count:
    """The head on so many tokens at one time."""
    one = total([head_layer(tokens, width), linear(tokens, width, 3 * width), norm(width)])
    time = [linear(1, FREQUENCIES, width), linear(1, width, width)]
    inputs = [linear(tokens, d, width), linear(tokens, token_width, width)]
    outputs = [linear(tokens, width, 2 * width), linear(tokens, width, token_width)]
    return total([*time, *inputs, times(depth, one), *outputs])


def head_layer(tokens: int, width: int) -> Count:
    """The MLP of one of its blocks."""
    return times(2, linear(tokens, width, width))


def layers(rows: int, context: int, d: int, mlp_ratio: int, own: bool, cross: bool) -> dict[str, Count]:
    """A block over so many rows, by the names of its modules; `context` are the rows that cross-attention reads."""
    found = {"mlp": total([linear(rows, d, mlp_ratio * d), linear(rows, mlp_ratio * d, d)])}
    found |= {"attend_self": _attention(rows, rows, d)} if own else {}
    found |= {"attend_cross": _attention(rows, context, d)} if cross else {}
    return found | {"norms": times(len(found), norm(d))}


def _attention(rows: int, context: int, d: int) -> Count:
    products = Count(0, 2 * rows * context * d, 2 * rows * context * d, 0, rows * d)
    return total([linear(rows, d, d), *[linear(context, d, d)] * 2, products, linear(rows, d, d)])
