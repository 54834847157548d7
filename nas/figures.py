"""How numbers of a study are named, scaled and drawn: plotly for the page, matplotlib for a still picture.

Drawing takes frames that `nas.report` has computed and adds nothing to them. Columns keep their own units in frames; a
figure or a table shows them scaled (`macs` as GMACs, `params` in millions).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from nas.results import COSTS, Objectives

FRONT, KNEE, LIMIT, GREY, PALE = "#1c5fb8", "#e8590c", "#c92a2a", "#868e96", "#b4bbc2"
_TEXT, _GRID, _LINE = "#343a40", "#edf0f2", "#ced4da"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"

_SCALED: dict[str, tuple[str, float]] = {
    "params": ("Parameters (M)", 1e6),
    "macs": ("GMACs", 1e9),
    "macs_without_attention": ("GMACs without attention", 1e9),
    "macs_padding_free": ("GMACs without padding", 1e9),
    "activation_bytes": ("Activations (MiB)", 2.0**20),
    "images_seen": ("Images seen", 1.0),
}


# --- names and numbers -----------------------------------------------------------------------------------------------


def label(column: str) -> str:
    """A column's name as people say it: `fid_efficientnet_lite0` is "FID (efficientnet_lite0)"."""
    if column in _SCALED:
        return _SCALED[column][0]
    if column == "fid" or column.startswith("fid_"):
        extractor = column.removeprefix("fid").removeprefix("_")
        return f"FID ({extractor})" if extractor else "FID"
    words = re.sub(r"_(ms|s|mib)$", r" (\1)", column).replace("_", " ").replace("clip", "CLIP")
    return words[:1].upper() + words[1:]


def scaled(column: str, values: Any) -> Any:
    """A value or a Series in the unit of the column's label."""
    return values / _SCALED[column][1] if column in _SCALED else values


def shown(column: str, value: Any) -> str:
    """A number for reading, in the unit of its label; the empty text where there is none."""
    if value is None or pd.isna(value):
        return ""
    number = float(scaled(column, value))
    decimals = 1 if abs(number) >= 100 or column in _SCALED else 2 if abs(number) >= 1 else 3
    return f"{number:,.0f}" if column == "images_seen" else f"{number:,.{decimals}f}"


def measured(column: str, value: Any) -> str:
    """The number with its name, for a sentence: "GMACs 58.3" reads "58.3 GMACs"."""
    if column.startswith("macs"):
        return f"{shown(column, value)} {label(column)}"
    if column == "params":
        return f"{shown(column, value)} M parameters"
    return f"{label(column)} {shown(column, value)}"


def architecture(row: pd.Series) -> str:
    """A trial's choices as lines of plotly's pseudo-HTML, escaped."""
    choices = {str(name)[5:]: value for name, value in row.items() if str(name).startswith("arch.")}
    return "<br>".join(f"{escape(axis)}: {escape(str(value))}" for axis, value in choices.items() if _given(value))


def pairs(goals: Objectives) -> list[tuple[str, str]]:
    """Every two objectives as (x, y), costs on x; a single objective is drawn against its MACs."""
    columns = sorted(goals, key=lambda column: column not in COSTS)
    if len(columns) == 1:
        columns = ["params", "macs"] if columns == ["macs"] else ["macs", *columns]
    return [(x, y) for place, x in enumerate(columns) for y in columns[place + 1 :]]


def _given(value: Any) -> bool:
    return isinstance(value, str) or bool(pd.notna(value))


# --- the page: plotly ------------------------------------------------------------------------------------------------


