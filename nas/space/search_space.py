"""Search spaces: a YAML file names fields of an architecture and the values each may take.

    backbone: unet                # a name in nas/networks/backbones; or `decoder:` and a name in nas/networks/decoders
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

Reading, sampling and counting import neither torch nor numpy; `nas.space.screen` evaluates whole spaces.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nas import menu
from nas.errors import InputError
from nas.space.fields import with_fields

if TYPE_CHECKING:
    import optuna

    from nas.networks.backbones import Backbone

Choices = dict[str, Any]
Condition = dict[str, tuple[Any, ...]]


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
    base: Backbone
    """The architecture with all held values."""
    axes: tuple[Axis, ...]

    @classmethod
    def load(cls, given: str | Path | Sequence[str]) -> SearchSpace:
        """The space in search_spaces/<name>.yaml (in the current directory, or shipped) or at a path to a YAML file; of
        several, one space that has the members of all.

        Raises InputError naming file, axis, value and rule for whatever a space cannot be.
        """
        from nas.space import joint, space_file

        if isinstance(given, str | Path):
            return space_file.load(given)
        spaces = [space_file.load(one, f"space.{place}") for place, one in enumerate(given)]
        return spaces[0] if len(spaces) == 1 else joint.join(spaces)

    # -- spaces made of several ----------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[SearchSpace, ...]:
        """The spaces that this one joins; itself where it joins none."""
        return (self,)

    def part_of(self, choices: Mapping[str, Any]) -> SearchSpace:
        """The part that a member is from."""
        return self

    def own(self, part: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those values that belong to a part's axes, by the names that the axes have there."""
        return dict(values)

    def joined(self, part: SearchSpace, choices: Choices) -> Choices:
        """A member of a part as one of this space: the reverse of `own`."""
        return choices

    @cached_property
    def granularity(self) -> int:
        """Members take latents whose side is a multiple of it: of what the base asks for, and every choice alone."""
        alone = (with_fields(self.base, fields) for axis in self.axes for fields in axis.settings)
        return math.lcm(self.base.granularity, *(member.granularity for member in alone))

    # -- members -------------------------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> Choices:
        """A random member: each active axis in turn, all its choices equally likely (as an unguided sampler asks)."""
        choices: Choices = {}
        for axis in self.axes:
            if axis.active(choices):
                choices[axis.name] = rng.choice(axis.choices)
        return choices

    def neighbour(self, member: Choices, rng: random.Random) -> Choices:
        """A member that differs from this one in one axis, and in those that are active through it; itself where none can."""
        free = [axis for axis in self.axes if axis.name in member and len(axis.choices) > 1]
        changed = rng.choice(free) if free else None
        choices: Choices = {}
        for axis in self.axes:
            if axis is changed:
                choices[axis.name] = rng.choice([choice for choice in axis.choices if choice != member[axis.name]])
            elif axis.active(choices):
                choices[axis.name] = member[axis.name] if axis.name in member else rng.choice(axis.choices)
        return choices

    def changed(self, member: Mapping[str, Any], changes: Mapping[str, Any]) -> Choices:
        """The member with other choices on some axes; axes that become active through them take their smallest choice."""
        known, choices = {**member, **changes}, Choices()
        for axis in self.axes:
            if axis.active(choices):
                offered = (known[axis.name],) if axis.name in known else axis.choices
                made = [{**choices, axis.name: choice} for choice in offered]
                choices = made[0] if len(made) == 1 else min(made, key=self._weight)
        return choices

    def moves(self, member: Choices) -> Iterator[tuple[str, Choices]]:
        """Every member that differs from this one in one axis, and in those that are active through it, with that axis."""
        for axis in self.axes:
            for choice in axis.choices if axis.name in member else ():
                if choice != member[axis.name] and self.makes(other := self.changed(member, {axis.name: choice})):
                    yield axis.name, other

    def makes(self, choices: Mapping[str, Any]) -> bool:
        """Whether choices make a network: one may refuse a combination."""
        try:
            self.built(choices)
        except ValueError:
            return False
        return True

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

    def architecture(self, choices: Mapping[str, Any]) -> Backbone:
        """The member's canonical network. Choices of inactive axes are ignored; active axes without one keep the base.

        Raises InputError for an axis or choice the space doesn't have, or a combination the network refuses.
        """
        self._check(choices)
        try:
            return self.built(choices).canonical()
        except ValueError as error:
            raise InputError(f"{self.source}: {spelled(choices)} is refused: {error}") from None

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

    def largest_with(self, axis: Axis, choice: Any) -> Iterator[Choices]:
        """The largest member that has a choice of an axis, once for every way in which the axis can be active."""
        for needed in self._activating(axis):
            yield self._greedy(max, {**self.largest(), **needed, axis.name: choice})

    def _activating(self, axis: Axis) -> Iterator[Choices]:
        """Choices of other axes under which an axis is active."""
        if not axis.when:
            yield {}
        for condition in axis.when:
            deciding = [self.axis(name) for name in condition]
            for values in product(*condition.values()):
                wanted = dict(zip(condition, values, strict=True))
                for before in product(*map(self._activating, deciding)):
                    merged = {name: value for choices in (*before, wanted) for name, value in choices.items()}
                    if all(choices.items() <= merged.items() for choices in before):
                        yield merged

    def presets(self) -> dict[str, Backbone]:
        """Published networks of the space's family, by name."""
        presets: dict[str, Backbone] = menu.pick(*self.family).presets()
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

    def built(self, choices: Mapping[str, Any]) -> Backbone:
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

    def _greedy(self, pick: Any, given: Mapping[str, Any] = MappingProxyType({})) -> Choices:
        """A member: choices are those given, and picked by parameters and MACs in the other axes."""

        chosen: Choices = {}
        for axis in self.axes:
            if axis.active(chosen):
                offered = (given[axis.name],) if axis.name in given else axis.choices
                chosen = pick(({**chosen, axis.name: choice} for choice in offered), key=self._weight)
        return chosen

    def _weight(self, choices: Choices) -> tuple[int, int]:
        cost = self.architecture(choices).cost(8 * self.granularity, 77)
        return cost.params, cost.macs


def spelled(choices: Mapping[str, Any]) -> str:
    """A member for a message."""
    return ", ".join(f"{name}={value}" for name, value in choices.items()) or "the base"
