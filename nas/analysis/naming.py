"""How a person reads what a study says: names of columns, numbers in their units, small words. No drawing here.

Frames keep columns in their own units; a figure or a table shows them scaled (`macs` as GMACs, `params` in millions).
"""

import re
from typing import Any

import numpy as np
import pandas as pd

from nas.analysis.fronts import Objectives
from nas.analysis.results import COSTS
from nas.numbers import PREFIXES

_SCALED: dict[str, tuple[str, float]] = {
    "params": ("Parameters (M)", 1e6),
    "macs": ("GMACs", 1e9),
    "drawing_macs": ("GMACs of a picture", 1e9),
    "macs_without_attention": ("GMACs without attention", 1e9),
    "macs_padding_free": ("GMACs without padding", 1e9),
    "activation_bytes": ("Activations (MiB)", 2.0**20),
    "images_seen": ("Images seen", 1.0),
}
_DISTANCES = ("fid", "kid", "mind")


def label(column: str) -> str:
    """A column's name as people say it: `fid_efficientnet_lite0` is "FID (efficientnet_lite0)"."""
    if column in _SCALED:
        return _SCALED[column][0]
    distance, _, extractor = column.partition("_")
    if distance in _DISTANCES:
        return f"{distance.upper()} ({extractor})" if extractor else distance.upper()
    words = re.sub(r"_(ms|s|mib)$", r" (\1)", column).replace("_", " ").replace("clip", "CLIP")
    return words[:1].upper() + words[1:]


def within(column: str) -> str:
    """A column's label inside a sentence: "FID", but "prompt accuracy"."""
    name = label(column)
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def breakable(name: str) -> str:
    """A name that may be broken after its underscores, for a narrow column."""
    return name.replace("_", "_\u200b")


def scaled(column: str, values: Any) -> Any:
    """A value or a Series in the unit of the column's label."""
    return values / _SCALED[column][1] if column in _SCALED else values


def shown(column: str, value: Any) -> str:
    """A number for reading, in the unit of its label; the empty text where there is none."""
    if value is None or pd.isna(value):
        return ""
    number = float(scaled(column, value))
    if column == "images_seen" or abs(number) >= 1000:
        return f"{number:,.0f}"
    decimals = 1 if abs(number) >= 100 or column in _SCALED else 2 if abs(number) >= 1 else 3
    return f"{number:,.{decimals}f}"


def measured(column: str, value: Any) -> str:
    """The number with its name, for a sentence: "GMACs 58.3" reads "58.3 GMACs"."""
    if column.startswith("macs"):
        return f"{shown(column, value)} {label(column)}"
    if column == "params":
        return f"{shown(column, value)} M parameters"
    return f"{label(column)} {shown(column, value)}"


def choices(row: pd.Series) -> list[tuple[str, str]]:
    """A trial's choices, or the levels of its factors, as text; those it does not have are left out."""
    kinds = ("arch.", "factor.")
    cells = [(str(n).partition(".")[2], cell(value)) for n, value in row.items() if str(n).startswith(kinds)]
    return [(axis, value) for axis, value in cells if value]


def pairs(goals: Objectives) -> list[tuple[str, str]]:
    """Every two objectives as (x, y), costs on x; a single objective is drawn against its MACs."""
    columns = sorted(goals, key=lambda column: column not in COSTS)
    if len(columns) == 1:
        columns = ["params", "macs"] if columns == ["macs"] else ["macs", *columns]
    return [(x, y) for place, x in enumerate(columns) for y in columns[place + 1 :]]


def cell(value: Any) -> str:
    """A choice or a condition as text; empty where there is none."""
    if not isinstance(value, str | list | dict | tuple) and pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def arrow(way: str) -> str:
    """Which way is good."""
    return {"minimise": "\u00a0↓", "maximise": "\u00a0↑"}.get(way, "")


def said(broken: str) -> str:
    """Columns joined by "and" as people say them: "macs and params" is "MACs and parameters"."""
    words = {"macs": "MACs", "params": "parameters"}
    return " and ".join(words.get(name, name.replace("_", " ")) for name in broken.split(" and "))


def magnitude(largest: float) -> tuple[str, float]:
    """The SI prefix in which numbers up to `largest` read well, and what to divide them by."""
    for prefix, divisor in PREFIXES:
        if largest >= divisor:
            return prefix, divisor
    return "", 1.0


def in_sight(limit: float, highest: Any) -> bool:
    return bool(pd.notna(highest)) and limit <= 2 * float(highest)
