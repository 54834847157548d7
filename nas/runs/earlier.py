"""What a run was told of earlier runs as it began (`search.from`), `earlier.json`: their finished trials, and their looks.

It is written once, so that a run that goes on knows what it knew, whatever became of the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from nas.errors import brief
from nas.runs.looks import Looks
from nas.runs.records import Damaged

NAME = "earlier.json"


@with_config(extra="forbid", strict=True)
class Finished(TypedDict):
    """A trial that was trained to the end."""

    trial: Annotated[int, Field(ge=0)]
    """Its number in its own run."""
    key: str
    """The architecture's hash."""
    choices: dict[str, Any]
    """By axis."""
    cost: dict[str, int | FiniteFloat]
    """At deploy scale, by column."""
    metrics: dict[str, FiniteFloat]
    """Scores at the end, by column."""


@with_config(extra="forbid", strict=True)
class Earlier(TypedDict):
    """One earlier run."""

    run: str
    """Its folder, as the study names it."""
    conditions: dict[str, dict[str, Any]]
    """What each score was measured with, by column."""
    trials: list[Finished]
    looks: Looks
    """Of a pool, for a pool: what it looked at, by the architecture's hash."""


_EARLIER = TypeAdapter(list[Earlier])


def read(run_dir: Path) -> list[Earlier]:
    """The earlier runs, in the order of the study; none where there is no file. Raises Damaged."""
    path = run_dir / NAME
    try:
        return _EARLIER.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else brief(error)
        raise Damaged(f"{path}: {told}") from None
