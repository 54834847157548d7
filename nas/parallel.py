"""Parallel coordinates: every trained trial as a line over its choices and its objectives, in plotly.

Lines of a plain plot: plotly's own parallel coordinates need WebGL, which phones, printers and old machines lack.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nas.figures import new
from nas.naming import cell, label, shown
from nas.palette import FRONT, KNEE, PALE

MOST_TICKS = 8
TICK_LENGTH = 18  # characters


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
        for place, trial in zip(np.flatnonzero(chosen), rows["trial"], strict=True):
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
    ticks = [(place, height, text) for place, column in enumerate(columns) for height, text in scales[column][1]]
    figure.add_scatter(
        x=[place for place, _, _ in ticks],
        y=[height for _, height, _ in ticks],
        text=[text for _, _, text in ticks],
        mode="text",
        textposition="middle right",
        textfont={"size": 10},
        hoverinfo="skip",
    )
    names = [
        escape(column[5:].replace("_", " ") if column.startswith("arch.") else label(column)) for column in columns
    ]
    figure.update_layout(showlegend=False, height=400, margin={"l": 30, "r": 60, "t": 16, "b": 100})
    figure.update_xaxes(tickvals=[*range(len(columns))], ticktext=names, tickangle=30, range=[-0.2, len(columns) - 0.5])
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    return figure


def _places(values: pd.Series) -> tuple[pd.Series, list[tuple[float, str]]]:
    """Where the values of an axis lie between 0 and 1, and what is written there: choices each, other numbers at the ends."""
    name = str(values.name)
    booleans = values.map(lambda value: isinstance(value, bool)).any()
    numbers = pd.to_numeric(values, errors="coerce") if not booleans else pd.Series(np.nan, index=values.index)
    if numbers.notna().all() and (numbers.nunique() > MOST_TICKS or not name.startswith("arch.")):
        low, high = float(numbers.min()), float(numbers.max())
        ends = [(0.0, shown(name, low)), (1.0, shown(name, high))] if high > low else [(0.5, shown(name, low))]
        return ((numbers - low) / (high - low) if high > low else numbers * 0 + 0.5).astype(float), ends
    text = values.map(lambda value: cell(value) or "none")
    ordered = sorted(text.unique(), key=lambda one: (_number(one), one))
    heights = {one: place / max(len(ordered) - 1, 1) for place, one in enumerate(ordered)}
    return text.map(heights).astype(float), [(height, escape(one[:TICK_LENGTH])) for one, height in heights.items()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf
