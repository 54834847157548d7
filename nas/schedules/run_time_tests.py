"""Schedules of tests that are made while drawing: a step is computed when something has changed enough since another was.

The test is made here, before any drawing, on the mean over calibration captions drawn without a cache. So a plan says what it
costs, and rows of a batch stay independent; what is lost is that a picture cannot ask for more steps than the others. What a
step keeps, where it is not computed, is all deeper than the outermost skip connection, or all residual branches of a network
that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.cost.units import COMPUTE, WHOLE, Modes, Units
from nas.diffusion import solvers
from nas.diffusion.caches.caching import replaced
from nas.networks.conditioning import Text
from nas.schedules.drawing import BATCH, Subject, Task

Array = NDArray[np.float64]
Steps = NDArray[np.bool_]  # (steps,): whether each is computed


@dataclass(frozen=True)
class Changes:
    """Relative differences of a drawing, mean |b - a| / mean |a|, from the step of the row to that of the column."""

    first: Array
    """(steps, steps): of what the network's first unit puts out."""
    output: Array
    """(steps, steps): of what the network puts out."""


def measured(subject: Subject, task: Task) -> Changes:
    """Those of one batch of the task's captions, drawn without a cache."""
    firsts: list[Tensor] = []
    outputs: list[Tensor] = []

    def recorded(place: int, compute: Callable[..., Tensor]) -> Callable[..., Tensor] | None:
        return None if place else _into(firsts, compute)

    text = Text(task.text.tokens[:BATCH], task.text.pooled[:BATCH])
    null = subject.bench.train_data.null
    with replaced(subject.network, subject.units, recorded):
        solvers.sample(_into(outputs, subject.network), subject.plan, subject.schedule, task.noise[:BATCH], text, null)
    return Changes(_changes(firsts), _changes(outputs))


def schedules(changes: Changes, units: Units) -> Iterator[tuple[str, Modes]]:
    """Every schedule that some threshold of a test leads to, once for each number of computed steps, by name."""
    deeper = units.depths > 0 if (units.depths > 0).any() else units.components != WHOLE
    but_first = deeper & (np.arange(len(units)) > 0)
    for name, test, values, kept in (
        ("firstblockcache", first_block, changes.first, but_first),
        ("teacache", teacache, _sums(np.diag(changes.output, 1)), deeper),
    ):
        for computed in _by_count(test, changes, values):
            modes = np.where(~computed[:, None] & kept, 0, COMPUTE).astype(np.int8)
            yield f"{name} {computed.sum()} of {len(computed)} steps", modes


def first_block(changes: Changes, threshold: float) -> Steps:
    """A step is computed where the first unit's output differs by the threshold or more from what it was at the last computed
    one. (FirstBlockCache of ParaAttention and diffusers, where the unit is the residual of a transformer's first block.)"""
    computed = np.zeros(len(changes.first), dtype=bool)
    last = 0
    for step in range(len(computed)):
        computed[step] = step == 0 or changes.first[last, step] >= threshold
        last = step if computed[step] else last
    return computed


def teacache(changes: Changes, threshold: float) -> Steps:
    """A step is computed where the changes of the network's output from step to step, summed since the last computed one, reach
    the threshold; the first and the last are (TeaCache, Liu et al. 2024, arXiv 2411.19108). There, a polynomial of the change
    of an input stands for the change of the output, which is what is measured here."""
    computed = np.ones(len(changes.output), dtype=bool)
    gone = 0.0
    for step in range(1, len(computed) - 1):
        gone += changes.output[step - 1, step]
        computed[step] = gone >= threshold
        gone = 0.0 if computed[step] else gone
    return computed


def _into(found: list[Tensor], compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, whose outputs go into a list."""

    def output(*given: Any) -> Tensor:
        found.append(compute(*given))
        return found[-1]

    return output


@torch.no_grad()
def _changes(outputs: list[Tensor]) -> Array:
    """(steps, steps)"""
    return np.array([[float((b - a).abs().mean() / a.abs().mean()) for b in outputs] for a in outputs])


def _sums(changes: Array) -> Array:
    """Of every run of changes in a row."""
    return np.array(
        [changes[start:end].sum() for start in range(len(changes)) for end in range(start + 1, len(changes) + 1)]
    )


def _by_count(test: Callable[[Changes, float], Steps], changes: Changes, values: Array) -> list[Steps]:
    """What a test says at thresholds just above the values, the first for each number of computed steps; but for all of them."""
    found: dict[int, Steps] = {}
    for threshold in np.nextafter(np.unique(values), np.inf):
        computed = test(changes, float(threshold))
        found.setdefault(int(computed.sum()), computed)
    return [computed for count, computed in sorted(found.items()) if count < len(computed)]
