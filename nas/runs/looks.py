"""The looks of a run, `looks.json`: what cheap scores of untrained members said, before any of them got a trial.

They can be made again, so a file that is damaged is not repaired: its looks are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from nas.errors import brief
from nas.runs.records import Damaged

NAME = "looks.json"


@with_config(extra="forbid", strict=True)
class Looked(TypedDict):
    """What a look at one network gave."""

    choices: dict[str, Any]
    """By axis."""
    cost: dict[str, int | FiniteFloat]
    """At deploy scale, by column."""
    metrics: dict[str, FiniteFloat]
    """Scores by column; none where the look failed."""
    failed: str
    """Why it failed, or nothing."""
    seconds: float


Looks = dict[str, Looked]  # by the architecture's hash, in the order in which they were made

_LOOKS = TypeAdapter(dict[str, Looked])


def read(run_dir: Path) -> Looks:
    """All looks; none where there is no file. Raises Damaged."""
    path = run_dir / NAME
    try:
        return _LOOKS.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else brief(error)
        raise Damaged(f"{path}: {told}") from None
