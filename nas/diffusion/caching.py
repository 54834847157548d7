"""Drawing with units that are kept from step to step: what `nas.cost.units` counts is what is computed here.

While a drawing lasts, the methods of a network's units are replaced on its modules by ones that either call them, and keep what
comes, or make it of what was kept. A unit is a module's output before anything gates it, so that gates, and what the time shifts,
are always those of the step. A network that is drawn without a schedule is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import factorial
from typing import Any

import numpy as np
from torch import Tensor, nn

from nas.cost.units import COMPUTE, Modes, Units


@dataclass
class Steps:
    """Where a drawing is. The sampler moves it: modules are called as often as a solver and guidance please."""

    now: int = 0


@dataclass
class _Kept:
    """What a unit put out last, and its differences over steps up to an order, newest first in meaning: D_0 is the output."""

    step: int = -1
    differences: list[Tensor] = field(default_factory=list)

    def put(self, step: int, output: Tensor, order: int) -> None:
        """D_(i+1) = (D_i - D_i before) / (steps between), TaylorSeer, eq. 3 of arXiv 2503.06923."""
        new = [output]
        for before in self.differences[:order]:
            new.append((new[-1] - before) / (step - self.step))
        self.step, self.differences = step, new

    def at(self, step: int, order: int) -> Tensor:
        """The Taylor polynomial of the order, or of as high a one as there are differences for."""
        ahead = step - self.step
        terms = [d * (ahead**i / factorial(i)) if i else d for i, d in enumerate(self.differences[: order + 1])]
        return sum(terms[1:], start=terms[0])


@contextmanager
def keeping(network: nn.Module, units: Units, modes: Modes) -> Iterator[Steps]:
    """Draw by a schedule (steps, units) inside; whoever draws sets `Steps.now` before each step.

    Nothing is left on the network, and nothing kept, when it ends: pictures of two drawings do not meet.
    """
    steps, computed = Steps(), units.effective(modes)
    changed: list[tuple[nn.Module, str]] = []
    try:
        for place, unit in enumerate(units.members):
            if not (modes[:, place] != COMPUTE).any():
                continue
            module = network.get_submodule(unit.name)
            keep = _keep(modes[:, place], computed[:, place])
            setattr(module, unit.method, _scheduled(getattr(module, unit.method), steps, keep, modes[:, place].tolist()))
            changed.append((module, unit.method))
        yield steps
    finally:
        for module, method in changed:
            delattr(module, method)


def _keep(modes: Modes, computed: np.ndarray) -> list[int]:
    """At each step the order up to which differences are wanted of what is computed there, -1 for nothing."""
    highest = [COMPUTE] * len(modes)
    most = int(modes.max())
    for step in np.flatnonzero(computed):
        later = modes[step + 1 :]
        if (later != COMPUTE).any():
            highest[step] = most
    return highest


def _scheduled(
    compute: Callable[..., Tensor], steps: Steps, keep: list[int], modes: list[int]
) -> Callable[..., Tensor]:
    kept = _Kept()

    def output(*given: Any) -> Tensor:
        now = steps.now
        if modes[now] != COMPUTE and kept.differences:
            return kept.at(now, modes[now])
        found = compute(*given)
        if keep[now] != COMPUTE:
            kept.put(now, found, keep[now])
        return found

    return output
