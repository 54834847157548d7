"""The rounds of an evolution, `evolution.json`: what every removal would lose and save, and what was done.

A round is written when its first look is asked for, after every look, and when it is decided. Looks can be made again, so a
file that is damaged is not repaired.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import FiniteFloat, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from nas.errors import brief
from nas.runs.records import Damaged

NAME = "evolution.json"
Kind = Literal["removal", "copy"]


@with_config(extra="forbid", strict=True)
class Action(TypedDict):
    """A change of one axis."""

    axis: str
    kind: Kind
    before: Any
    """The choice that the trial's network has."""
    after: Any
    cost: int | FiniteFloat
    """Of the network with this change alone."""
    quality: FiniteFloat | None
    """Of that network, with the weights that the trial left; None before the look, where it failed, and of a copy, which changes
    nothing before it is trained."""
    failed: str
    """Why the look failed, or nothing."""
    value: FiniteFloat | None
    """Quality lost per unit of cost; of a copy that of the block it is a copy of."""
    done: bool
    """Whether the next trial has it."""


@with_config(extra="forbid", strict=True)
class Round(TypedDict):
    """What was weighed after a trial."""

    trial: int
    cost: int | FiniteFloat
    """Of its network."""
    quality: FiniteFloat | None
    """By a look like those at the changes; None before it."""
    actions: list[Action]


_ROUNDS = TypeAdapter(list[Round])


def read(run_dir: Path) -> list[Round]:
    """All rounds, in order; none where there is no file. Raises Damaged."""
    path = run_dir / NAME
    try:
        return _ROUNDS.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else brief(error)
        raise Damaged(f"{path}: {told}") from None
