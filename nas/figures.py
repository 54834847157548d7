"""The figures of the page, in plotly. Drawing takes frames that were computed elsewhere and adds nothing to them."""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nas.naming import cell, duration, in_sight, label, magnitude, scaled, shown
from nas.palette import FONT, FRONT, GREY, GRID, KNEE, LIMIT, LINE, PALE, SERIES, TEXT

MOST_TICKS = 8
TICK_LENGTH = 18  # characters
MOST_COMPONENTS, REST = 6, "the rest"


def draw_pareto(points: pd.DataFrame, x: str, y: str, budget: Mapping[str, float]) -> go.Figure:
    """The frame of `findings.pareto` in two of its columns: front, knee, the other complete trials, the stopped ones."""
    figure = _figure(label(x), label(y), f"<br>{label(x)} %{{x:.4g}}<br>{label(y)} %{{y:.4g}}")
    stopped, complete = points[points["state"] == "stopped"], points[points["state"] == "complete"]
    members = complete[complete["on_front"]].sort_values(x)
    _dots(
        figure, stopped, x, y, "stopped early", {"size": 7, "symbol": "x-thin", "line": {"color": PALE, "width": 1.5}}
    )
    _dots(
        figure,
        complete[~complete["on_front"]],
        x,
        y,
        "fully trained",
        {"color": GREY, "size": 7, "opacity": _opacity(len(complete))},
    )
    numbers = members["trial"].astype(str) if len(members) <= 10 else None
    _dots(figure, members[~members["knee"]], x, y, "front", {"color": FRONT, "size": 11}, numbers)
    _dots(figure, members[members["knee"]], x, y, "knee", {"color": KNEE, "size": 15, "symbol": "star"}, numbers)
    for column, vertical in ((x, True), (y, False)):
        if column in budget and len(points):
            _limit(figure, scaled(column, budget[column]), scaled(column, points[column].max()), vertical)
    return figure


def draw_effects(points: pd.DataFrame, effects: pd.DataFrame, column: str) -> go.Figure:
    """A row per choice below a heading per axis: its trials as pale dots, their mean as a bar; frames of `nas.importance`."""
    figure = _figure(label(column), "", "")
    rows, names = _rows_of(effects)
    for frame, values, means in ((points, "score", False), (effects, "mean", True)):
        heights = [rows[key] for key in zip(frame["axis"], frame["value"], strict=True)]
        _strip(figure, scaled(column, frame[values]), heights, means)
    figure.data[0].hovertext = [f"trial {trial}" for trial in points["trial"]]
    figure.data[1].hovertext = [f"mean of {count}" for count in effects["n"]]
    lowest = min(names)
    figure.update_layout(showlegend=False, height=80 + 22 * (1 - int(lowest)), margin={"t": 4})
    figure.update_yaxes(tickvals=[*names], ticktext=[*names.values()], range=[lowest - 0.8, 0.6])
    figure.update_yaxes(showgrid=False, automargin=True, ticks="")
    return figure


def draw_curves(curves: pd.DataFrame, column: str, members: Iterable[int]) -> go.Figure:
    """One line per trial from rung to rung; the front's in colour, a cross where a trial was stopped."""
    figure = _figure("Images seen", label(column), "<br>%{x:,} images<br>" + label(column) + " %{y:.4g}")
    known, chosen = curves[curves[column].notna()], set(members)
    on_front = known["trial"].isin(chosen)
    _lines(figure, known[~on_front & (known["state"] != "complete")], column, "stopped early", PALE)
    _lines(figure, known[~on_front & (known["state"] == "complete")], column, "fully trained", GREY)
    _lines(figure, known[on_front], column, "front", FRONT)
    last = known[known["state"] == "stopped"].groupby("trial").tail(1)
    cross = {"size": 8, "symbol": "x-thin", "line": {"color": GREY, "width": 1.5}}
    _dots(figure, last.assign(hover=_reasons(last)), "images_seen", column, "stopped here", cross)
    return figure


