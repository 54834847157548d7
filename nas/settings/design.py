"""Which cells an ablation trains: factors, their levels, and the design that combines them.

    architecture: mobilediffusion           # the network every cell starts from
    ablation:
      design: factorial                     # or one_factor, leave_one_out
      factors:
        reconstruction: {field: objective.reconstruction, levels: [diffusion, distill]}
        bottleneck:                         # named levels may set several fields
          levels:
            narrow: {architecture.levels.2.channels: 768}
            wide: {architecture.levels.2.channels: 1280, training.learning_rate: 5.0e-4}
      minimise: [fid_efficientnet_lite0]
      repeats: 3

Every cell is trained `repeats` times. Repeat r uses the same seed in every cell (common random numbers), so differences
between cells are differences within a repeat; `nas.analysis.ablation` analyses them as such. Imports no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from nas import menu
from nas.documents.section import Section
from nas.documents.strict import validated
from nas.errors import InputError, shown
from nas.networks import backbones
from nas.space import fields
from nas.space.published import architecture
from nas.space.search_space import SearchSpace

if TYPE_CHECKING:
    from nas.networks.backbones import Backbone
    from nas.settings.study import Study

Overrides = dict[str, Any]  # path -> value
SECTIONS = (
    "architecture",
    "objective",
    "training",
    "sampling",
    "dataset",
    "conditioning",
    "autoencoder",
    "proxy",
    "prior",
)
ARCHITECTURE = SECTIONS[0]
ENCODED = ("dataset", "conditioning", "autoencoder")  # sections that decide what the cached data is


class Factor(Section):
    """One thing that is varied."""

    field: str | None = None
    """The field whose values the levels are, for example objective.prediction or architecture.levels.*.ffn_ratio."""
    levels: list[Any] | dict[str, dict[str, Any]]
    """The values, or named levels that each set several fields; an empty mapping leaves everything as it is."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if isinstance(self.levels, dict) != (self.field is None):
            raise ValueError("give field with a list of levels, or levels as a mapping of names to fields without it")
        if len(self.levels) < 2:
            raise ValueError(f"levels: {len(self.levels)} given, expected at least two")
        name, times = Counter(self.names).most_common(1)[0]
        if times > 1:
            raise ValueError(f"levels: {name} is given twice")
        if "" in self.names:
            raise ValueError("levels: a level without a name; expected a word")
        return self

    @cached_property
    def names(self) -> list[str]:
        """The levels as tables spell them, in the order of the file."""
        return [level_name(level) for level in self.levels]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The levels of a field by name."""
        return dict(zip(self.names, self.levels, strict=True))

    def overrides(self, name: str) -> Overrides:
        """What the level of this name sets."""
        if isinstance(self.levels, dict):
            return self.levels[name]
        return {str(self.field): self.values[name]}


class Settings(Section):
    """The `ablation` section of a study file."""

    design: Literal["factorial", "one_factor", "leave_one_out"]
    """factorial: every combination of levels. one_factor: the reference, and every other level alone. leave_one_out: every
    factor at its last level, and each in turn set back to its first."""
    factors: dict[Annotated[str, Field(min_length=1)], Factor] = Field(min_length=1)
    """What is varied: a name for each factor."""
    reference: dict[str, Any] = {}
    """The cell the others are compared with, a level for each factor; the first level where none is given."""
    repeats: int = Field(3, ge=1, le=1_000)
    """Times every cell is trained, each time with another seed; the seeds are the same in every cell."""
    confidence: float | None = Field(0.95, gt=0, lt=1)
    """Of the intervals; null lets one repeat be enough, whose tables have none."""
    variance: Literal["separate", "pooled"] = "separate"
    """separate: every difference by its own scatter over the repeats. pooled: one scatter for all cells, which is sharper
    with few repeats, and wrong where cells scatter unequally."""
    minimise: tuple[str, ...] = ()
    """Metric columns whose effects are wanted, and where less is better."""
    maximise: tuple[str, ...] = ()
    """Metric columns where more is better."""

    @model_validator(mode="after")
    def _answers_something(self) -> Self:
        columns = self.minimise + self.maximise
        if not columns:
            raise ValueError("expected at least one column in minimise or maximise")
        if len(set(columns)) < len(columns):
            raise ValueError(f"a column is named twice: {', '.join(columns)}")
        if self.repeats < 2 and self.confidence is not None:
            raise ValueError(
                f"repeats: {self.repeats} gives no interval, expected at least 2 (or confidence: null for a table without)"
            )
        return self

    @model_validator(mode="after")
    def _has_its_reference(self) -> Self:
        if self.reference and self.design == "leave_one_out":
            raise ValueError(
                "reference: leave_one_out compares with the cell that has every factor at its last level; leave it out"
            )
        for name, level in self.reference.items():
            if name not in self.factors:
                raise ValueError(f"reference: no factor {name!r}{menu.nearest(name, list(self.factors))}")
            names = self.factors[name].names
            if level_name(level) not in names:
                raise ValueError(f"reference.{name}: no level {level!r}{menu.nearest(level_name(level), names)}")
        return self

    @property
    def objectives(self) -> dict[str, str]:
        """Column -> 'minimise' or 'maximise'."""
        return {column: "minimise" for column in self.minimise} | {column: "maximise" for column in self.maximise}

    @property
    def reference_levels(self) -> dict[str, str]:
        """The level of each factor in the reference cell, by name."""
        if self.design == "leave_one_out":
            return {name: factor.names[-1] for name, factor in self.factors.items()}
        given = {name: level_name(level) for name, level in self.reference.items()}
        return {name: given.get(name, factor.names[0]) for name, factor in self.factors.items()}


@dataclass(frozen=True)
class Cell:
    """One combination of levels: what it is called and what it sets."""

    name: str
    levels: dict[str, str]
    """Factor -> level, by name."""
    overrides: Overrides
    """Everything its levels set, by path."""

    @property
    def architecture_fields(self) -> list[tuple[str, Any]]:
        """(path inside the architecture, value) pairs."""
        return [
            (path.partition(".")[2], value) for path, value in self.overrides.items() if section(path) == ARCHITECTURE
        ]

    @property
    def settings(self) -> Overrides:
        """The overrides of everything but the architecture."""
        return {path: value for path, value in self.overrides.items() if section(path) != ARCHITECTURE}


# --- cells -----------------------------------------------------------------------------------------------------------


def cells(settings: Settings) -> list[Cell]:
    """Every cell of the design, in a fixed order; in one_factor and leave_one_out the reference is the first."""
    return [Cell(_cell_name(settings, levels), levels, _merged(settings, levels)) for levels in _combinations(settings)]


def size(settings: Settings) -> int:
    """The number of cells, counted without listing them."""
    levels = [len(factor.levels) for factor in settings.factors.values()]
    if settings.design == "factorial":
        return prod(levels)
    return 1 + (len(levels) if settings.design == "leave_one_out" else sum(levels) - len(levels))


def reference_cell(settings: Settings) -> Cell:
    """The cell that the others are compared with."""
    return next(cell for cell in cells(settings) if cell.levels == settings.reference_levels)


def order(settings: Settings) -> list[tuple[str, int]]:
    """(cell, repeat) in the order of training: whole repeats one after another, so that an unfinished run is balanced."""
    names = [cell.name for cell in cells(settings)]
    return [(name, repeat) for repeat in range(settings.repeats) for name in names]


def outstanding(settings: Settings, records: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """The (cell, repeat) pairs that no record shows as trained to the end, in the order of training."""
    done = {(record["cell"], record["repeat"]) for record in records if record["state"] == "complete"}
    return [pair for pair in order(settings) if pair not in done]


def _combinations(settings: Settings) -> Iterator[dict[str, str]]:
    reference = settings.reference_levels
    if settings.design == "factorial":
        for levels in product(*(factor.names for factor in settings.factors.values())):
            yield dict(zip(settings.factors, levels, strict=True))
        return
    yield reference
    for name, factor in settings.factors.items():
        others = factor.names[:1] if settings.design == "leave_one_out" else factor.names
        yield from ({**reference, name: level} for level in others if level != reference[name])


def _cell_name(settings: Settings, levels: Mapping[str, str]) -> str:
    if settings.design == "factorial":
        return ", ".join(f"{name}={level}" for name, level in levels.items())
    apart = [name for name, level in settings.reference_levels.items() if levels[name] != level]
    if settings.design == "leave_one_out":
        return f"without {apart[0]}" if apart else "full"
    return f"{apart[0]}={levels[apart[0]]}" if apart else "reference"


def _merged(settings: Settings, levels: Mapping[str, str]) -> Overrides:
    return {p: v for name, level in levels.items() for p, v in settings.factors[name].overrides(level).items()}


def level_name(level: Any) -> str:
    """A level as tables spell it: words as they are, anything else as JSON."""
    return level if isinstance(level, str) else json.dumps(level)


def varied(settings: Settings) -> list[str]:
    """Every path that some factor sets."""
    factors = settings.factors.values()
    return list(dict.fromkeys(path for factor in factors for name in factor.names for path in factor.overrides(name)))


def section(path: str) -> str:
    """The part of a study file that a path is in."""
    return path.partition(".")[0]


# --- what a cell changes ---------------------------------------------------------------------------------------------


def changed(study: Study, overrides: Mapping[str, Any]) -> Study:
    """The study with settings replaced by path (`training.batch`); a bare section name replaces the whole section.

    Raises pydantic's ValidationError for what a study cannot be, ValueError where a path goes through what has no fields.
    """
    if not overrides:
        return study
    content: dict[str, Any] = dict(study)  # sections stay as they are, and are not checked again, unless one changes
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place = content
        for parent in parents:
            inside = place.get(parent, {})
            if not isinstance(inside, BaseModel | dict):
                raise ValueError(f"{parent!r} has no fields")
            place[parent] = inside.model_dump() if isinstance(inside, BaseModel) else dict(inside)
            place = place[parent]
        place[last] = value
    made: Study = validated(type(study), content)
    return made


def base_architecture(study: Study) -> Backbone:
    """The network that cells change: `architecture` (a preset, a YAML file or a mapping), else the base of the space."""
    if study.architecture is None:
        base: Backbone = SearchSpace.load(str(study.space)).base
        return base
    return _named(study.architecture)


def _named(given: Any) -> Backbone:
    """A preset, what a YAML file holds, or a mapping; InputError for what is none of them."""
    if isinstance(given, str):
        if given in backbones.presets() or given.endswith((".yaml", ".yml")):
            return architecture(given)
        raise InputError(
            f"architecture: unknown preset {given!r}{menu.nearest(given, list(backbones.presets()))} (or a YAML file)"
        )
    if not isinstance(given, Mapping):
        raise InputError(f"architecture: {shown(given)}: expected a preset, a YAML file or a mapping of fields")
    try:
        return backbones.from_dict(given)
    except (ValueError, TypeError) as error:
        raise InputError(f"architecture: {error}") from None


def network(base: Backbone, changes: Iterable[tuple[str, Any]]) -> Backbone:
    """A cell's network: the base, or the whole one that a level names ("" is its path), with the fields that levels set.

    Raises NoField, ValueError and InputError for what is none.
    """
    found = dict(changes)
    start = _named(found.pop("")) if "" in found else base
    return fields.changed(start, list(found.items()))


def architectures(study: Study) -> dict[str, Backbone]:
    """Each cell's canonical network at deploy scale, by the cell's name."""
    assert study.ablation is not None
    base = base_architecture(study)
    return {c.name: network(base, c.architecture_fields).canonical() for c in cells(study.ablation)}
