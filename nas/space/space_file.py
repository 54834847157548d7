"""From a search space file to a `nas.space.search_space.SearchSpace`, refusing what cannot be. `nas.space.search_space`
says how files are spelled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from nas import menu
from nas.documents.document import Document
from nas.documents.section import Section
from nas.errors import InputError, shown
from nas.space.fields import NoField, changed, concrete, with_fields
from nas.space.search_space import Axis, Condition, SearchSpace, spelled

if TYPE_CHECKING:
    from nas.networks.backbones import Backbone

SHIPPED = Path(__file__).parents[2] / "search_spaces"
MOST_CHOICES = 256  # of all axes together: every pair is tried
MOST_DECIDED = 10_000  # ways in which axes that others depend on may be chosen
Clause = dict[str, Any]


class Range(Section):
    """Integers from low to high, both included."""

    low: int
    high: int
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high or (self.high - self.low) % self.step:
            raise ValueError(f"low={self.low}, high={self.high}, step={self.step}: steps from low must end at high")
        if (self.high - self.low) // self.step >= MOST_CHOICES:
            raise ValueError(
                f"low={self.low}, high={self.high}, step={self.step}: expected at most {MOST_CHOICES} values"
            )
        return self


class AxisFile(Section):
    """One axis as a space file spells it."""

    fields: str | list[str] = []
    """Path of the field, or several tied paths that take the same value; `*` stands for every level or entry."""
    choices: list[Any] | dict[str, dict[str, Any]] | None = None
    """The values; or named choices, each a mapping of paths to values (then without `fields`)."""
    range: Range | None = None
    """Evenly spaced integers, instead of `choices`; a sampler may use their order."""
    when: Clause | list[Clause] = []
    """The axis counts only if these other axes have these values (one or a list); of a list of mappings, one must hold."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.choices is None) == (self.range is None):
            raise ValueError("give one of choices and range")
        if self.choices is not None and not self.choices:
            raise ValueError("choices is empty")
        if isinstance(self.choices, dict) == bool(self.fields):
            raise ValueError("give fields with a list of choices or a range, and none with named choices")
        return self


class SpaceFile(Section):
    """A search space file."""

    backbone: str | None = None
    """The family of denoisers: a name in nas/networks/backbones."""
    decoder: str | None = None
    """Or the family of image decoders: a name in nas/networks/decoders."""
    base: str | dict[str, Any]
    """Where the other fields come from: the name of a preset, or a whole architecture."""
    hold: dict[str, Any] = {}
    """Fields held at other values than the base's, by path."""
    axes: dict[str, AxisFile] = Field(min_length=1)
    """What is searched: a name for each decision."""

    @field_validator("axes")
    @classmethod
    def _named(cls, axes: dict[str, AxisFile]) -> dict[str, AxisFile]:
        named = {name: axis.choices for name, axis in axes.items() if isinstance(axis.choices, dict)}
        if "" in axes or any("" in choices for choices in named.values()):
            raise ValueError("a name of no letters, of an axis or a choice; expected a word")
        return axes

    @model_validator(mode="after")
    def _one_family(self) -> Self:
        if (self.backbone is None) == (self.decoder is None):
            raise ValueError("give one of backbone and decoder")
        return self

    @property
    def family(self) -> tuple[str, str]:
        """The menu folder and the name in it."""
        return ("backbones", self.backbone) if self.backbone is not None else ("decoders", self.decoder or "")


def schema() -> dict[str, Any]:
    """The JSON schema of space files, which editors read."""
    return SpaceFile.model_json_schema()


def find(name_or_path: str | Path, setting: str = "space") -> Path:
    """The file of a space. Raises InputError, about this setting, that names the nearest space there is."""
    given = Path(name_or_path)
    folders = [Path("search_spaces"), SHIPPED]
    candidates = [given] if given.suffix else [folder / f"{name_or_path}.yaml" for folder in folders]
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found is not None:
        return found
    offered = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise InputError(f"{setting}: no file {candidates[0]}{menu.nearest(given.stem, offered)}")


def load(name_or_path: str | Path, setting: str = "space") -> SearchSpace:
    """The space in search_spaces/<name>.yaml (in the current directory, or shipped) or at a path to a YAML file.

    Raises InputError naming file, axis, value and rule for whatever the space cannot be.
    """
    path = find(name_or_path, setting)
    document = Document.read(path)
    file: SpaceFile = document.validate(SpaceFile, document.content)
    with document.placing(SpaceFile.model_fields):
        return _Loader(path, file).space()


