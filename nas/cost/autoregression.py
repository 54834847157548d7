"""What it costs to draw a picture a few tokens at a time, each from a distribution given those that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Autoregression:
    """The two parts of a network that draws so, in multiply-adds for one picture, without guidance."""

    tokens: int
    """Of a picture."""
    conditions: Callable[[int], int]
    """Of all tokens, of which so many are known."""
    denoised: Callable[[int], int]
    """So many tokens, at one time."""
    codes: int | None = None
    """That a token is drawn from at once; None where it is numbers, which are denoised."""

    def macs(self, drawn: Sequence[int], steps: int) -> int:
        """Of a whole drawing: so many tokens in each iteration, each denoised in so many steps."""
        known = (sum(drawn[:iteration]) for iteration in range(len(drawn)))
        return sum(self.conditions(count) + steps * self.denoised(new) for count, new in zip(known, drawn, strict=True))
