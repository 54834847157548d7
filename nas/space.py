"""Search spaces: a YAML file names fields of an architecture and the values each may take.

    backbone: unet                # a name in nas/backbones; or `decoder:` and a name in nas/decoders
    base: mobilediffusion         # fields no axis names keep this preset's values; or a mapping, a whole architecture
    hold:                         # optional: held at other values than the base's
      levels.0.down: [1]
    axes:
      width:
        fields: levels.2.channels                    # a path; several paths are tied and take the same value
        range: {low: 768, high: 1280, step: 128}     # or `choices: [...]`
      depth:
        fields: [levels.2.down.*, levels.2.up.*]     # * stands for every level, or every entry
        choices: [1, 2, 3]
        when: {self_attention: true}                 # an axis counts only under this condition
      blocks:
        choices:                                     # named choices may set several fields to different values
          one: {levels.1.down: [1], levels.1.up: [1, 1]}
          two: {levels.1.down: [1, 1], levels.1.up: [1, 1, 1]}

`when` maps axes to the value, or the list of values, they must have; a list of such mappings holds if one of them does.
A member of the space is a dict of choices, one per active axis; `architecture` makes it a canonical, hashable Config.

Reading, sampling and counting import neither torch nor numpy; `nas.screen` evaluates whole spaces.
"""

from __future__ import annotations

import copy
import difflib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nas import menu
from nas.errors import InputError

if TYPE_CHECKING:
    import optuna

    from nas.backbones.unet import Config

Choices = dict[str, Any]
Condition = dict[str, tuple[Any, ...]]
SHIPPED = Path(__file__).parent.parent / "search_spaces"


class Range(BaseModel):
    """Integers from low to high, both included."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    low: int
    high: int
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high or (self.high - self.low) % self.step:
            raise ValueError(f"low={self.low}, high={self.high}, step={self.step}: steps from low must end at high")
        return self


Clause = dict[str, Any]


class AxisFile(BaseModel):
    """One axis as a space file spells it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

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


class SpaceFile(BaseModel):
    """A search space file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone: str | None = None
    """The family of denoisers: a name in nas/backbones."""
    decoder: str | None = None
    """Or the family of image decoders: a name in nas/decoders."""
    base: str | dict[str, Any]
    """Where the other fields come from: the name of a preset, or a whole architecture."""
    hold: dict[str, Any] = {}
    """Fields held at other values than the base's, by path."""
    axes: dict[str, AxisFile] = Field(min_length=1)
    """What is searched: a name for each decision."""

    @model_validator(mode="after")
    def _one_family(self) -> Self:
        if (self.backbone is None) == (self.decoder is None):
            raise ValueError("give one of backbone and decoder")
        return self

    @property
    def family(self) -> tuple[str, str]:
        """The menu folder and the name in it."""
        return ("backbones", self.backbone) if self.backbone is not None else ("decoders", self.decoder or "")


@dataclass(frozen=True)
class Axis:
    """One decision."""

    name: str
    choices: tuple[Any, ...]
    """The values; of named choices the names."""
    settings: tuple[tuple[tuple[str, Any], ...], ...]
    """For each choice the (path, value) pairs it sets."""
    when: tuple[Condition, ...] = ()
    """Active if any of these holds (or there is none): each maps axes to the values they may have."""
    step: int | None = None
    """Distance of neighbouring choices if this is a range."""

    @property
    def labels(self) -> tuple[Any, ...]:
        """The choices as a sampler may store them: lists become JSON."""
        return tuple(json.dumps(c) if isinstance(c, list | dict) else c for c in self.choices)

    def active(self, choices: Mapping[str, Any]) -> bool:
        """Whether the axis counts beside these choices of others; an inactive axis has none."""
        return not self.when or any(
            all(name in choices and choices[name] in values for name, values in condition.items())
            for condition in self.when
        )


