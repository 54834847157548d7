"""How many tokens of a picture are drawn at once: the cosine rule of MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3),
as MAR counts (Li et al. 2024, arXiv 2406.11838, section 4.3). Few at first, more where much is known."""

from __future__ import annotations

import math


def counts(tokens: int, iterations: int | None) -> list[int]:
    """Tokens that each iteration draws, at least one; None for one in each, as do more iterations than tokens.

    After iteration i of n, floor(L cos(pi i / 2 n)) of the L tokens are missing, and none after the last.
    """
    last, missing, found = min(iterations or tokens, tokens), tokens, []
    for iteration in range(1, last):
        after = max(1, min(missing - 1, math.floor(tokens * math.cos(math.pi / 2 * iteration / last))))
        found.append(missing - after)
        missing = after
    return [*found, missing]
