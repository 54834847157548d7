"""Costs of many members of a search space by table look-up: millions of candidates a second.

The closed-form cost of a network is a sum of terms, and each term reads few axes of the space. So every term becomes a small
table over the choices it reads, and the cost of a candidate is a sum of look-ups; numpy does that for all candidates at once.
Candidates are held as columns: for each axis an array with the index of the choice, -1 where the axis is inactive.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.cost.count import Cost
from nas.errors import InputError, shown
from nas.space.fields import with_fields
from nas.space.search_space import Axis, Choices, SearchSpace

if TYPE_CHECKING:
    from nas.networks.backbones import Backbone

Column = NDArray[np.int64]
Columns = dict[str, Column]
COSTS = tuple(field.name for field in fields(Cost))
CHECKED = 32  # candidates whose table cost is compared with the closed form, in every call


def members(space: SearchSpace) -> Columns:
    """Every member once."""
    chunks = [_with_others(space, decided) for decided in space.decided()]
    return {axis.name: np.concatenate([chunk[axis.name] for chunk in chunks]) for axis in space.axes}


def draw(space: SearchSpace, count: int, seed: int) -> Columns:
    """`count` members drawn with replacement, all members equally likely."""
    rng = np.random.default_rng(seed)
    decided = list(space.decided())
    weights = np.array([space.multiplicity(d) for d in decided], dtype=float)
    which = rng.choice(len(decided), size=count, p=weights / weights.sum())
    columns: Columns = {}
    for axis in space.axes:
        if axis in space.deciding:
            indices = [axis.choices.index(d[axis.name]) if axis.name in d else -1 for d in decided]
            columns[axis.name] = np.array(indices)[which]
        else:
            active = np.array([axis.active(d) for d in decided])[which]
            columns[axis.name] = np.where(active, rng.integers(len(axis.choices), size=count), -1)
    return columns


def choices_at(space: SearchSpace, columns: Columns, row: int) -> Choices:
    """The candidate in one row."""
    return {a.name: a.choices[columns[a.name][row]] for a in space.axes if columns[a.name][row] >= 0}


def _with_others(space: SearchSpace, decided: Choices) -> Columns:
    """All members with these choices of the deciding axes."""
    free = [axis for axis in space.axes if axis not in space.deciding and axis.active(decided)]
    shape = tuple(len(axis.choices) for axis in free)
    count = math.prod(shape)
    grid = np.unravel_index(np.arange(count), shape) if shape else ()
    columns: Columns = {axis.name: column for axis, column in zip(free, grid, strict=True)}
    for axis in space.axes:
        if axis.name not in columns:
            index = axis.choices.index(decided[axis.name]) if axis.name in decided else -1
            columns[axis.name] = np.full(count, index)
    return columns


# -- costs -----------------------------------------------------------------------------------------------------------


def costs(space: SearchSpace, columns: Columns, latent_size: int, text_tokens: int) -> dict[str, Column]:
    """For each name in `COSTS` an array over the candidates, at one image size and text length."""
    found = {name: np.zeros(len(next(iter(columns.values()))), dtype=np.int64) for name in COSTS}
    for part, rows in _parts(space, columns):
        own = {name: column[rows] for name, column in space.own(part, columns).items()}
        for name, column in Tables(part, latent_size, text_tokens).costs(own).items():
            found[name][rows] = column
    return found


def _parts(space: SearchSpace, columns: Columns) -> Iterator[tuple[SearchSpace, NDArray[np.int64]]]:
    """The spaces that candidates are from, and their rows."""
    which = columns[space.axes[0].name] if len(space.parts) > 1 else np.zeros_like(next(iter(columns.values())))
    for index, part in enumerate(space.parts):
        rows = np.flatnonzero(which == index)
        if len(rows):
            yield part, rows


@dataclass(frozen=True)
class Tables:
    """The cost of any member of a space that joins no others, at one image size and text length, by look-up."""

    space: SearchSpace
    latent_size: int
    text_tokens: int

    def costs(self, columns: Columns) -> dict[str, Column]:
        """For each name in `COSTS` an array over the candidates."""
        rows = len(next(iter(columns.values())))
        totals = np.zeros((rows, 5), dtype=np.int64)
        for place, axes in self.reads.items():
            totals += self._term(place, axes, columns, rows)
        params, macs, attention, padding, activations = totals.T
        counted = (params, macs, macs - attention, macs - padding, 4 * activations)
        costs = dict(zip(COSTS, counted, strict=True))
        self._check(columns, costs, rows)
        return costs

    @cached_property
    def reads(self) -> dict[int, list[Axis]]:
        """For each term of the sum the axes it reads: those that change its arguments, alone or beside one other choice."""
        read: dict[int, set[str]] = {}
        plain = self._arguments(())
        alone = {(a.name, i): self._alone(a, i) for a in self.space.axes for i in range(len(a.choices))}
        for (name, _), arguments in alone.items():
            _note(read, name, plain, arguments)
        for a, b in combinations(self.space.axes, 2):
            for i, j in product(range(len(a.choices)), range(len(b.choices))):
                try:
                    both = self._arguments(a.settings[i] + b.settings[j])
                except (ValueError, KeyError):  # a pair the space never makes
                    continue
                _note(read, a.name, alone[b.name, j], both)
                _note(read, b.name, alone[a.name, i], both)
        places = max(map(len, [plain, *alone.values()]))
        return {p: [axis for axis in self.space.axes if axis.name in read.get(p, ())] for p in range(places)}

    def _alone(self, axis: Axis, index: int) -> list[tuple[Any, ...]]:
        """The arguments with one choice of an axis. Raises InputError where such a network takes no latents of this side."""
        try:
            return self._arguments(axis.settings[index])
        except ValueError as error:
            choice = shown(axis.choices[index])
            raise InputError(f"{self.space.source}: axes.{axis.name}: {choice} is refused: {error}") from None

    def _arguments(self, settings: tuple[tuple[str, Any], ...]) -> list[tuple[Any, ...]]:
        return [arguments for _, arguments in self._terms(with_fields(self.space.base, settings))]

    def _terms(self, config: Backbone) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
        return list(config.cost_terms(self.latent_size, self.text_tokens))

    def _term(self, place: int, axes: list[Axis], columns: Columns, rows: int) -> NDArray[np.int64]:
        """One term's counts for every candidate, from a table over the choices of the axes it reads."""
        flat, size = np.zeros(rows, dtype=np.int64), 1
        for axis in axes:
            flat += (columns[axis.name] + 1) * size
            size *= len(axis.choices) + 1
        example = np.full(size, -1, dtype=np.int64)
        example[flat] = np.arange(rows)  # any candidate with these choices
        table = np.zeros((size, 5), dtype=np.int64)
        for index in np.flatnonzero(example >= 0):
            terms = self._terms(self.space.built(choices_at(self.space, columns, int(example[index]))))
            if place < len(terms):
                function, arguments = terms[place]
                table[index] = function(*arguments).total
        return table[flat]

    def _check(self, columns: Columns, costs: Mapping[str, Column], rows: int) -> None:
        for row in random.Random(0).sample(range(rows), min(CHECKED, rows)):
            config = self.space.architecture(choices_at(self.space, columns, row))
            exact = config.cost(self.latent_size, self.text_tokens)
            if any(getattr(exact, name) != costs[name][row] for name in COSTS):
                raise AssertionError(f"{self.space.name}: table cost of candidate {row} is not its closed form")


def _note(read: dict[int, set[str]], name: str, before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]) -> None:
    for place in range(max(len(before), len(after))):
        if before[place : place + 1] != after[place : place + 1]:
            read.setdefault(place, set()).add(name)