def draw_proposed(proposed: pd.DataFrame, column: str, limit: float) -> go.Figure:
    """How a cost was distributed over everything the sampler proposed, refused candidates apart, and the budget."""
    figure = _figure(label(column), "Candidates", "<br>%{y} candidates at %{x}")
    refused = proposed["state"] == "over_budget"
    values = scaled(column, proposed[column].astype(float))
    low, high, edge = float(values.min()), float(values.max()), float(scaled(column, limit))
    size = max((high - low) / 24, abs(high) / 1000, 1e-9)
    start = edge - size * math.ceil((edge - low) / size)  # the budget lies between two bars, never inside one
    bins = {"start": start, "end": high + size, "size": size}
    for chosen, name, colour in ((~refused, "within every budget", GREY), (refused, "refused", LIMIT)):
        figure.add_histogram(x=values[chosen], name=name, marker={"color": colour, "opacity": 0.75}, xbins=bins)
    figure.update_layout(barmode="stack", bargap=0.06)
    _limit(figure, edge, high, vertical=True)
    return figure


def draw_cells(cells: pd.DataFrame, trials: pd.DataFrame, column: str) -> go.Figure:
    """A row per cell of an ablation, the frame of `nas.ablation.cells`: its repeats as dots, its mean with the interval."""
    figure = _figure(label(column), "", "")
    height_of = {str(cell): -float(place) for place, cell in enumerate(cells["cell"])}
    done = trials[(trials["state"] == "complete") & trials["cell"].isin(list(height_of))]
    _strip(figure, scaled(column, done[column]), [height_of[str(cell)] for cell in done["cell"]], False)
    figure.data[0].hovertext = [
        f"trial {trial}, repeat {repeat}" for trial, repeat in zip(done["trial"], done["repeat"], strict=True)
    ]
    figure.data[0].customdata = [int(trial) for trial in done["trial"]]
    half = scaled(column, (cells["high"] - cells["low"]) / 2).fillna(0.0)
    figure.add_scatter(
        x=scaled(column, cells["mean"]),
        y=[height_of[str(cell)] for cell in cells["cell"]],
        error_x={"array": half, "color": FRONT, "thickness": 2, "width": 5},
        mode="markers",
        marker={"color": FRONT, "size": 10, "symbol": "diamond"},
        hovertext=[f"{escape(str(cell))}<br>mean of {n}" for cell, n in zip(cells["cell"], cells["n"], strict=True)],
        hovertemplate="%{hovertext}: %{x:.5g}<extra></extra>",
    )
    names = [escape(str(cell)) for cell in cells["cell"]]
    figure.update_layout(showlegend=False, height=90 + 28 * len(cells), margin={"t": 4})
    figure.update_yaxes(tickvals=[*height_of.values()], ticktext=names, range=[-len(cells) + 0.4, 0.6])
    figure.update_yaxes(showgrid=False, automargin=True, ticks="")
    return figure


