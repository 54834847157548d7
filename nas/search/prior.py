"""What a person believes of a search, and how it is forgotten as evidence comes.

A belief names the likely value v of an axis with k choices, with certainty c. A draw from it takes v with probability c, and any
choice alike otherwise. So a member x is

    w(x) = prod over axes of (1 - c + c k where x has v, 1 - c where it has another)

times as likely as without beliefs; an axis that x does not have counts 1.

- A sampler that proposes one member after another gives way to a draw with probability s(n) = B / 2 (B + n), where n trainings
  have ended: to half at first, as PriorBand shares between prior and chance (Mallik et al. 2023, arXiv 2306.12370; its shares
  change with fidelity, these with evidence). So of N proposals less than B / 2 ln(1 + N / B) + 1 / 2 are expected to be draws.
- A rating of known candidates is multiplied by w(x)^(1 / (1 + n)), as PiBO weighs an acquisition function with a prior that
  decays (Hvarfner et al. 2022, arXiv 2204.11051, with beta 1).
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from nas import menu
from nas.documents.section import Section
from nas.errors import shown

CERTAINTY = {"low": 0.25, "medium": 0.5, "high": 0.75}
FADES = 8  # B: trainings after which half as many draws come from beliefs


def _known(word: str) -> str:
    if word not in CERTAINTY:
        raise ValueError(f"unknown confidence {shown(word)}{menu.nearest(word, list(CERTAINTY))}")
    return word


class Belief(Section):
    """The likely value of an axis."""

    value: Any
    """One of the axis's choices."""
    confidence: Annotated[str, AfterValidator(_known)] = "medium"
    """low, medium or high: a draw takes the value for sure with probability 0.25, 0.5 or 0.75, and any choice alike otherwise."""

    @property
    def certainty(self) -> float:
        """c."""
        return CERTAINTY[self.confidence]


def share(ended: int) -> float:
    """The probability that a proposal is drawn from beliefs after so many trainings, s(n)."""
    return 0.5 * FADES / (FADES + ended)


def ratio(certainty: float, choices: int, agrees: bool) -> float:
    """How many times as likely as without the belief a choice of its axis is."""
    return 1 - certainty + agrees * certainty * choices


def weighted(rated: NDArray[np.float64], weights: NDArray[np.float64], ended: int) -> NDArray[np.float64]:
    """Ratings (n,) of candidates whose w(x) are `weights` (n,), after so many trainings."""
    return rated * weights ** (1 / (1 + ended))