@dataclass(frozen=True)
class SearchSpace:
    """A loaded space. Axes stand in an order in which every condition precedes what it decides."""

    name: str
    source: str
    """The file, for messages."""
    family: tuple[str, str]
    """The menu folder of its networks and the name in it: ("backbones", "unet")."""
    base: Config
    """The architecture with all held values."""
    axes: tuple[Axis, ...]

    @classmethod
    def load(cls, name_or_path: str | Path) -> SearchSpace:
        """The space in search_spaces/<name>.yaml (in the current directory, or shipped) or at a path to a YAML file.

        Raises InputError naming file, axis, value and rule for whatever the space cannot be.
        """
        from nas.document import Document

        path = find(name_or_path)
        document = Document.read(path)
        file: SpaceFile = document.validate(SpaceFile, document.content)
        return _Loader(path, file).space()

    # -- members -------------------------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> Choices:
        """A random member: each active axis in turn, all its choices equally likely (as an unguided sampler asks)."""
        choices: Choices = {}
        for axis in self.axes:
            if axis.active(choices):
                choices[axis.name] = rng.choice(axis.choices)
        return choices

    def suggest(self, trial: optuna.trial.BaseTrial) -> Choices:
        """The member an Optuna sampler asks for, active axes only."""
        choices: Choices = {}
        for axis in self.axes:
            if not axis.active(choices):
                continue
            if axis.step is not None:
                choices[axis.name] = trial.suggest_int(axis.name, axis.choices[0], axis.choices[-1], step=axis.step)
            else:
                label = trial.suggest_categorical(axis.name, axis.labels)
                choices[axis.name] = axis.choices[axis.labels.index(label)]
        return choices

    def parameters(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """A member as Optuna's parameters, for `enqueue_trial`."""
        return {a.name: a.labels[a.choices.index(choices[a.name])] for a in self.axes if a.name in choices}

    def architecture(self, choices: Mapping[str, Any]) -> Config:
        """The member's canonical network. Choices of inactive axes are ignored; active axes without one keep the base.

        Raises InputError for an axis or choice the space doesn't have, or a combination the network refuses.
        """
        self._check(choices)
        try:
            return self.built(choices).canonical()
        except ValueError as error:
            raise InputError(f"{self.source}: {_spelled(choices)} is refused: {error}") from None

    def enumerate(self) -> Iterator[Choices]:
        """Every member once."""
        yield from self._extend({}, self.axes)

    def size(self) -> int:
        """Number of members: distinct combinations of active choices."""
        return sum(self.multiplicity(choices) for choices in self.decided())

    def largest(self) -> Choices:
        """The member that takes in each axis the choice with most parameters (of equals the one with most MACs)."""
        return dict(self._ends[1])

    def smallest(self) -> Choices:
        """The member that takes in each axis the choice with fewest parameters (of equals the one with fewest MACs)."""
        return dict(self._ends[0])

    def presets(self) -> dict[str, Config]:
        """Published networks of the space's family, by name."""
        presets: dict[str, Config] = menu.pick(*self.family).presets()
        return presets

    def axis(self, name: str) -> Axis:
        """The axis of this name."""
        return next(axis for axis in self.axes if axis.name == name)

    # -- counting ------------------------------------------------------------------------------------------------

    @cached_property
    def deciding(self) -> tuple[Axis, ...]:
        """The axes that conditions ask about, and the axes those depend on."""
        named = {name for axis in self.axes for condition in axis.when for name in condition}
        return tuple(axis for axis in self.axes if axis.name in named)

    def decided(self) -> Iterator[Choices]:
        """Every assignment of the deciding axes; which of the other axes are active depends on nothing else."""
        yield from self._extend({}, self.deciding)

    def multiplicity(self, decided: Choices) -> int:
        """Number of members with these choices of the deciding axes."""
        others = [axis for axis in self.axes if axis not in self.deciding]
        return prod(len(axis.choices) for axis in others if axis.active(decided))

    def _extend(self, choices: Choices, axes: Sequence[Axis]) -> Iterator[Choices]:
        if not axes:
            yield choices
            return
        first, rest = axes[0], axes[1:]
        if not first.active(choices):
            yield from self._extend(choices, rest)
            return
        for choice in first.choices:
            yield from self._extend({**choices, first.name: choice}, rest)

    # -- building ------------------------------------------------------------------------------------------------

    def _check(self, choices: Mapping[str, Any]) -> None:
        for name, choice in choices.items():
            axis = next((axis for axis in self.axes if axis.name == name), None)
            if axis is None:
                raise InputError(f"{self.source}: no axis {name!r}{menu.nearest(name, [a.name for a in self.axes])}")
            if choice not in axis.choices:
                offered = ", ".join(map(str, axis.choices))
                raise InputError(f"{self.source}: axes.{name}: {choice!r} is not one of its choices: {offered}")

    def built(self, choices: Mapping[str, Any]) -> Config:
        """The member's network as the file spells it, neither checked nor canonical. May raise ValueError."""
        settings: list[tuple[str, Any]] = []
        seen: Choices = {}
        for axis in self.axes:
            if axis.name in choices and axis.active(seen):
                seen[axis.name] = choices[axis.name]
                settings += axis.settings[axis.choices.index(choices[axis.name])]
        return with_fields(self.base, settings)

    @cached_property
    def _ends(self) -> tuple[Choices, Choices]:
        return self._greedy(min), self._greedy(max)

    def _greedy(self, pick: Any) -> Choices:
        def weight(choices: Choices) -> tuple[int, int]:
            cost = self.architecture(choices).cost(2 ** (len(self.base.levels) + 2), 77)
            return cost.params, cost.macs

        chosen: Choices = {}
        for axis in self.axes:
            if axis.active(chosen):
                chosen = pick(({**chosen, axis.name: choice} for choice in axis.choices), key=weight)
        return chosen


def find(name_or_path: str | Path) -> Path:
    """The file of a space. Raises InputError that lists the spaces there are."""
    given = Path(name_or_path)
    folders = [Path("search_spaces"), SHIPPED]
    candidates = [given] if given.suffix else [folder / f"{name_or_path}.yaml" for folder in folders]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        return found
    offered = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise InputError(f"search space: no file {candidates[0]}{menu.nearest(given.stem, offered)}")


def with_fields(config: Config, settings: Sequence[tuple[str, Any]]) -> Config:
    """The architecture with fields set by path. Raises KeyError(path) where there is no such field."""
    changes: dict[str, Any] = {}
    levels: dict[int, dict[str, Any]] = {}
    for path, value in settings:
        head, *rest = path.split(".")
        if head != "levels" or not rest:
            changes[head] = _entry(changes.get(head, getattr(config, head, None)), rest, value, path)
            continue
        if len(rest) < 2:
            raise KeyError(path)
        for index in _indices(rest[0], len(config.levels), path):
            level = levels.setdefault(index, {})
            old = level.get(rest[1], getattr(config.levels[index], rest[1], None))
            level[rest[1]] = _entry(old, rest[2:], value, path)
    if levels:
        changes["levels"] = tuple(replace(level, **levels.get(i, {})) for i, level in enumerate(config.levels))
    return replace(config, **changes)


class NoField(ValueError):
    """A path that names no field of an architecture."""


def changed(base: Config, settings: Sequence[tuple[str, Any]]) -> Config:
    """`with_fields`, its types checked. NoField names the nearest field there is; ValueError says why a value is refused."""
    try:
        config: Config = type(base).from_dict(with_fields(copy.copy(base), settings).to_dict())
        return config
    except KeyError as error:
        raise NoField(f"no field {error.args[0]!r}{_nearest_path(base, error.args[0])}") from None
    except (ValueError, TypeError) as error:
        unknown = "unexpected keyword argument" in str(error)
        path = next((path for path, _ in settings if unknown and path.split(".")[-1] in str(error)), None)
        if path is not None:
            raise NoField(f"no field {path!r}{_nearest_path(base, path)}") from None
        raise ValueError(str(error)) from None


def _entry(old: Any, rest: Sequence[str], value: Any, path: str) -> Any:
    """The new value of a field: the given one, or the old tuple with the entry (or all, for *) replaced."""
    if not rest:
        return tuple(value) if isinstance(value, list) else value
    if len(rest) > 1 or not isinstance(old, tuple):
        raise KeyError(path)
    changed = list(old)
    for index in _indices(rest[0], len(old), path):
        changed[index] = value
    return tuple(changed)


def _indices(step: str, length: int, path: str) -> Sequence[int]:
    if step == "*":
        return range(length)
    if step.isdigit() and int(step) < length:
        return [int(step)]
    raise KeyError(path)


def _spelled(choices: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in choices.items()) or "the base"


class _Loader:
    """From a file's contents to a space, refusing what cannot be."""

    def __init__(self, path: Path, file: SpaceFile):
        self.path, self.file = path, file
        try:
            self.menu = menu.pick(*file.family)
        except InputError as error:
            raise self._error(str(error)) from None

    def space(self) -> SearchSpace:
        base = self._base()
        for path, value in self.file.hold.items():
            base = self._tried(base, [(path, value)], f"hold.{path}: {value!r}")
        axes = [self._axis(name, axis) for name, axis in self.file.axes.items()]
        space = SearchSpace(self.path.stem, str(self.path), self.file.family, base, tuple(self._ordered(axes)))
        self._check_fields(space)
        self._check_overlaps(space)
        self._check_pairs(space)
        return space

    def _error(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")

    def _base(self) -> Config:
        if isinstance(self.file.base, dict):
            try:
                config: Config = self.menu.Config.from_dict(self.file.base)
                return config
            except ValueError as error:
                raise self._error(f"base: {error}") from None
        presets: dict[str, Config] = self.menu.presets()
        if self.file.base not in presets:
            raise self._error(f"base: unknown preset {self.file.base!r}{menu.nearest(self.file.base, list(presets))}")
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
            raise self._error(f"axes.{name}.choices: {list(values)} names a value twice")
        settings = tuple(tuple((path, value) for path in paths) for value in values)
        return Axis(name, values, settings, when, span.step if span else None)

    def _check_when(self, name: str, when: tuple[Condition, ...]) -> None:
        for asked, values in (item for condition in when for item in condition.items()):
            other = self.file.axes.get(asked)
            if other is None or asked == name:
                offered = menu.nearest(asked, [axis for axis in self.file.axes if axis != name])
                raise self._error(f"axes.{name}.when: no axis {asked!r}{offered}")
            span = other.range
            choices = list(range(span.low, span.high + 1, span.step)) if span else list(other.choices or ())
            wrong = [value for value in values if value not in choices]
            if wrong:
                raise self._error(f"axes.{name}.when.{asked}: {wrong[0]!r} is not one of its choices: {choices}")

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
            raise self._error(f"axes: conditions go round in a circle: {' -> '.join(error.args[1])}") from None
        return [axes[place[name]] for name in ordered]

    def _tried(self, base: Config, settings: Sequence[tuple[str, Any]], what: str) -> Config:
        """The base with these fields; InputError `what is refused: rule` if there is no such field or value."""
        try:
            return changed(base, settings)
        except NoField as error:
            raise self._error(f"{what}: {error}") from None
        except ValueError as error:
            raise self._error(f"{what} is refused: {error}") from None

    def _check_fields(self, space: SearchSpace) -> None:
        """Every choice of every axis, alone on the base."""
        for axis in space.axes:
            for choice, settings in zip(axis.choices, axis.settings, strict=True):
                self._tried(space.base, settings, f"axes.{axis.name}: {choice!r}")

    def _check_overlaps(self, space: SearchSpace) -> None:
        """No two axes set one field at a time; an axis for a whole tuple comes before those for its entries."""
        for a, b in combinations(space.axes, 2):
            fields = {path: concrete(space.base, path) for axis in (a, b) for c in axis.settings for path, _ in c}
            mine, theirs = ({p for c in axis.settings for path, _ in c for p in fields[path]} for axis in (a, b))
            shared = mine & theirs | {path for path in mine if path.rpartition(".")[0] in theirs}
            if shared and any(a.active(decided) and b.active(decided) for decided in space.decided()):
                raise self._error(f"axes.{a.name} and axes.{b.name} both set {min(shared)}")

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
                    raise self._error(f"axes.{a.name}, axes.{b.name}: {_spelled(pair)} is refused: {error}") from None
                except KeyError as error:
                    raise self._error(
                        f"axes.{b.name}: {_spelled(pair)}: no field {error.args[0]!r} after axes.{a.name}"
                    ) from None


def _possible(axis: Axis, choices: Mapping[str, Any]) -> bool:
    """Whether the axis can be active beside these choices, if the other axes are free."""
    return not axis.when or any(
        all(name not in choices or choices[name] in values for name, values in condition.items())
        for condition in axis.when
    )


def concrete(config: Config, path: str) -> list[str]:
    """The paths that a path with `*` stands for."""
    found = [""]
    for step in path.split("."):
        found = [f"{p}.{s}".lstrip(".") for p in found for s in (_steps(config, p) if step == "*" else [step])]
    return found


def _steps(config: Config, path: str) -> range:
    """The indices below a path: of the levels, or of the entries of a level's tuple."""
    if path == "levels":
        return range(len(config.levels))
    _, index, name = path.split(".")
    return range(len(getattr(config.levels[int(index)], name)))


def schema() -> dict[str, Any]:
    """The JSON schema of space files, which editors read."""
    return SpaceFile.model_json_schema()


def paths(config: Config) -> list[str]:
    """The paths an axis may name, `*` for each kind of index."""
    plain = config.to_dict()
    top = [name for name in plain if name != "levels"]
    levels = [f"levels.{i}.{name}" for i, level in enumerate(plain["levels"]) for name in level]
    lists = [(i, name) for i, level in enumerate(plain["levels"]) for name, v in level.items() if isinstance(v, list)]
    entries = [f"levels.{i}.{name}.*" for i, name in lists]
    return top + levels + [f"levels.*.{name}" for name in plain["levels"][0]] + entries


def _nearest_path(config: Config, path: str) -> str:
    close = difflib.get_close_matches(path, paths(config), n=1, cutoff=0.3)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (an axis may name fields such as levels.0.channels, levels.*.ffn_ratio, levels.2.down.*, shared_kv)"