def draw_hypervolume(history: pd.DataFrame) -> go.Figure:
    """The share of the box between worst and best that the front dominates, over what training took."""
    unit, divisor = magnitude(float(history["macs"].iloc[-1]))
    by, text = ("macs", f"Training compute ({unit}MACs)") if history["macs"].iloc[-1] else ("trial", "Trial")
    figure = _figure(text, "Share of the box dominated", "<br>%{y:.3f}")
    hover = [
        f"after trial {row['trial']}<br>{row['images_trained']:,} images, {duration(row['seconds'])} of workers"
        f"<br>{row['share']:.3f}"
        for row in history.to_dict("records")
    ]
    spent = history["macs"] / divisor if by == "macs" else history["trial"]
    line = {"color": FRONT, "width": 2, "shape": "hv"}
    figure.add_scatter(
        x=spent,
        y=history["share"],
        mode="lines",
        line=line,
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
    )
    figure.update_layout(showlegend=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def draw_fronts(fronts: Mapping[str, pd.DataFrame], x: str, y: str) -> go.Figure:
    """Fronts of several studies: name -> its complete trials, those off the front pale."""
    figure = _figure(label(x), label(y), f"<br>{label(x)} %{{x:.4g}}<br>{label(y)} %{{y:.4g}}")
    for place, (name, table) in enumerate(fronts.items()):
        colour = SERIES[place % len(SERIES)]
        told = table.assign(hover=[f"{escape(name)}<br>trial {trial}" for trial in table["trial"]])
        front = told[told["on_front"]].sort_values(x)
        _dots(figure, told[~told["on_front"]], x, y, "", {"color": colour, "size": 6, "opacity": 0.3})
        _dots(figure, front, x, y, escape(name), {"color": colour, "size": 10, "symbol": place % 8})
    figure.for_each_trace(lambda trace: trace.update(showlegend=bool(trace.name)))
    return figure


def draw_hypervolumes(histories: Mapping[str, pd.DataFrame], by: str, limit: float) -> go.Figure:
    """Hypervolume over compute of several studies (`share` over `by`), and where all are compared."""
    prefix, divisor = magnitude(max(float(history[by].iloc[-1]) for history in histories.values()))
    text = {"macs": f"Training compute ({prefix}MACs)", "images": "Images trained", "seconds": "Seconds of workers"}[by]
    divisor = divisor if by == "macs" else 1.0
    figure = _figure(text, "Share of the box dominated", "")
    for place, (name, history) in enumerate(histories.items()):
        line = {"color": SERIES[place % len(SERIES)], "width": 2, "shape": "hv"}
        hover = [f"{escape(name)}<br>after trial {trial}" for trial in history["trial"]]
        template = "%{hovertext}<br>%{y:.3f}<extra></extra>"
        spent = history[by] / divisor
        figure.add_scatter(
            x=spent,
            y=history["share"],
            mode="lines",
            line=line,
            name=escape(name),
            hovertext=hover,
            hovertemplate=template,
        )
    figure.add_vline(limit / divisor, line={"color": GREY, "width": 1.5, "dash": "dash"})
    figure.update_yaxes(rangemode="tozero")
    return figure


def draw_parallel(columns: list[str], trained: pd.DataFrame, knee: int | None) -> go.Figure:
    """Every trained trial as a line over its choices and objectives, the front in colour; frame of `importance.parallel`.

    Lines of a plain plot: plotly's own parallel coordinates need WebGL, which phones, printers and old machines lack.
    """
    scales = {column: _places(trained[column]) for column in columns}
    figure = _figure("", "", "")
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


def _largest(costs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The components with the largest sums, largest first; all others as one."""
    sums = costs.groupby("component")[column].sum().sort_values(ascending=False)
    kept = list(sums.index[:MOST_COMPONENTS])
    named = costs.assign(component=costs["component"].where(costs["component"].isin(kept), REST))
    together = named.groupby(["trial", "component"], sort=False, as_index=False)[[column]].sum()
    order = together["component"].map({name: place for place, name in enumerate([*kept, REST])})
    together["order"] = order
    return together.sort_values("order", kind="stable")


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


def draw_components(costs: pd.DataFrame, column: str, names: Mapping[int, str]) -> go.Figure:
    """A bar per trial, a piece per component; the frame of `findings.components`, trials from top to bottom as in `names`."""
    figure = _figure(label(column), "", "")
    for place, (component, part) in enumerate(_largest(costs, column).groupby("component", sort=False)):
        figure.add_bar(
            x=scaled(column, part[column]),
            y=[names[trial] for trial in part["trial"]],
            name=str(component),
            orientation="h",
            customdata=part["trial"],
            marker={"color": PALE if component == REST else SERIES[place % len(SERIES)], "opacity": 0.85},
            hovertemplate=f"%{{y}}<br>{escape(str(component))} %{{x:.4g}}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.35, height=130 + 26 * len(names), legend={"y": 1.02})
    figure.update_yaxes(categoryorder="array", categoryarray=[*names.values()][::-1], automargin=True, ticks="")
    figure.update_yaxes(showgrid=False)
    return figure


def _figure(x: str, y: str, hover: str) -> go.Figure:
    axis = {"gridcolor": GRID, "linecolor": LINE, "zeroline": False, "ticks": "outside", "tickcolor": LINE}
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": FONT, "size": 13, "color": TEXT},
            "margin": {"l": 58, "r": 14, "t": 26, "b": 48},
            "xaxis": axis | {"title": {"text": x, "standoff": 8, "font": {"size": 13}}},
            "yaxis": axis | {"title": {"text": y, "standoff": 8, "font": {"size": 13}}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
            "hoverlabel": {"bgcolor": "white", "bordercolor": LINE, "font": {"color": TEXT}, "align": "left"},
            "height": 340,
            "meta": {"hover": hover},
        }
    )


def _dots(
    figure: go.Figure, rows: pd.DataFrame, x: str, y: str, name: str, marker: dict[str, Any], text: Any = None
) -> None:
    if not len(rows):
        return
    words = {} if text is None else {"text": text[rows.index], "textposition": "top center", "textfont": {"size": 11}}
    figure.add_scatter(
        x=scaled(x, rows[x].astype(float)),
        y=scaled(y, rows[y].astype(float)),
        mode="markers+text" if words else "markers",
        name=name,
        marker=marker,
        customdata=rows["trial"].astype(int),
        hovertext=rows["hover"],
        hovertemplate="%{hovertext}" + figure.layout.meta["hover"] + "<extra></extra>",
        **words,
    )


def _rows_of(effects: pd.DataFrame) -> tuple[dict[tuple[str, str], float], dict[float, str]]:
    """The height of each (axis, value), and the text at every height: headings with their share, values."""
    heights: dict[tuple[str, str], float] = {}
    names: dict[float, str] = {}
    height = 0.0
    for axis, part in effects.groupby("axis", sort=False):
        names[height] = f"<b>{escape(str(axis))}</b>, {part['share'].iloc[0]:.0%}"
        for value in part["value"]:
            height -= 1.0
            heights[str(axis), str(value)], names[height] = height, escape(str(value))
        height -= 1.3
    return heights, names


def _strip(figure: go.Figure, x: Any, y: Any, means: bool) -> None:
    dot = {"color": GREY, "size": 7, "opacity": _opacity(len(x))}
    bar = {"color": FRONT, "size": 15, "symbol": "line-ns", "line": {"width": 3, "color": FRONT}}
    template = "%{hovertext}<br>%{x:.4g}<extra></extra>"
    figure.add_scatter(x=x, y=y, mode="markers", marker=bar if means else dot, hovertemplate=template)


def _lines(figure: go.Figure, rows: pd.DataFrame, column: str, name: str, colour: str) -> None:
    """All lines of one kind as a single trace, broken between trials: hundreds of traces would make the page slow."""
    if not len(rows):
        return
    x: list[Any] = []
    y: list[Any] = []
    hover: list[Any] = []
    for trial, part in rows.sort_values(["trial", "rung"]).groupby("trial"):
        x += [*part["images_seen"], None]
        y += [*scaled(column, part[column]), None]
        hover += [f"trial {trial}"] * (len(part) + 1)
    template = "%{hovertext}" + figure.layout.meta["hover"] + "<extra></extra>"
    style = {"color": colour, "width": 2 if colour == FRONT else 1.2}
    marker = {"size": 5}
    opacity = 1.0 if colour == FRONT else _opacity(rows["trial"].nunique())
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line=style,
        marker=marker,
        opacity=opacity,
        name=name,
        hovertext=hover,
        hovertemplate=template,
    )


def _limit(figure: go.Figure, limit: float, highest: Any, vertical: bool) -> None:
    """The budget as a dashed line, unless it lies so far out (twice the highest value) that it squeezes the data."""
    if not in_sight(limit, highest):
        return
    style = {"color": LIMIT, "width": 1.5, "dash": "dash"}
    add = figure.add_vline if vertical else figure.add_hline
    add(limit, line=style, annotation={"text": f"budget {limit:,.4g}", "font": {"color": LIMIT, "size": 11}})
    invisible = {"mode": "markers", "marker": {"opacity": 0}, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=[limit if vertical else None], y=[None if vertical else limit], **invisible)


def _opacity(count: int) -> float:
    """Marks that crowd let each other through."""
    return 0.6 if count <= 60 else 0.25


def _reasons(rows: pd.DataFrame) -> list[str]:
    return [f"trial {row['trial']}<br>{escape(str(row.get('reason') or 'stopped'))}" for _, row in rows.iterrows()]
