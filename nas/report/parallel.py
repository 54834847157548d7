"""Parallel coordinates: every trained trial as a line over its choices and its objectives, in plotly.

Lines of a plain plot: plotly's own parallel coordinates need WebGL, which phones, printers and old machines lack.
"""

from __future__ import annotations

import math
import textwrap
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nas.analysis.naming import cell, label, shown
from nas.report.figures import new
from nas.report.palette import FRONT, KNEE, PALE

MOST_TICKS = 8
NO_CHOICE = "–"  # where a choice does not apply
TICK_LENGTH = 11  # characters
NAME_LENGTH = 11
AXIS_WIDTH = 80  # px that an axis with its names and values needs


def draw(columns: list[str], trained: pd.DataFrame, knee: int | None) -> go.Figure:
    """The front in colour, the knee in its own; frame of `importance.parallel`."""
    scales = {column: _places(trained[column]) for column in columns}
    figure = new("", "", "")
    on_front, is_knee = trained["on_front"], trained["trial"] == knee
    kinds = (
        (~on_front, "not on the front", PALE, 1.0),
        (on_front & ~is_knee, "front", FRONT, 1.6),
        (is_knee, "knee", KNEE, 3.0),
    )
    for chosen, name, colour, width in kinds:
        rows = trained[chosen]
        x: list[Any] = []
        y: list[Any] = []
        trials: list[Any] = []
        for place, trial in zip(np.flatnonzero(chosen).tolist(), rows["trial"], strict=True):
            x += [*range(len(columns)), None]
            y += [*(float(scales[column][0].iloc[place]) for column in columns), None]
            trials += [int(trial)] * (len(columns) + 1)
        line = {"color": colour, "width": width}
        template = "trial %{customdata}<extra></extra>"
        marker = {"size": 5, "color": colour}
        figure.add_scatter(
            x=x,
            y=y,
            customdata=trials,
            name=name,
            mode="lines+markers",
            line=line,
            marker=marker,
            hovertemplate=template,
        )
    for place, column in enumerate(columns):
        for height, text in scales[column][1]:
            _tick(figure, place, height, text)
    names = ["<br>".join(map(escape, _name(column))) for column in columns]
    deepest = max(name.count("<br>") for name in names)
    figure.update_layout(
        showlegend=False, height=340 + 15 * deepest, margin={"l": 34, "r": 60, "t": 16, "b": 36 + 15 * deepest}
    )
    ticks = {"tickvals": [*range(len(columns))], "ticktext": names, "tickangle": 0, "tickfont": {"size": 10.5}}
    figure.update_xaxes(**ticks, range=[-0.2, len(columns) - 0.5])
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    return figure


def _name(column: str) -> list[str]:
    """An axis's name in lines that are no wider than an axis."""
    words = column[5:].replace("_", " ") if column.startswith("arch.") else label(column).replace("_", "_ ")
    return [line.replace("_ ", "_") for line in textwrap.wrap(words, NAME_LENGTH, break_long_words=False)]


def _tick(figure: go.Figure, place: int, height: float, text: str) -> None:
    """A value beside its axis, on white, so that no line runs through it."""
    style = {"font": {"size": 10}, "bgcolor": "rgba(255,255,255,0.85)", "borderpad": 0, "showarrow": False}
    figure.add_annotation(x=place, y=height, text=text, xanchor="left", xshift=5, **style)


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
    return text.map(heights).astype(float), [(height, escape(_cut(one))) for one, height in heights.items()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _cut(text: str) -> str:
    return text if len(text) <= TICK_LENGTH else text[: TICK_LENGTH - 1] + "…"
