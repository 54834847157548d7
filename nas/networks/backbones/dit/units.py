"""The units of the diffusion transformer that a schedule may keep: what each block adds to the tokens, before its gates."""

from __future__ import annotations

from nas.cost import units
from nas.cost.count import Count, total
from nas.cost.units import CROSS, FEED_FORWARD, SELF, Unit
from nas.networks.backbones.dit import Config
from nas.networks.backbones.dit.cost import row

MODULES = {
    "self-attention": (SELF, "attend_self"),
    "cross-attention": (CROSS, "attend_cross"),
    "mlp": (FEED_FORWARD, "mlp"),
}


def of(config: Config, latent_size: int, text_tokens: int) -> units.Units:
    """All of them. Raises ValueError for latents that the network cannot take."""
    own = config.canonical()
    terms = list(own.cost_terms(latent_size, text_tokens))
    network = total([function(*given).total for function, given in terms])
    pieces = {
        piece: count for function, given in terms if function is row for piece, _, count in function(*given).pieces
    }
    members = [
        Unit(f"blocks.{index}.{module}", component, _one(pieces[piece], own.depth))
        for index in range(own.depth)
        for piece, (component, module) in MODULES.items()
        if piece in pieces
    ]
    return units.of(members, network)


def _one(count: Count, blocks: int) -> Count:
    """What each of so many alike blocks costs."""
    return Count(*(value // blocks for value in count))
