"""Costs of whole search spaces without training: millions of candidates a second.

The closed-form cost of a network is a sum of terms, and each term reads few axes of the space. So every term becomes a small
table over the choices it reads, and the cost of a candidate is a sum of look-ups; numpy does that for all candidates at once.
Candidates are held as columns: for each axis an array with the index of the choice, -1 where the axis is inactive.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas import menu
from nas.cost import Cost
from nas.errors import InputError
from nas.fields import with_fields
from nas.space import Axis, Choices, SearchSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nas.backbones.unet import Config

Column = NDArray[np.int64]
Columns = dict[str, Column]
COSTS = tuple(field.name for field in fields(Cost))
ENUMERABLE = 2_000_000  # spaces up to this size are looked at as a whole
SAMPLE = 200_000  # members drawn from larger ones
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


@dataclass(frozen=True)
class Tables:
    """The cost of any member of a space at one image size and text length, by look-up."""

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
        alone = {(a.name, i): self._arguments(a.settings[i]) for a in self.space.axes for i in range(len(a.choices))}
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

    def _arguments(self, settings: tuple[tuple[str, Any], ...]) -> list[tuple[Any, ...]]:
        return [arguments for _, arguments in self._terms(with_fields(self.space.base, settings))]

    def _terms(self, config: Config) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
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


# -- looking at a space ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """What a space holds, from all of its members or from a sample."""

    space: SearchSpace
    size: int
    columns: Columns
    costs: dict[str, Column]
    exhaustive: bool
    """Whether every member was looked at."""
    budget: Mapping[str, float]
    presets: dict[str, Cost]
    """Published networks that are members."""

    @property
    def within(self) -> NDArray[np.bool_]:
        """Which of the candidates meet the budget."""
        met = np.ones(len(self.costs["params"]), dtype=bool)
        for name, limit in self.budget.items():
            met &= self.costs[name] <= limit
        return met

    @property
    def share(self) -> tuple[float, float, float]:
        """Share within budget with the ends of its 95 % interval (Wilson); the three are equal if all were counted."""
        n, share = len(self.within), float(self.within.mean())
        if self.exhaustive:
            return share, share, share
        z = 1.959964
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return share, max(0.0, centre - half), min(1.0, centre + half)


def survey(
    space: SearchSpace,
    budget: Mapping[str, float] | None = None,
    latent_size: int = 64,
    text_tokens: int = 77,
    seed: int = 0,
) -> Survey:
    """Costs of all members of a space, or of an equal-probability sample of one too large. Budgets are upper limits.

    Raises InputError for a budget on something that is no cost.
    """
    budget = dict(budget or {})
    for name in budget:
        _check_cost(name, "budget")
    size = space.size()
    exhaustive = size <= ENUMERABLE
    columns = members(space) if exhaustive else draw(space, SAMPLE, seed)
    costs = Tables(space, latent_size, text_tokens).costs(columns)
    inside = {name: config for name, config in space.presets().items() if position(space, config) is not None}
    presets = {name: config.cost(latent_size, text_tokens) for name, config in inside.items()}
    return Survey(space, size, columns, costs, exhaustive, budget, presets)


@dataclass(frozen=True)
class Candidate:
    """A member of a space."""

    key: str
    choices: Choices
    cost: Cost


def screen(
    space: SearchSpace,
    budget: Mapping[str, float],
    top: int = 50,
    by: str = "macs",
    latent_size: int = 64,
    text_tokens: int = 77,
    largest: bool = False,
    seed: int = 0,
) -> list[Candidate]:
    """The `top` members within budget with the smallest (or largest) cost `by`.

    Of a space too large to enumerate, the best of an equal-probability sample. Raises InputError if no member meets the
    budget, saying what the cheapest costs.
    """
    _check_cost(by, "by")
    seen = survey(space, budget, latent_size, text_tokens, seed)
    rows = np.flatnonzero(seen.within)
    if not len(rows):
        raise _impossible(seen)
    order = np.argsort(seen.costs[by][rows], kind="stable")
    found: dict[str, Candidate] = {}
    for row in rows[order[::-1] if largest else order]:
        choices = choices_at(space, seen.columns, int(row))
        config = space.architecture(choices)
        found.setdefault(config.key, Candidate(config.key, choices, config.cost(latent_size, text_tokens)))
        if len(found) == top:
            break
    return list(found.values())


def _impossible(seen: Survey) -> InputError:
    limits = ", ".join(f"{name}={shown(limit)}" for name, limit in seen.budget.items())
    least = ", ".join(f"{name} {shown(int(seen.costs[name].min()))}" for name in seen.budget)
    looked = f"none of its {seen.size:,} members" if seen.exhaustive else f"none of {len(seen.within):,} members drawn"
    return InputError(f"budget {limits}: {seen.space.source}: {looked} meets it; the least found is {least}")


def _check_cost(name: str, what: str) -> None:
    if name not in COSTS:
        raise InputError(f"{what}: unknown cost {name!r}{menu.nearest(name, list(COSTS))}")


def shown(number: float) -> str:
    """A cost for people: 386.0 M, 184.4 G."""
    for limit, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= limit:
            return f"{number / limit:.1f}{suffix}"
    return f"{number:g}"


def position(space: SearchSpace, config: Config, tries: int = 10_000) -> Choices | None:
    """The member that is this network, or None."""
    target = config.canonical()
    for _, choices in zip(range(tries), _alike(space, target, {}, space.axes), strict=False):
        if space.built(choices).canonical() == target:
            return choices
    return None


def _alike(space: SearchSpace, target: Config, choices: Choices, axes: tuple[Axis, ...]) -> Iterator[Choices]:
    """Members that agree with a network in at least one field of every axis, as far as any choice does."""
    if not axes:
        yield choices
        return
    axis, rest = axes[0], axes[1:]
    if not axis.active(choices):
        yield from _alike(space, target, choices, rest)
        return
    agreeing = [
        choice
        for choice, settings in zip(axis.choices, axis.settings, strict=True)
        if any(_agrees(space.base, target, path, value) for path, value in settings)
    ]
    for choice in agreeing or axis.choices:
        yield from _alike(space, target, {**choices, axis.name: choice}, rest)


def _agrees(base: Config, target: Config, path: str, value: Any) -> bool:
    """Whether setting this field of the network changes nothing, in at least one place that `*` stands for."""
    from nas.fields import concrete

    for place in concrete(base, path):
        try:
            if with_fields(target, [(place, value)]) == target:
                return True
        except (KeyError, ValueError):
            continue
    return False


def picture(seen: Survey) -> Figure:
    """Where the members lie: parameters against MACs, the budget, and the published networks."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect, withStroke

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    x, y = seen.costs["params"] / 1e6, seen.costs["macs"] / 1e9
    greys = LinearSegmentedColormap.from_list("greys", ["#ededed", "#5a5a5a"])
    drawn = axes.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap=greys, linewidths=0.1)
    figure.colorbar(drawn, ax=axes, label="networks" if seen.exhaustive else f"networks of {len(x):,} drawn")
    for name, line in (("params", axes.axvline), ("macs", axes.axhline)):
        if name in seen.budget:
            line(seen.budget[name] / (1e6 if name == "params" else 1e9), color="#0b6fa4", linewidth=1.2, linestyle="--")
    halo: list[AbstractPathEffect] = [withStroke(linewidth=3, foreground="white")]
    for index, (name, cost) in enumerate(sorted(seen.presets.items(), key=lambda item: item[1].params)):
        point, above = (cost.params / 1e6, cost.macs / 1e9), 9 if index % 2 else -17
        axes.plot(*point, "o", color="#c8102e", markeredgecolor="white", markersize=8)
        text = axes.annotate(name, point, (0, above), textcoords="offset points", color="#c8102e", ha="center")
        text.set_path_effects(halo)
    axes.set(xlabel="parameters, M", ylabel="MACs, G", xlim=(0, None), ylim=(0, None))
    axes.set_title(_title(seen), fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _title(seen: Survey) -> str:
    title = f"{seen.space.name}: {seen.size:,} networks"
    if not seen.budget:
        return title
    limits = ", ".join(f"{shown(limit)} {name}" for name, limit in seen.budget.items())
    return f"{title}\n{share_text(seen)} within {limits}"


def share_text(seen: Survey) -> str:
    """The share within budget, with its interval if it comes from a sample."""
    share, low, high = (100 * value for value in seen.share)
    return f"{share:.3g} %" if seen.exhaustive else f"{share:.2g} % (95 % interval {low:.2g} % to {high:.2g} %)"


def save_picture(seen: Survey, path: Path) -> None:
    """The picture as a file; the suffix (png, svg, pdf) chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seen).savefig(path, dpi=150)


# -- printing --------------------------------------------------------------------------------------------------------

SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def limits(text: str) -> dict[str, float]:
    """A budget as the command line spells it: params=400M,macs=200G."""
    budget: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition("=")
        _check_cost(name, "budget")
        number, scale = (value[:-1], SUFFIXES[value[-1]]) if value[-1:] in SUFFIXES else (value, 1.0)
        try:
            budget[name] = float(number) * scale
        except ValueError:
            raise InputError(f"budget: {part!r}: expected a limit such as {name}=400M") from None
    return budget


def axes_grid(space: SearchSpace) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: each axis, its choices, what it sets and when it counts."""
    cells = [[a.name, ", ".join(map(_word, a.choices)), ", ".join(_fields(a)), _when(a)] for a in space.axes]
    return ["axis", "choices", "sets", "when"], cells


def _word(choice: Any) -> str:
    return {True: "yes", False: "no"}[choice] if isinstance(choice, bool) else str(choice)


def _fields(axis: Axis) -> list[str]:
    return list(dict.fromkeys(path for choice in axis.settings for path, _ in choice))


def _when(axis: Axis) -> str:
    conditions = [
        " and ".join(f"{name} = {'|'.join(map(_word, values))}" for name, values in condition.items())
        for condition in axis.when
    ]
    return " or ".join(conditions) if len(conditions) < 4 else f"{conditions[0]} or {len(conditions) - 1} alternatives"


def summary(seen: Survey) -> str:
    """Size, share within budget, and the published networks inside, as a few lines."""
    text = [f"{seen.space.name}: {seen.size:,} networks"]
    if not seen.exhaustive:
        text[0] += f" (the numbers below are from {len(seen.within):,} drawn at random, all equally likely)"
    if seen.budget:
        budget = ", ".join(f"{name} <= {shown(limit)}" for name, limit in seen.budget.items())
        text.append(f"within {budget}: {share_text(seen)}")
    for name, cost in seen.presets.items():
        less = float((seen.costs["macs"] <= cost.macs).mean())
        text.append(f"{name}: {shown(cost.params)} params, {shown(cost.macs)} MACs; {less:.0%} have no more MACs")
    return "\n".join(text)


def quantile_grid(seen: Survey) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: how the costs are distributed."""
    levels = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
    headings = ["cost", "least", "5 %", "25 %", "median", "75 %", "95 %", "most"]
    names = ("params", "macs", "macs_padding_free", "activation_bytes")
    return headings, [[name, *(shown(float(q)) for q in np.quantile(seen.costs[name], levels))] for name in names]


def candidate_grid(space: SearchSpace, found: list[Candidate]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: one candidate a row; a dot for an axis that does not count."""
    names = [axis.name for axis in space.axes]
    cells = [
        [c.key, shown(c.cost.params), shown(c.cost.macs)]
        + [_word(c.choices[name]) if name in c.choices else "." for name in names]
        for c in found
    ]
    return ["key", "params", "macs", *names], cells


def lines(found: list[Candidate]) -> list[str]:
    """One JSON object a candidate."""
    return [json.dumps({"key": c.key, **asdict(c.cost), "choices": c.choices}) for c in found]