class _Loader:
    """From a file's contents to a space, refusing what cannot be."""

    def __init__(self, path: Path, file: SpaceFile):
        self.path, self.file = path, file
        folder, name = file.family
        try:
            self.menu = menu.pick(folder, name)
        except InputError as error:
            raise InputError(f"{folder.removesuffix('s')}: {error}") from None

    def space(self) -> SearchSpace:
        base = self._base()
        for path, value in self.file.hold.items():
            base = self._tried(base, [(path, value)], f"hold.{path}: {shown(value)}")
        axes = [self._axis(name, axis) for name, axis in self.file.axes.items()]
        space = SearchSpace(self.path.stem, str(self.path), self.file.family, base, tuple(self._ordered(axes)))
        self._check_size(space)
        self._check_fields(space)
        self._check_overlaps(space)
        self._check_pairs(space)
        return space

    def _base(self) -> Backbone:
        if isinstance(self.file.base, dict):
            try:
                config: Backbone = self.menu.Config.from_dict(self.file.base)
                return config
            except ValueError as error:
                raise InputError(f"base: {error}") from None
        presets: dict[str, Backbone] = self.menu.presets()
        if self.file.base not in presets:
            raise InputError(f"base: unknown preset {self.file.base!r}{menu.nearest(self.file.base, list(presets))}")
        return presets[self.file.base]

    def _axis(self, name: str, axis: AxisFile) -> Axis:
        when = tuple(
            {asked: tuple(value) if isinstance(value, list) else (value,) for asked, value in clause.items()}
            for clause in ([axis.when] if isinstance(axis.when, dict) else axis.when)
        )
        self._check_when(name, when)
        if isinstance(axis.choices, dict):
            named = tuple(tuple(settings.items()) for settings in axis.choices.values())
            return Axis(name, tuple(axis.choices), named, when)
        paths = [axis.fields] if isinstance(axis.fields, str) else axis.fields
        span = axis.range
        values = tuple(range(span.low, span.high + 1, span.step)) if span else tuple(axis.choices or ())
        if any(value in values[:index] for index, value in enumerate(values)):
            raise InputError(f"axes.{name}.choices: {shown(list(values))} names a value twice")
        settings = tuple(tuple((path, value) for path in paths) for value in values)
        return Axis(name, values, settings, when, span.step if span else None)

    def _check_when(self, name: str, when: tuple[Condition, ...]) -> None:
        for asked, values in (item for condition in when for item in condition.items()):
            other = self.file.axes.get(asked)
            if other is None or asked == name:
                offered = menu.nearest(asked, [axis for axis in self.file.axes if axis != name])
                raise InputError(f"axes.{name}.when: no axis {shown(asked)}{offered}")
            span = other.range
            choices = list(range(span.low, span.high + 1, span.step)) if span else list(other.choices or ())
            wrong = [value for value in values if value not in choices]
            if wrong:
                raise InputError(
                    f"axes.{name}.when.{asked}: {shown(wrong[0])} is not one of its choices: {shown(choices)}"
                )

    def _ordered(self, axes: list[Axis]) -> list[Axis]:
        """As in the file, but each after the axes its condition asks about."""
        sorter = TopologicalSorter({a.name: {name for condition in a.when for name in condition} for a in axes})
        place = {axis.name: index for index, axis in enumerate(axes)}
        ordered: list[str] = []
        try:
            sorter.prepare()
            ready = list(sorter.get_ready())
            while ready:
                ready.sort(key=lambda name: place[name])
                ordered.append(ready.pop(0))
                sorter.done(ordered[-1])
                ready += sorter.get_ready()
        except CycleError as error:
            raise InputError(f"axes: conditions go round in a circle: {' -> '.join(error.args[1])}") from None
        return [axes[place[name]] for name in ordered]

    def _tried(self, base: Backbone, settings: Sequence[tuple[str, Any]], what: str) -> Backbone:
        """The base with these fields; InputError `what is refused: rule` if there is no such field or value."""
        try:
            return changed(base, settings)
        except NoField as error:
            raise InputError(f"{what}: {error}") from None
        except ValueError as error:
            raise InputError(f"{what} is refused: {error}") from None

    def _check_size(self, space: SearchSpace) -> None:
        """Small enough for every pair of choices to be tried, and for every way to decide what others depend on."""
        choices = sum(len(axis.choices) for axis in space.axes)
        decided = prod(len(axis.choices) for axis in space.deciding)
        if choices > MOST_CHOICES:
            raise InputError(f"axes: {choices:,} choices in all, expected at most {MOST_CHOICES}")
        if decided > MOST_DECIDED:
            asked = ", ".join(axis.name for axis in space.deciding)
            raise InputError(
                f"axes: {asked}: conditions ask in {decided:,} combinations, expected at most {MOST_DECIDED:,}"
            )

    def _check_fields(self, space: SearchSpace) -> None:
        """Every choice of every axis, alone on the base."""
        for axis in space.axes:
            for choice, settings in zip(axis.choices, axis.settings, strict=True):
                self._tried(space.base, settings, f"axes.{axis.name}: {shown(choice)}")

    def _check_overlaps(self, space: SearchSpace) -> None:
        """No two axes set one field at a time; an axis for a whole tuple comes before those for its entries."""
        for a, b in combinations(space.axes, 2):
            fields = {path: concrete(space.base, path) for axis in (a, b) for c in axis.settings for path, _ in c}
            mine, theirs = ({p for c in axis.settings for path, _ in c for p in fields[path]} for axis in (a, b))
            shared = mine & theirs | {path for path in mine if path.rpartition(".")[0] in theirs}
            if shared and any(a.active(decided) and b.active(decided) for decided in space.decided()):
                raise InputError(f"axes.{b.name}: sets {min(shared)}, which axes.{a.name} sets too")

    def _check_pairs(self, space: SearchSpace) -> None:
        """Every pair of choices that can be active together, so that a clash is found before a search is under way."""
        for a, b in combinations(space.axes, 2):
            for i, j in product(range(len(a.choices)), range(len(b.choices))):
                pair = {a.name: a.choices[i], b.name: b.choices[j]}
                if not (_possible(a, pair) and _possible(b, pair)):
                    continue
                try:
                    with_fields(space.base, a.settings[i] + b.settings[j])
                except ValueError as error:
                    raise InputError(f"axes.{b.name}: {spelled(pair)} is refused: {error}") from None
                except KeyError as error:
                    raise InputError(
                        f"axes.{b.name}: {spelled(pair)}: no field {error.args[0]!r} after axes.{a.name}"
                    ) from None


def _possible(axis: Axis, choices: Mapping[str, Any]) -> bool:
    """Whether the axis can be active beside these choices, if the other axes are free."""
    return not axis.when or any(
        all(name not in choices or choices[name] in values for name, values in condition.items())
        for condition in axis.when
    )
