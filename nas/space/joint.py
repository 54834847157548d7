"""Several search spaces as one, so that families of networks stand on one front.

The first axis says whose network it is; the other axes are those of the spaces, named `<space>.<axis>`, and count where theirs
is the one asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nas.errors import InputError, shown
from nas.space.search_space import Axis, Choices, SearchSpace

if TYPE_CHECKING:
    from nas.networks.backbones import Backbone

WHICH = "space"  # the first axis


@dataclass(frozen=True)
class JointSpace(SearchSpace):
    """The members of all its spaces. Its base, the network that trials are compared with, is the first's."""

    spaces: tuple[SearchSpace, ...] = ()

    @property
    def parts(self) -> tuple[SearchSpace, ...]:
        return self.spaces

    @cached_property
    def granularity(self) -> int:
        return lcm(*(part.granularity for part in self.spaces))

    def part_of(self, choices: Mapping[str, Any]) -> SearchSpace:
        name = choices.get(WHICH, self.spaces[0].name)
        return next(part for part in self.spaces if part.name == name)

    def own(self, part: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
        before = f"{part.name}."
        return {name.removeprefix(before): value for name, value in values.items() if name.startswith(before)}

    def joined(self, part: SearchSpace, choices: Choices) -> Choices:
        return {WHICH: part.name, **{f"{part.name}.{name}": choice for name, choice in choices.items()}}

    def presets(self) -> dict[str, Backbone]:
        return {name: config for part in self.spaces for name, config in part.presets().items()}

    def built(self, choices: Mapping[str, Any]) -> Backbone:
        part = self.part_of(choices)
        return part.built(self.own(part, choices))

    def _greedy(self, pick: Any, given: Mapping[str, Any] = MappingProxyType({})) -> Choices:
        asked = [part for part in self.spaces if part.name == given.get(WHICH, part.name)]
        ends = [self.joined(part, part._greedy(pick, self.own(part, given))) for part in asked]
        found: Choices = pick(ends, key=self._weight)
        return found


def join(spaces: Sequence[SearchSpace]) -> JointSpace:
    """These spaces as one. Raises InputError where two have one name, or one holds no denoisers."""
    names = [space.name for space in spaces]
    for place, space in enumerate(spaces):
        if space.name in names[:place]:
            raise InputError(f"space.{place}: {shown(space.name)} is there twice")
        if space.family[0] != "backbones":
            raise InputError(f"space.{place}: {space.name!r} holds {space.family[0]}; denoisers are searched together")
    which = Axis(WHICH, tuple(names), tuple(() for _ in names))
    axes = [_axis(space, axis) for space in spaces for axis in space.axes]
    first = spaces[0]
    sources = ", ".join(space.source for space in spaces)
    return JointSpace(" + ".join(names), sources, first.family, first.base, (which, *axes), tuple(spaces))


def _axis(space: SearchSpace, axis: Axis) -> Axis:
    """An axis of a space as one of several's."""
    conditions = [{f"{space.name}.{name}": values for name, values in clause.items()} for clause in axis.when or ({},)]
    when = tuple({WHICH: (space.name,), **condition} for condition in conditions)
    return replace(axis, name=f"{space.name}.{axis.name}", when=when)
