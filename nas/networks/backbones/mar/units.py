"""The units of the masked autoregressor that a schedule may keep, what each block adds to its rows; and what drawing token by
token costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from nas.cost import units
from nas.cost.autoregression import Autoregression
from nas.cost.count import Call, linear, total
from nas.cost.units import CROSS, FEED_FORWARD, SELF, Unit
from nas.networks.backbones.mar import Config
from nas.networks.backbones.mar.cost import before, condition_terms, head_layer, head_on, layers

MODULES = {"attend_self": SELF, "attend_cross": CROSS, "mlp": FEED_FORWARD}


def of(config: Config, latent_size: int, text_tokens: int) -> units.Units:
    """All of them. Raises ValueError for latents that the network cannot take."""
    own = config.canonical()
    network = total([function(*given).total for function, given in own.cost_terms(latent_size, text_tokens)])
    tokens = (latent_size // own.patch) ** 2
    conditions = partial(_conditions, own, latent_size, text_tokens)
    drawing = Autoregression(tokens, conditions, partial(_denoised, own), own.codes)
    return units.of([*_blocks(own, tokens, text_tokens), *_head(own, tokens)], network, drawing)


def _blocks(config: Config, tokens: int, text_tokens: int) -> Iterator[Unit]:
    """Of every stack in the order of a call."""
    first, cross = before(text_tokens, config.text, config.buffer), config.text == "cross"
    stacks = [
        ("aligner", config.aligner, text_tokens, True, False),
        ("encoder", config.encoder_depth, first, True, cross),
        ("decoder", config.decoder_depth, first + tokens, True, cross),
        ("late", config.decoder_depth if config.text == "late_cross" else 0, tokens, False, True),
    ]
    for stack, depth, rows, own, attends in stacks:
        costs = layers(rows, text_tokens, config.width, config.mlp_ratio, own, attends)
        for index in range(depth):
            for module, component in MODULES.items():
                if module in costs:
                    yield Unit(f"{stack}.{index}.{module}", component, costs[module])


def _head(config: Config, tokens: int) -> Iterator[Unit]:
    for index in range(config.head_depth if config.codes is None else 0):
        yield Unit(f"head.blocks.{index}.mlp", FEED_FORWARD, head_layer(tokens, config.head_width))


def _conditions(config: Config, latent_size: int, text_tokens: int, known: int) -> int:
    """Multiply-adds of the conditions of all tokens where so many are known."""
    calls: Iterator[Call] = condition_terms(config, latent_size, text_tokens, known)
    return sum(function(*given).total.macs for function, given in calls)


def _denoised(config: Config, tokens: int) -> int:
    """Multiply-adds of the head on so many tokens at one time, or of how likely each entry of the codebook is."""
    if config.codes is not None:
        return linear(tokens, config.width, config.codes).macs
    return head_on(tokens, config.token_width, config.width, config.head_depth, config.head_width).macs
