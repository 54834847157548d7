"""The units of a network whose outputs may be kept from one step of a drawing for a later one, and what a schedule of them costs.

A schedule says for every step and unit whether it is computed, or made of what it put out before. Whatever it says, a unit that
has put out nothing yet is computed, and one inside another that is not computed is not called: that is the effective schedule,
and only its cost is real (ECAD, Aggarwal et al. 2025, arXiv 2506.15682).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.cost.autoregression import Autoregression
from nas.cost.count import Count

COMPUTE = -1  # in a schedule; else the order of the extrapolation: 0 is the last output as it was
ATTENTION = SELF, CROSS = "self_attention", "cross_attention"
FEED_FORWARD, CONV, WHOLE = "feed_forward", "conv", "whole"

Modes = NDArray[np.int8]  # (..., steps, units)
Computed = NDArray[np.bool_]  # (..., steps, units)


@dataclass(frozen=True)
class Unit:
    """One module, or the residual branch of one."""

    name: str
    """Of the module, as `get_submodule` takes it."""
    component: str
    """What it computes: attention, feed-forward or convolution; WHOLE where other units may lie inside it."""
    own: Count
    """What one call on one image costs, without what units inside it cost."""
    inside: str | None = None
    """The unit that holds it."""
    method: str = "forward"
    """Of the module: its output is what is kept."""
    depth: int | None = None
    """Of a WHOLE: between the ends of which skip connection it lies, the outermost being 0. With everything deeper than b
    kept, what the skip b carries, and all outside it, is computed (DeepCache's branches)."""


@dataclass(frozen=True)
class Units:
    """All units of a network, those that hold others before those inside."""

    members: tuple[Unit, ...]
    network: Count
    """What one call of the whole network costs."""
    autoregression: Autoregression | None = None
    """What drawing token by token costs; None where the network cannot draw so."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> list[str]:
        return [unit.name for unit in self.members]

    @cached_property
    def components(self) -> NDArray[np.str_]:
        """(units,)"""
        return np.array([unit.component for unit in self.members])

    @cached_property
    def depths(self) -> NDArray[np.int64]:
        """(units,): of every unit, and -1 for those that belong to no skip connection."""
        return np.array([-1 if unit.depth is None else unit.depth for unit in self.members])

    @cached_property
    def inside(self) -> NDArray[np.int64]:
        """(units,): the place of the unit that holds each, -1 for none."""
        places = {unit.name: place for place, unit in enumerate(self.members)}
        return np.array([-1 if unit.inside is None else places[unit.inside] for unit in self.members])

    def effective(self, modes: Modes) -> Computed:
        """Which units are computed at which step under a schedule, or under each of several."""
        computed = np.zeros(modes.shape, dtype=bool)
        filled = np.zeros((*modes.shape[:-2], len(self)), dtype=bool)
        for step in range(modes.shape[-2]):
            now = computed[..., step, :]
            for places in self._generations:
                called = self.called(now, places)
                wanted = modes[..., step, places] == COMPUTE
                now[..., places] = called & (wanted | ~filled[..., places])
            filled |= now
        return computed

    def canonical(self, modes: Modes) -> Modes:
        """The one spelling of a schedule, or of each of several: what is computed says so, and what is not called says 0."""
        computed = self.effective(modes)
        called = self.called(computed)
        return np.where(computed, COMPUTE, np.where(called, modes, 0)).astype(np.int8)

    def called(self, computed: Computed, places: NDArray[np.int64] | None = None) -> Computed:
        """Of the units, or those at some places, which their holder calls at a step (..., units)."""
        holders = self.inside if places is None else self.inside[places]
        return np.asarray(computed[..., holders] | (holders < 0))

    def macs(self, computed: Computed, attention: bool = True) -> NDArray[np.int64]:
        """Multiply-adds of one call on one image at each step (..., steps); without the two products of attention if so asked."""
        own = np.array([_macs(unit.own, attention) for unit in self.members], dtype=np.int64)
        rest = _macs(self.network, attention) - int(own.sum())
        return np.asarray(rest + computed @ own)

    @cached_property
    def _generations(self) -> list[NDArray[np.int64]]:
        """Places of the units that nothing holds, of those that these hold, and so on."""
        ages = np.zeros(len(self), dtype=np.int64)
        for place, holder in enumerate(self.inside):
            ages[place] = 0 if holder < 0 else ages[holder] + 1
        return [np.flatnonzero(ages == age) for age in range(ages.max(initial=-1) + 1)]


def _macs(count: Count, attention: bool) -> int:
    return count.macs if attention else count.macs - count.attention


def of(members: Sequence[Unit], network: Count, autoregression: Autoregression | None = None) -> Units:
    """The units of a network, in the order in which they are called but for those inside others, which follow these."""
    ordered = sorted(members, key=lambda unit: unit.inside is not None)
    return Units(tuple(ordered), network, autoregression)
