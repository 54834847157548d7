"""Which units of a network a drawing computes at which step: the heuristics of the literature, and a schedule written out.

Each is a value of `sampling.cache`. It becomes a table for the units of one network (`nas.cost.units`), which
`nas.diffusion.caches.caching` draws by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from nas.cost.units import COMPUTE, CROSS, SELF, WHOLE, Modes, Units
from nas.documents.section import Section
from nas.errors import InputError, shown

LETTERS = {"c": COMPUTE, "r": 0, "1": 1, "2": 2, "3": 3}  # of a schedule that is written out
MOST_EVERY = 1000


class Schedule(Section):
    """What they have in common."""

    @property
    def extrapolates(self) -> bool:
        """Whether a unit that is not computed may be other than it was."""
        return False


class Fora(Schedule):
    """All units are computed at every so many steps and kept between (FORA, Selvaraju et al. 2024, arXiv 2407.01425). There,
    units are attention and MLP; here the residual branches of conv blocks are too."""

    name: Literal["fora"]
    """FORA."""
    every: int = Field(2, ge=1, le=MOST_EVERY)
    """Steps from one that is computed to the next."""

    def modes(self, steps: int, units: Units) -> Modes:
        """(steps, units)"""
        kept = np.arange(steps) % self.every > 0
        return _kept(kept[:, None] & (units.components != WHOLE))


class DeepCache(Schedule):
    """What lies deeper than a skip connection is computed at every so many steps and kept between (Ma et al. 2024, arXiv
    2312.00858). A network without skip connections has no such units."""

    name: Literal["deepcache"]
    """DeepCache."""
    every: int = Field(2, ge=1, le=MOST_EVERY)
    """Steps from one that is computed whole to the next."""
    branch: int = Field(0, ge=0)
    """The skip connection, counted from the outside."""

    def modes(self, steps: int, units: Units) -> Modes:
        """(steps, units). Raises InputError for a network that has no skip connection of that number."""
        deepest = int(units.depths.max(initial=-1)) - 1
        if deepest < 0:
            raise InputError(
                "cache: deepcache keeps what lies deeper than a skip connection, and this network has none"
            )
        if self.branch > deepest:
            raise InputError(f"cache.branch: {self.branch}; expected at most {deepest}, the innermost of this network")
        kept = np.arange(steps) % self.every > 0
        return _kept(kept[:, None] & (units.depths > self.branch))


class TGate(Schedule):
    """Cross-attention is kept from a step on; self-attention is computed at every so many steps before it, and at each after
    (T-GATE, Zhang et al. 2024, arXiv 2404.02747). The two guidance branches are kept as they are, not averaged."""

    name: Literal["tgate"]
    """T-GATE."""
    gate: int = Field(5, ge=1, le=MOST_EVERY)
    """The first step that keeps what cross-attention put out at the one before."""
    every: int = Field(1, ge=1, le=MOST_EVERY)
    """Steps from one of self-attention to the next, before the gate; the first two are computed. 1: all are."""

    def modes(self, steps: int, units: Units) -> Modes:
        """(steps, units)"""
        step = np.arange(steps)[:, None]
        cross = (step >= self.gate) & (units.components == CROSS)
        own = (step >= 2) & (step < self.gate) & (step % self.every > 0) & (units.components == SELF)
        return _kept(cross | own)


class TaylorSeer(Schedule):
    """All units are computed at every so many steps, and between them extrapolated from the differences of what they put out
    (Liu et al. 2025, arXiv 2503.06923)."""

    name: Literal["taylorseer"]
    """TaylorSeer."""
    every: int = Field(2, ge=1, le=MOST_EVERY)
    """Steps from one that is computed to the next."""
    order: int = Field(1, ge=0, le=3)
    """Of the Taylor polynomial; 0 keeps the last output."""
    first: int = Field(2, ge=1, le=MOST_EVERY)
    """Steps at the beginning that are computed."""

    @property
    def extrapolates(self) -> bool:
        return self.order > 0

    def modes(self, steps: int, units: Units) -> Modes:
        """(steps, units)"""
        step = np.arange(steps)
        kept = (step >= self.first) & ((step - self.first + 1) % self.every > 0)
        return _kept(kept[:, None] & (units.components != WHOLE), self.order)


class Evenly(Schedule):
    """One kind of unit is computed at a number of steps, spaced evenly, and kept between; all others are computed."""

    name: Literal["evenly"]
    """One kind of unit."""
    component: Literal["self_attention", "cross_attention", "feed_forward", "conv"]
    """The kind."""
    computed: int = Field(ge=1, le=MOST_EVERY)
    """Steps at which it is computed, the first among them."""

    def modes(self, steps: int, units: Units) -> Modes:
        """(steps, units)"""
        kept = np.ones(steps, dtype=bool)
        kept[np.arange(min(self.computed, steps)) * steps // min(self.computed, steps)] = False
        return _kept(kept[:, None] & (units.components == self.component))


class Written(Schedule):
    """A schedule step by step and unit by unit, as `nas schedule` finds it."""

    name: Literal["schedule"]
    """A schedule, written out."""
    network: str
    """Twelve hex digits of the units it is for: networks with units of the same names share them."""
    rows: tuple[str, ...] = Field(min_length=1)
    """One a step, with a letter a unit: c is computed, r keeps the last output, 1 to 3 extrapolate by that order. Units stand
    in the order of the network's list, whole blocks first."""

    @model_validator(mode="after")
    def _legible(self) -> Self:
        for number, row in enumerate(self.rows):
            if wrong := sorted(set(row) - set(LETTERS)):
                raise ValueError(
                    f"rows: row {number} has {shown(wrong[0])}; expected letters among {', '.join(LETTERS)}"
                )
            if len(row) != len(self.rows[0]):
                raise ValueError(
                    f"rows: row {number} has {len(row)} letters; expected {len(self.rows[0])}, as row 0 has"
                )
        return self

    @property
    def extrapolates(self) -> bool:
        return any(LETTERS[letter] > 0 for row in self.rows for letter in row)

    def modes(self, steps: int, units: Units) -> Modes:
        """(steps, units), as many steps as there are rows. Raises InputError for another network."""
        if len(self.rows[0]) != len(units):
            raise InputError(
                f"cache.rows: {len(self.rows[0])} letters in a row, and the network has {len(units)} units; expected as many"
            )
        if self.network != fingerprint(units):
            raise InputError(
                f"cache.network: the schedule is for units {shown(self.network)}, and the network has {fingerprint(units)}"
            )
        return np.array([[LETTERS[letter] for letter in row] for row in self.rows], dtype=np.int8)


