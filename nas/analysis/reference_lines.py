"""Lines of reference: what known pictures and networks score in a study, so that the score of a trial means something.

    real          the real pictures of the captions that trials draw
    held_out      as many real pictures that nothing was trained on, with their own captions: the floor of a distance
    autoencoded   the first of them, encoded and decoded: what the autoencoder alone costs
    base          the base network of the space after a trial's training, or the study's base model
    untrained     the base network before any training

`nas.trial.line_scores` measures them once in a study; `reference_lines.json` in the run directory keeps them. An older run
has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from nas.analysis.fronts import Objectives
from nas.disk import files
from nas.errors import InputError

FILE = "reference_lines.json"
LEARNT = (
    1 / 3
)  # of the way from untrained to the autoencoder's copies; less is no clear gain (assumption, see `learnt`)
CLOSE = 0.07  # of a figure's height; lines that are closer share a label
LABELS = {"real": "real", "held_out": "other real", "autoencoded": "copies", "base": "base", "untrained": "untrained"}


@dataclass(frozen=True)
class Line:
    """One thing that is no trial, scored as the trials are."""

    name: str
    told: str
    """What it is, and whatever differs from how trials are scored."""
    scores: dict[str, float]
    """By column; a column that does not apply to it is missing."""
    cost: dict[str, float] = field(default_factory=dict)
    """Of a network, at deploy scale, by column."""

    @property
    def label(self) -> str:
        """A word or two, for a row or an axis."""
        return LABELS.get(self.name, self.name)

    def __getitem__(self, column: str) -> float | None:
        """Its score or cost; None where it has none."""
        return {**self.cost, **self.scores}.get(column)


LINE: TypeAdapter[Line] = TypeAdapter(Line)


class Drawn(BaseModel):
    """One way in which the base model was drawn, and what it scored."""

    sampling: dict[str, Any]
    metrics: dict[str, float]


class Base(BaseModel):
    """The record of a base model, of which the scores are read."""

    scores: list[Drawn]


Lines = Mapping[str, Line]
NONE: Lines = MappingProxyType({})
Scored = list[tuple[Line, float]]  # lines with their scores in a column, from low to high


def read(run_dir: Path) -> dict[str, Line]:
    """The lines of a run, or of a committed study, from the best to the worst there can be; {} where none were measured."""
    path = Path(run_dir) / FILE
    found = files.read_object(path) if path.is_file() else {}
    base = base_scores(run_dir) if found else None
    if base:  # the model all trials start from, drawn as they are
        found["base"] = {"told": "the model that trials start from", "scores": base[0].metrics}
    ordered = [*(name for name in LABELS if name in found), *(name for name in found if name not in LABELS)]
    try:
        return {name: LINE.validate_python({"name": name, **found[name]}) for name in ordered}
    except (TypeError, ValidationError):
        raise InputError(
            f"{path}: expected the scores of the lines of reference; remove it, nas run makes it again"
        ) from None


def base_scores(run_dir: Path) -> list[Drawn] | None:
    """The ways in which the base model was drawn; None where there is none."""
    path = Path(run_dir) / "base.json"
    if not path.is_file():
        return None
    try:
        return Base.model_validate(files.read_object(path)).scores
    except ValidationError:
        raise InputError(f"{path}: expected the scores of a base model; remove it, nas run makes it again") from None


def way(column: str, sense: str, value: float, lines: Lines) -> float | None:
    """How far a score to `sense` ("minimise" or "maximise") has come from an untrained network (0) to the autoencoder's copies
    (1). A loss, which copies do not have, goes to zero. None where nothing is known, or copies are no better than untrained.
    """
    start, end = (lines[name].scores.get(column) if name in lines else None for name in ("untrained", "autoencoded"))
    if start is None:
        return None
    end = 0.0 if end is None else end
    ahead = start - end if sense == "minimise" else end - start
    return (start - value) / (start - end) if ahead > 0 else None


def learnt(table: pd.DataFrame, goals: Objectives, lines: Lines) -> bool | None:
    """Whether a trial that was trained to the end beats an untrained network clearly; None where there is no telling.

    Clearly: in one score of the study it has come a third of the way to the autoencoder's copies. Blots of about the right
    colours are no drawing yet: they came 25 % of the way in the Frechet distance and 20 % in the CLIP score on the emoji set.
    """
    complete = table[table["state"] == "complete"]
    ways: list[float] = []
    for column, sense in goals.items():
        if column in complete and complete[column].notna().any():
            best = complete[column].min() if sense == "minimise" else complete[column].max()
            come = way(column, sense, float(best), lines)
            ways += [] if come is None else [come]
    return max(ways) >= LEARNT if ways else None


def shared(several: Sequence[Lines]) -> dict[str, Line]:
    """The lines that score the same in every one of these, where there are any: those of studies that are compared."""
    known = [lines for lines in several if lines]
    return {
        name: line
        for name, line in (known[0] if known else NONE).items()
        if all(line == lines.get(name) for lines in known)
    }


def points(lines: Lines, x: str, y: str) -> tuple[list[Line], Lines]:
    """The trained networks that have a place in both columns, and the lines that are left."""
    found = [line for name, line in lines.items() if name == "base" and line[x] is not None and line[y] is not None]
    return found, {name: line for name, line in lines.items() if line not in found}


def in_sight(column: str, lines: Lines, values: Iterable[float]) -> tuple[Scored, Scored, Scored]:
    """The lines below what a figure of these values shows, those in it, and those above. It shows the range of the values and
    as much again at each side, so that lines never squeeze them."""
    known = [value for value in values if math.isfinite(value)]
    scored = ((line, line.scores.get(column)) for line in lines.values())
    found = sorted(((line, value) for line, value in scored if value is not None), key=lambda pair: pair[1])
    low, high = min(known, default=0.0), max(known, default=0.0)
    low, high = (low - (high - low), high + (high - low)) if known else (math.inf, math.inf)
    below, above = ([p for p in found if p[1] < low], [p for p in found if p[1] > high])
    return below, [pair for pair in found if low <= pair[1] <= high], above


def together(near: Scored, values: Iterable[float]) -> list[tuple[str, float]]:
    """A name and a height for every label of lines among these values: those that lie close share the lowest one's."""
    heights = [*(value for _, value in near), *(value for value in values if math.isfinite(value))]
    apart = CLOSE * (max(heights, default=0.0) - min(heights, default=0.0))
    told: list[tuple[str, float]] = []
    last = -math.inf
    for line, value in near:
        if told and value - last < apart:
            told[-1] = (f"{told[-1][0]}, {line.label}", told[-1][1])
        else:
            told.append((line.label, value))
        last = value
    return told


def beyond(below: Scored, above: Scored, shown: Callable[[float], str]) -> list[str]:
    """The lines that a figure does not reach, in words: those below it, those above it."""
    sides = (("↓", below), ("↑", above))
    return [
        f"{sign} " + ", ".join(f"{one.label} {shown(value)}" for one, value in side) for sign, side in sides if side
    ]
