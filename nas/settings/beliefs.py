"""`search.prior` in the words of the study's space: which member is likely, and members drawn as they are likely."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from nas.errors import InputError, shown
from nas.menu import nearest
from nas.search import prior
from nas.settings.study import Study
from nas.space.search_space import Axis, Choices, SearchSpace


@dataclass(frozen=True)
class Beliefs:
    """Likely values of some axes of a space."""

    space: SearchSpace
    likely: Mapping[str, tuple[Any, float]]
    """Axis -> its likely choice, and with which certainty."""

    def __bool__(self) -> bool:
        return bool(self.likely)

    def draw(self, rng: random.Random) -> Choices:
        """A random member, likely values more often than others."""
        choices: Choices = {}
        for axis in self.space.axes:
            if axis.active(choices):
                value, certainty = self.likely.get(axis.name, (None, 0.0))
                choices[axis.name] = value if rng.random() < certainty else rng.choice(axis.choices)
        return choices

    def weight(self, member: Mapping[str, Any]) -> float:
        """How many times as likely as without beliefs a member is."""
        return prod(
            prior.ratio(certainty, len(self.space.axis(name).choices), member[name] == value)
            for name, (value, certainty) in self.likely.items()
            if name in member
        )


def of(study: Study, space: SearchSpace) -> Beliefs:
    """The beliefs of a study whose space, with the axes of its plans, this is.

    Raises InputError naming the key for an axis that is not there, and for a value that is none of its choices.
    """
    assert study.search is not None
    likely = {}
    for name, belief in study.search.prior.items():
        axis = next((axis for axis in space.axes if axis.name == name), None)
        if axis is None:
            known = nearest(name, [axis.name for axis in space.axes])
            raise InputError(f"search.prior.{name}: no axis {shown(name)} in space {space.name!r}{known}")
        likely[name] = (_choice(axis, belief.value), belief.certainty)
    return Beliefs(space, likely)


def _choice(axis: Axis, value: Any) -> Any:
    """The choice of an axis that is meant: 2.0 is 2, but true is not 1."""
    for choice in axis.choices:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
    known = nearest(str(value), [str(choice) for choice in axis.choices])
    raise InputError(f"search.prior.{axis.name}.value: {shown(value)} is not on the axis{known}")