Cache = Annotated[Fora | DeepCache | TGate | TaylorSeer | Evenly | Written, Field(discriminator="name")]


def written(modes: Modes, units: Units) -> Written:
    """A table (steps, units) written out."""
    letters = {mode: letter for letter, mode in LETTERS.items()}
    rows = tuple("".join(letters[int(mode)] for mode in row) for row in modes)
    return Written(name="schedule", network=fingerprint(units), rows=rows)


def presets(steps: int, units: Units) -> Sequence[Fora | DeepCache | TGate | TaylorSeer | Evenly]:
    """The heuristics on a grid of what they are set to, as far as the network has what they keep."""
    every = range(2, max(3, min(9, steps)))
    found: list[Fora | DeepCache | TGate | TaylorSeer | Evenly] = [Fora(name="fora", every=n) for n in every]
    deepest = int(units.depths.max(initial=-1))
    found += [DeepCache(name="deepcache", every=n, branch=b) for b in range(deepest) for n in every]
    if CROSS in units.components:
        gates = sorted({max(1, steps * tenth // 10) for tenth in (2, 3, 4, 5, 6, 7, 8)})
        found += [TGate(name="tgate", gate=gate, every=n) for gate in gates for n in (1, 2, 3)]
    found += [TaylorSeer(name="taylorseer", every=n, order=k) for n in every for k in (1, 2)]
    kinds = [kind for kind in dict.fromkeys(map(str, units.components)) if kind != WHOLE]
    counts = sorted({max(1, steps * part // 6) for part in range(1, 6)})
    return found + [Evenly(name="evenly", component=kind, computed=n) for kind in kinds for n in counts]


def fingerprint(units: Units) -> str:
    """Twelve hex digits of the names of the units."""
    return hashlib.sha256("\n".join(units.names).encode()).hexdigest()[:12]


def _kept(kept: NDArray[np.bool_], order: int = 0) -> Modes:
    """The table that extrapolates by this order where a mask (steps, units) says so, and computes elsewhere."""
    return np.where(kept, order, COMPUTE).astype(np.int8)
