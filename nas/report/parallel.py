"""Parallel coordinates: every trained trial as a line over its choices and its objectives; the page draws them (explore.js)."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd

from nas.analysis import importance
from nas.analysis.fronts import Objectives
from nas.analysis.naming import cell, label, shown

MOST_TICKS = 8
NO_CHOICE = "–"  # where a choice does not apply
TICK_LENGTH = 11  # characters
NAME_LENGTH = 11


def lines(table: pd.DataFrame, goals: Objectives) -> dict[str, Any] | None:
    """The axes, each with the lines of its name and its ticks, and where every trial lies on each, from 0 to 1.

    None where there is nothing to choose among: fewer than two trials, or no choice in which they differ.
    """
    columns, trained = importance.parallel(table, goals)
    if len(trained) < 2 or len(columns) == len(goals):
        return None
    scales = [_places(trained[column]) for column in columns]
    axes = [{"name": _name(column), "ticks": ticks} for column, (_, ticks) in zip(columns, scales, strict=True)]
    heights = zip(*(places for places, _ in scales), strict=True)
    return {
        "axes": axes,
        "lines": {
            int(trial): [round(height, 4) for height in line]
            for trial, line in zip(trained["trial"], heights, strict=True)
        },
    }


def _name(column: str) -> list[str]:
    """An axis's name in lines that are no wider than an axis."""
    words = column[5:].replace("_", " ") if column.startswith("arch.") else label(column).replace("_", "_ ")
    return [line.replace("_ ", "_") for line in textwrap.wrap(words, NAME_LENGTH, break_long_words=False)]


def _places(values: pd.Series) -> tuple[pd.Series, list[tuple[float, str]]]:
    """Where the values of an axis lie between 0 and 1, and what is written there: choices each, other numbers at the ends."""
    name = str(values.name)
    booleans = values.map(lambda value: isinstance(value, bool)).any()
    numbers = pd.to_numeric(values, errors="coerce") if not booleans else pd.Series(np.nan, index=values.index)
    if numbers.notna().all() and (numbers.nunique() > MOST_TICKS or not name.startswith("arch.")):
        low, high = float(numbers.min()), float(numbers.max())
        ends = [(0.0, shown(name, low)), (1.0, shown(name, high))] if high > low else [(0.5, shown(name, low))]
        return ((numbers - low) / (high - low) if high > low else numbers * 0 + 0.5).astype(float), ends
    text = values.map(lambda value: cell(value) or NO_CHOICE)
    ordered = sorted(text.unique(), key=lambda one: (_number(one), one))
    heights = {one: place / max(len(ordered) - 1, 1) for place, one in enumerate(ordered)}
    return text.map(heights).astype(float), [(height, _cut(one)) for one, height in heights.items()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _cut(text: str) -> str:
    return text if len(text) <= TICK_LENGTH else text[: TICK_LENGTH - 1] + "…"