def draw_pareto(points: pd.DataFrame, x: str, y: str, budget: Mapping[str, float]) -> go.Figure:
    """The frame of `report.pareto` in two of its columns: front, knee, the other complete trials, the stopped ones."""
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
    """A row per choice below a heading per axis: its trials as pale dots, their mean as a bar; frames of `report`."""
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
    _dots(figure, last.assign(hover=_trial_names(last)), "images_seen", column, "stopped here", cross)
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
    """The share of the box between worst and best that the front dominates, after each trial."""
    figure = _figure("Trial", "Share of the box dominated", "<br>%{y:.3f}")
    hover = [f"after trial {row.trial}<br>{row.images_trained:,} images trained" for row in history.itertuples()]
    line = {"color": FRONT, "width": 2, "shape": "hv"}
    figure.add_scatter(x=history["trial"], y=history["share"], mode="lines", line=line, hovertext=hover)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _figure(x: str, y: str, hover: str) -> go.Figure:
    axis = {"gridcolor": _GRID, "linecolor": _LINE, "zeroline": False, "ticks": "outside", "tickcolor": _LINE}
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": _FONT, "size": 13, "color": _TEXT},
            "margin": {"l": 58, "r": 14, "t": 26, "b": 48},
            "xaxis": axis | {"title": {"text": x, "standoff": 8, "font": {"size": 13}}},
            "yaxis": axis | {"title": {"text": y, "standoff": 8, "font": {"size": 13}}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
            "hoverlabel": {"bgcolor": "white", "bordercolor": _LINE, "font": {"color": _TEXT}, "align": "left"},
            "height": 350,
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
    if not _in_sight(limit, highest):
        return
    style = {"color": LIMIT, "width": 1.5, "dash": "dash"}
    add = figure.add_vline if vertical else figure.add_hline
    add(limit, line=style, annotation={"text": f"budget {limit:,.4g}", "font": {"color": LIMIT, "size": 11}})
    invisible = {"mode": "markers", "marker": {"opacity": 0}, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=[limit if vertical else None], y=[None if vertical else limit], **invisible)


def _opacity(count: int) -> float:
    """Marks that crowd let each other through."""
    return 0.6 if count <= 60 else 0.25


def _in_sight(limit: float, highest: Any) -> bool:
    return bool(pd.notna(highest)) and limit <= 2 * float(highest)


def _trial_names(rows: pd.DataFrame) -> list[str]:
    return [f"trial {number}" for number in rows["trial"]]


# --- the picture: matplotlib -----------------------------------------------------------------------------------------


def save_front(
    points: pd.DataFrame, shown_pairs: Sequence[tuple[str, str]], budget: Mapping[str, float], path: Path
) -> None:
    """Up to three panels side by side, 150 dots an inch, legible at the width of a README."""
    from matplotlib.figure import Figure

    panels = list(shown_pairs)[:3]
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 4.3), dpi=150, layout="constrained")
    for place, (x, y) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        _panel(axes, points, x, y)
        if x in budget and _in_sight(budget[x], points[x].max()):
            axes.axvline(scaled(x, budget[x]), color=LIMIT, linestyle="--", linewidth=1.2, label="budget")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=10)
    figure.savefig(path)


def save_agreement(pairs: Mapping[str, pd.DataFrame], path: Path) -> None:
    """What a brief trial said of each anchor against what a long training says: one panel per score, 150 dots an inch."""
    from matplotlib.figure import Figure

    styles = {"warm": (FRONT, "o"), "slice": (KNEE, "*"), "scratch": (GREY, "x")}
    figure = Figure(figsize=(3.6 * len(pairs) + 0.4, 3.9), dpi=150, layout="constrained")
    for place, (column, whole) in enumerate(pairs.items()):
        axes, frame = figure.add_subplot(1, len(pairs), place + 1), whole.dropna(subset=["long"])
        for kind, (colour, marker) in styles.items():
            if kind in frame:
                axes.scatter(frame[kind].rank(), frame["long"].rank(), color=colour, marker=marker, s=30, label=kind)
        axes.set_title(label(column), fontsize=10)
        axes.set_xlabel("rank by a brief trial", fontsize=9)
        axes.set_ylabel("rank by long training" if place == 0 else "", fontsize=9)
        axes.grid(color=_GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=10)
    figure.savefig(path)


def save_guidance(points: pd.DataFrame, x: str, y: str, path: Path) -> None:
    """A curve over guidance scales per network and way of drawing, a filled mark where it is drawn as trained."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colours = {name: colormaps["tab10"](place % 10) for place, name in enumerate(points["model"].unique())}
    for (name, solver, steps), rows in points.groupby(["model", "solver", "steps"], sort=False):
        colour, line = colours[name], "--" if steps == 1 else "-"
        how = "one step" if solver == "one_step" else f"{solver} {steps}"
        axes.plot(rows[x], rows[y], line, color=colour, marker="o", mfc="white", label=f"{name}, {how}")
        own = rows[rows["as_trained"]]
        axes.plot(own[x], own[y], linestyle="", marker="o", color=colour)
        for _, row in rows.iterrows():
            axes.annotate(
                f"{row['guidance']:g}", (row[x], row[y]), (4, 4), textcoords="offset points", fontsize=8, color=colour
            )
    axes.set_xlabel(label(x), fontsize=11)
    axes.set_ylabel(label(y), fontsize=11)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path)


def _panel(axes: Any, points: pd.DataFrame, x: str, y: str) -> None:
    complete, front = points["state"] == "complete", points["on_front"]
    groups = (
        (points["state"] == "stopped", "stopped early", {"color": PALE, "marker": "x", "s": 22}),
        (complete & ~front, "fully trained", {"color": GREY, "s": 22, "alpha": 0.7}),
        (front & ~points["knee"], "front", {"color": FRONT, "s": 46, "zorder": 3}),
        (points["knee"], "knee", {"color": KNEE, "marker": "*", "s": 170, "zorder": 4}),
    )
    for chosen, name, style in groups:
        rows = points[chosen]
        axes.scatter(scaled(x, rows[x].astype(float)), scaled(y, rows[y].astype(float)), label=name, **style)
    axes.set_xlabel(label(x), fontsize=11)
    axes.set_ylabel(label(y), fontsize=11)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
