"""A plan that keeps units, for runtimes of graphs: a denoiser's graph for each kind of step.

A graph computes what its steps compute. What they take over from earlier steps goes in, what later ones take over comes out, and
whoever draws hands it on, by the units' names. Each graph has its own copy of the weights that it needs. Outputs are handed on as
they were; an extrapolation, which needs several of them, is PyTorch's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.cost.units import COMPUTE, Modes, Units
from nas.deploy.graphs import Graph, Tensors
from nas.diffusion.caches.caching import Steps, replaced, wanted
from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.networks.conditioning import Text

if TYPE_CHECKING:
    from nas.deploy.exporters import Network

Kind = tuple[tuple[int, ...], tuple[int, ...]]
"""Of a step: the units that it takes over and those that it hands on, by their places."""


@dataclass(frozen=True)
class Step:
    """One evaluation of the network, as a manifest and draw.json have it."""

    network: str
    """The graph."""
    taken: tuple[str, ...] = ()
    """Units whose outputs go into it after the denoiser's own inputs."""
    kept: tuple[str, ...] = ()
    """Units whose outputs come out of it after the prediction."""


def of_plan(denoiser: Graph, plan: Plan, units: Units) -> tuple[list[Graph], list[Step]]:
    """The graphs of a plan with a cache, and its steps. `denoiser` is the graph of the whole network.

    Raises InputError for a cache of another network's, or one that extrapolates.
    """
    assert plan.cache is not None
    kinds = list(_kinds(plan.cache.modes(plan.evaluations, units), units))
    named = {kind: f"{denoiser.name}_{number}" for number, kind in enumerate(dict.fromkeys(kinds))}
    shapes = _shapes(denoiser, units, sorted({place for kind in kinds for place in kind[1]}))
    graphs = [_graph(name, denoiser, units, kind, shapes) for kind, name in named.items()]
    names = units.names
    return graphs, [Step(named[kind], *(tuple(names[place] for place in side) for side in kind)) for kind in kinds]


def _kinds(modes: Modes, units: Units) -> Iterator[Kind]:
    """What each step takes over and hands on. Raises InputError for an extrapolation."""
    computed = units.effective(modes)
    taken = units.called(computed) & ~computed
    if (modes[taken] > 0).any():
        raise InputError("sampling.cache: extrapolates, which only PyTorch does; expected order 0, or no graphs")
    later = np.array([wanted(modes[:, unit], computed[:, unit]) for unit in range(len(units))]).T
    for step in range(len(modes)):
        over, on = (np.flatnonzero(mask).tolist() for mask in (taken[step], later[step] != COMPUTE))
        yield tuple(over), tuple(on)


@torch.no_grad()
def _shapes(denoiser: Graph, units: Units, places: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """What units put out for one picture, without the batch."""
    kind = ((), tuple(places))
    _, *outputs = _Step(denoiser.module, units, kind)(*denoiser.random_inputs(1))
    return {place: tuple(output.shape[1:]) for place, output in zip(places, outputs, strict=True)}


def _graph(name: str, denoiser: Graph, units: Units, kind: Kind, shapes: Mapping[int, tuple[int, ...]]) -> Graph:
    """The graph of one kind of step; what it takes over is tried as noise."""

    def draw(batch: int, generator: torch.Generator) -> Tensors:
        own = denoiser.draw(batch, generator)
        return (*own, *(torch.randn((batch, *shapes[place]), generator=generator) for place in kind[0]))

    over, on = ([units.names[place] for place in side] for side in kind)
    inputs = (*denoiser.inputs, *(f"taken.{unit}" for unit in over))
    outputs = (*denoiser.outputs, *(f"kept.{unit}" for unit in on))
    module = _Step(denoiser.module, units, kind).eval()
    return Graph(name, module, inputs, outputs, draw, {**denoiser.notes, "network": name})


class _Step(nn.Module):
    """The denoiser as one kind of step computes it: what it takes over comes after its inputs, what it keeps after its output."""

    def __init__(self, denoiser: nn.Module, units: Units, kind: Kind):
        super().__init__()
        self.denoiser, self.units, (self.taken, self.kept) = denoiser, units, kind

    def forward(self, *given: Tensor) -> Tensors:
        own, over = given[: len(given) - len(self.taken)], given[len(given) - len(self.taken) :]
        known: dict[int, Tensor] = dict(zip(self.taken, over, strict=True))
        found: dict[int, Tensor] = {}

        def other(place: int, compute: Callable[..., Tensor]) -> Callable[..., Tensor] | None:
            if place in known:
                return lambda *_: known[place]
            return _noting(compute, found, place) if place in self.kept else None

        network: Any = self.denoiser.network
        with replaced(network, self.units, other):
            prediction = self.denoiser(*own)
        return (prediction, *(found[place] for place in self.kept))


def _noting(compute: Callable[..., Tensor], found: dict[int, Tensor], place: int) -> Callable[..., Tensor]:
    def output(*given: Any) -> Tensor:
        found[place] = compute(*given)
        return found[place]

    return output


@dataclass
class ByStep:
    """A denoiser whose graphs take turns: a network for `nas.diffusion.solvers.sample` that keeps units by itself."""

    networks: Mapping[str, Network]
    steps: Sequence[Step]
    plan: Plan
    """That the graphs were made for."""
    at: Steps = field(default_factory=Steps)
    held: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, latents: Tensor, time: Tensor, text: Text) -> Tensor:
        step = self.steps[self.at.now]
        over = [self.held[unit] for unit in step.taken]
        prediction, *outputs = self.networks[step.network]((latents, time, *text, *over))
        self.held.update(zip(step.kept, outputs, strict=True))
        return prediction

    @contextmanager
    def keeping(self, plan: Plan) -> Iterator[Steps]:
        """While a drawing lasts. Raises InputError for a plan that the graphs were not made for."""
        if (plan.cache, plan.evaluations) != (self.plan.cache, self.plan.evaluations):
            raise InputError(
                f"sampling: the graphs keep units by a plan of {self.plan.evaluations} evaluations, got one of "
                f"{plan.evaluations}; expected as many steps, or the runtime pytorch"
            )
        self.at = Steps()
        yield self.at
        self.held.clear()
