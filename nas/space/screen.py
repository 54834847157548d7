"""Looking at whole search spaces without training: their size, the share within budget, the best candidates on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nas import menu
from nas.cost.count import Cost
from nas.documents.quantities import count
from nas.errors import InputError
from nas.numbers import amount
from nas.space import cost_picture
from nas.space.cost_tables import COSTS, Column, Columns, choices_at, costs, draw, members
from nas.space.fields import concrete, with_fields
from nas.space.search_space import Axis, Choices, SearchSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nas.networks.backbones import Backbone

ENUMERABLE = 2_000_000  # spaces up to this size are looked at as a whole
SAMPLE = 200_000  # members drawn from larger ones
Order = Literal["nearest", "spread", "smallest", "largest"]


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
    found = costs(space, columns, latent_size, text_tokens)
    inside = {name: config for name, config in space.presets().items() if position(space, config) is not None}
    presets = {name: config.cost(latent_size, text_tokens) for name, config in inside.items()}
    return Survey(space, size, columns, found, exhaustive, budget, presets)


@dataclass(frozen=True)
class Candidate:
    """A member of a space."""

    key: str
    choices: Choices
    cost: Cost


@dataclass(frozen=True)
class Screening:
    """Candidates in an order."""

    candidates: list[Candidate]
    within: int
    """Members within budget that were looked at."""
    told: str
    """What was asked for: how many of how many, within which budget, in which order."""


def screen(
    space: SearchSpace,
    budget: Mapping[str, float],
    top: int = 50,
    order: Order = "nearest",
    by: str = "macs",
    latent_size: int = 64,
    text_tokens: int = 77,
    seed: int = 0,
) -> Screening:
    """`top` members within budget: those nearest to its limits, or a spread over the cost `by`, or its smallest or largest.

    Of a space too large to enumerate, of an equal-probability sample. Raises InputError if no member meets the budget, saying
    what the cheapest costs, and for `nearest` without a budget.
    """
    _check_cost(by, "by")
    if order == "nearest" and not budget:
        raise InputError(
            "--order nearest: needs a budget to be near to; expected spread, smallest or largest without one"
        )
    seen = survey(space, budget, latent_size, text_tokens, seed)
    rows = np.flatnonzero(seen.within)
    if not len(rows):
        raise _impossible(seen)
    found: dict[str, Candidate] = {}
    for row in rows[_ordered(seen, rows, order, by, top)]:
        choices = choices_at(space, seen.columns, int(row))
        config = space.architecture(choices)
        found.setdefault(config.key, Candidate(config.key, choices, config.cost(latent_size, text_tokens)))
        if len(found) == top:
            break
    ordered = list(found.values())
    if order == "spread":
        ordered.sort(key=lambda candidate: getattr(candidate.cost, by))
    return Screening(ordered, len(rows), f"{len(ordered):,} of {_how_many(seen, len(rows))}, {_said(seen, order, by)}")


def _ordered(seen: Survey, rows: NDArray[np.int64], order: Order, by: str, top: int) -> NDArray[np.int64]:
    """Places in `rows`, the wanted ones first."""
    if order == "nearest":
        left = [1 - seen.costs[name][rows] / limit for name, limit in seen.budget.items()]
        return np.asarray(np.argsort(np.square(left).sum(axis=0), kind="stable"))
    rising: np.ndarray = np.argsort(seen.costs[by][rows], kind="stable")
    if order == "spread":
        steps = np.unique(np.linspace(0, len(rows) - 1, min(top, len(rows))).round().astype(np.int64))
        others = np.setdiff1d(np.arange(len(rows)), steps)  # fill up for equal networks
        return np.asarray(rising[np.concatenate([steps, others])])
    return rising if order == "smallest" else rising[::-1]


def _how_many(seen: Survey, within: int) -> str:
    limits = " and ".join(f"{name} <= {amount(limit)}" for name, limit in seen.budget.items())
    told = f"{within:,} networks" + (f" within {limits}" if limits else "")
    return told if seen.exhaustive else f"{told} (of {len(seen.within):,} drawn at random)"


def _said(seen: Survey, order: Order, by: str) -> str:
    if order == "nearest":
        return f"nearest to {'that limit' if len(seen.budget) == 1 else 'those limits'} first"
    return f"spread evenly over {by}" if order == "spread" else f"{order} {by} first"


def _impossible(seen: Survey) -> InputError:
    limits = ", ".join(f"{name}={amount(limit)}" for name, limit in seen.budget.items())
    least = ", ".join(f"{name} {amount(int(seen.costs[name].min()))}" for name in seen.budget)
    looked = f"none of its {seen.size:,} members" if seen.exhaustive else f"none of {len(seen.within):,} members drawn"
    return InputError(f"budget {limits}: {seen.space.source}: {looked} meets it; the least found is {least}")


def _check_cost(name: str, what: str) -> None:
    if name not in COSTS:
        raise InputError(f"{what}: unknown cost {name!r}{menu.nearest(name, list(COSTS))}")


def position(space: SearchSpace, config: Backbone, tries: int = 10_000) -> Choices | None:
    """The member that is this network, or None."""
    target = config.canonical()
    for part in (part for part in space.parts if isinstance(config, type(part.base))):
        for _, choices in zip(range(tries), _alike(part, target, {}, part.axes), strict=False):
            if part.built(choices).canonical() == target:
                return space.joined(part, choices)
    return None


def _alike(space: SearchSpace, target: Backbone, choices: Choices, axes: tuple[Axis, ...]) -> Iterator[Choices]:
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


def _agrees(base: Backbone, target: Backbone, path: str, value: Any) -> bool:
    """Whether setting this field of the network changes nothing, in at least one place that `*` stands for."""

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
    limits = ", ".join(f"{amount(limit)} {name}" for name, limit in seen.budget.items())
    return f"{title}\n{share_text(seen)} within {limits}"


def share_text(seen: Survey) -> str:
    """The share within budget, with its interval if it comes from a sample."""
    share, low, high = (100 * value for value in seen.share)
    return f"{share:.3g} %" if seen.exhaustive else f"{share:.2g} % (95 % interval {low:.2g} % to {high:.2g} %)"


def save_picture(seen: Survey, path: Path) -> None:
    """The picture as a file; the suffix (png, svg, pdf) chooses the format."""
    cost_picture.save(picture(seen), path)


# -- printing --------------------------------------------------------------------------------------------------------


def limits(text: str) -> dict[str, float]:
    """A budget as the command line spells it: params=400M,macs=200G."""
    budget: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition("=")
        _check_cost(name, "budget")
        try:
            budget[name] = count(value)
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
        budget = ", ".join(f"{name} <= {amount(limit)}" for name, limit in seen.budget.items())
        text.append(f"within {budget}: {share_text(seen)}")
    for name, cost in seen.presets.items():
        less = float((seen.costs["macs"] <= cost.macs).mean())
        text.append(f"{name}: {amount(cost.params)} params, {amount(cost.macs)} MACs; {less:.0%} have no more MACs")
    return "\n".join(text)


def quantile_grid(seen: Survey) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: how the costs are distributed."""
    levels = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
    headings = ["cost", "least", "5 %", "25 %", "median", "75 %", "95 %", "most"]
    names = ("params", "macs", "macs_padding_free", "activation_bytes")
    return headings, [[name, *(amount(float(q)) for q in np.quantile(seen.costs[name], levels))] for name in names]


def candidate_grid(space: SearchSpace, found: list[Candidate]) -> tuple[list[str], list[list[str]], str]:
    """Headings and cells, one candidate a row, with the choices in which they differ; and the choices that all share."""
    names = [axis.name for axis in space.axes]
    taken = {name: [c.choices.get(name) for c in found] for name in names}
    shared = [name for name in names if len(found) > 1 and all(one == taken[name][0] for one in taken[name])]
    cells = [
        [c.key, amount(c.cost.params), amount(c.cost.macs), _spelled(c.choices, [n for n in names if n not in shared])]
        for c in found
    ]
    return ["key", "params", "macs", "choices"], cells, _spelled(found[0].choices, shared)


def _spelled(choices: Choices, names: list[str]) -> str:
    """These choices as text, without those of axes that do not count."""
    return ", ".join(f"{name} {_word(choices[name])}" for name in names if name in choices)


def lines(found: list[Candidate]) -> list[str]:
    """One JSON object a candidate."""
    return [json.dumps({"key": c.key, **asdict(c.cost), "choices": c.choices}) for c in found]
