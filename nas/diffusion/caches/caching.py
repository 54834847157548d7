"""Drawing with units that are kept from step to step: what `nas.cost.units` counts is what is computed here.

While a drawing lasts, the methods of a network's units are replaced on its modules by ones that either call them, and keep what
comes, or make it of what was kept. A unit is a module's output before anything gates it, so that gates, and what the time shifts,
are always those of the step. A network that is drawn without a schedule is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from math import factorial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.cost.units import COMPUTE, Modes, Units

if TYPE_CHECKING:
    from nas.diffusion.plan import Plan


@dataclass
class Steps:
    """Where a drawing is. The sampler moves it: modules are called as often as a solver and guidance please."""

    now: int = 0


@runtime_checkable
class Keeps(Protocol):
    """A network that keeps units by itself, such as graphs on a runtime."""

    def keeping(self, plan: Plan) -> AbstractContextManager[Steps]:
        """While a drawing by the plan lasts. Raises InputError for a plan it cannot keep units by."""
        ...


@dataclass
class _Kept:
    """What a unit put out when it was computed last: D_0 is the output, D_i its i-th difference over steps."""

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


Method = Callable[..., Any]


@contextmanager
def replaced(network: nn.Module, units: Units, other: Callable[[int, Method], Method | None]) -> Iterator[None]:
    """Inside, the method of every unit is what `other` makes of its place and itself; None leaves it as it is."""
    with ExitStack() as changed:
        for place, unit in enumerate(units.members):
            module = network.get_submodule(unit.name)
            made = other(place, getattr(module, unit.method))
            if made is not None:
                setattr(module, unit.method, made)
                changed.callback(delattr, module, unit.method)
        yield


@contextmanager
def keeping(network: nn.Module, units: Units, modes: Modes) -> Iterator[Steps]:
    """Draw by a schedule (steps, units) inside; whoever draws sets `Steps.now` before each step.

    Nothing is left on the network, and nothing kept, when it ends: pictures of two drawings do not meet.
    """
    steps, computed = Steps(), units.effective(modes)

    def scheduled(place: int, compute: Method) -> Method | None:
        own = modes[:, place]
        if (own == COMPUTE).all():
            return None
        return _scheduled(compute, steps, wanted(own, computed[:, place]), own.tolist())

    with replaced(network, units, scheduled):
        yield steps


def wanted(modes: Modes, computed: NDArray[np.bool_]) -> list[int]:
    """At each step, of one unit, up to which order differences are wanted of what is computed there; -1 for nothing.

    An extrapolation of order k needs the k + 1 outputs before it. What no later step needs is not kept.
    """
    found, steps = [COMPUTE] * len(modes), np.flatnonzero(computed)
    for step in np.flatnonzero((modes != COMPUTE) & ~computed):
        for before in steps[steps < step][-int(modes[step]) - 1 :]:
            found[before] = max(found[before], int(modes[step]))
    return found


def _scheduled(
    compute: Callable[..., Tensor], steps: Steps, wanted: list[int], modes: list[int]
) -> Callable[..., Tensor]:
    """A unit's method that computes, or gives what it kept, as its modes (steps,) say."""
    kept = _Kept()

    def output(*given: Any) -> Tensor:
        now = steps.now
        if modes[now] != COMPUTE and kept.differences:
            return kept.at(now, modes[now])
        found = compute(*given)
        if wanted[now] != COMPUTE:
            kept.put(now, found, wanted[now])
        return found

    return output
