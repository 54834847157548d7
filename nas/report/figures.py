"""The figures of the page, in plotly. Drawing takes frames that were computed elsewhere and adds nothing to them."""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from nas.analysis import importance, reference_lines
from nas.analysis.naming import in_sight, label, magnitude, scaled, shown
from nas.analysis.reference_lines import Lines
from nas.numbers import duration
from nas.report.palette import FONT, FRONT, GREY, GRID, KNEE, LIMIT, LINE, PALE, SERIES, TEXT

MOST_COMPONENTS, REST = 6, "the rest"


def draw_pareto(
    points: pd.DataFrame,
    x: str,
    y: str,
    budget: Mapping[str, float],
    lines: Lines = reference_lines.NONE,
    forecasts: pd.DataFrame | None = None,
) -> go.Figure:
    """The frame of `findings.pareto` in two of its columns: front, knee, the other complete trials, the stopped ones; lines of
    reference; and the `forecasts` of what was only looked at."""
    figure = new(label(x), label(y), f"<br>{label(x)} %{{x:.4g}}<br>{label(y)} %{{y:.4g}}")
    if forecasts is not None:
        mark = {"size": 5, "symbol": "circle-open", "color": PALE}
        _dots(figure, forecasts, x, y, "looked at, not trained: forecast", mark)
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
    points_too, lines = reference_lines.points(lines, x, y)
    for line in points_too:
        told = pd.DataFrame({"trial": [-1], x: [line[x]], y: [line[y]], "hover": [escape(line.told)]})
        mark = {"color": GREY, "size": 11, "symbol": "diamond-open", "line": {"width": 2}}
        _dots(figure, told, x, y, line.label, mark, pd.Series([line.label]))
    for column, vertical in ((x, True), (y, False)):
        if column in budget and len(points):
            _limit(figure, scaled(column, budget[column]), scaled(column, points[column].max()), vertical)
        _refer(figure, column, lines, points[column], vertical)
    return figure


def draw_effects(points: pd.DataFrame, effects: pd.DataFrame, column: str) -> go.Figure:
    """A row per choice below a heading per axis: its trials as pale dots, their mean as a bar; frames of
    `nas.analysis.importance`."""
    figure = new(label(column), "", "")
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


def draw_curves(
    curves: pd.DataFrame, column: str, members: Iterable[int], lines: Lines = reference_lines.NONE
) -> go.Figure:
    """One line per trial from rung to rung; the front's in colour, a cross where a trial was stopped; lines of reference."""
    figure = new("Images seen", label(column), "<br>%{x:,} images<br>" + label(column) + " %{y:.4g}")
    known, chosen = curves[curves[column].notna()], set(members)
    on_front = known["trial"].isin(chosen)
    _lines(figure, known[~on_front & (known["state"] != "complete")], column, "stopped early", PALE)
    _lines(figure, known[~on_front & (known["state"] == "complete")], column, "fully trained", GREY)
    _lines(figure, known[on_front], column, "front", FRONT)
    last = known[known["state"] == "stopped"].groupby("trial").tail(1)
    cross = {"size": 8, "symbol": "x-thin", "line": {"color": GREY, "width": 1.5}}
    _dots(figure, last.assign(hover=_reasons(last)), "images_seen", column, "stopped here", cross)
    _refer(figure, column, lines, known[column], vertical=False)
    return figure


def draw_proposed(proposed: pd.DataFrame, column: str, limit: float) -> go.Figure:
    """How a cost was distributed over everything the sampler proposed, refused candidates apart, and the budget."""
    figure = new(label(column), "Candidates", "<br>%{y} candidates at %{x}")
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


def draw_differences(differences: pd.DataFrame, trials: pd.DataFrame, column: str) -> go.Figure:
    """A row per cell of an ablation, the frame of `nas.analysis.ablation.differences`: what it differs from the reference
    cell by, each repeat as a dot and their mean with its interval, beside a line at no difference."""
    against = str(differences["against"].iloc[0])
    figure = new(f"{label(column)},<br>less that of {against}", "", "")
    height_of = {str(cell): -float(place) for place, cell in enumerate(differences["cell"])}
    done = trials[trials["state"] == "complete"].assign(cell=lambda rows: rows["cell"].astype(str))
    reference = done[done["cell"] == against].groupby("repeat")[column].last()
    paired = done[done["cell"].isin(list(height_of)) & done["repeat"].isin(reference.index)]
    less = paired[column].astype(float) - paired["repeat"].map(reference).astype(float)
    _strip(figure, scaled(column, less), [height_of[cell] for cell in paired["cell"]], False)
    repeats = zip(paired["trial"], paired["repeat"], strict=True)
    figure.data[0].hovertext = [f"trial {trial}, repeat {repeat}" for trial, repeat in repeats]
    figure.data[0].customdata = [int(trial) for trial in paired["trial"]]
    half = scaled(column, (differences["high"] - differences["low"]) / 2).fillna(0.0)
    told = zip(differences["cell"], differences["n"], strict=True)
    figure.add_scatter(
        x=scaled(column, differences["estimate"]),
        y=[*height_of.values()],
        error_x={"array": half, "color": FRONT, "thickness": 2, "width": 5},
        mode="markers",
        marker={"color": FRONT, "size": 10, "symbol": "diamond"},
        hovertext=[f"{escape(str(cell))}<br>mean of {n}" for cell, n in told],
        hovertemplate="%{hovertext}: %{x:.5g}<extra></extra>",
    )
    figure.add_vline(0, line={"color": LIMIT, "width": 1.5, "dash": "dash"})
    _make_room(figure, 0.0, vertical=True)
    names = [escape(name) for name in height_of]
    room = {"t": 4, "b": 68}  # for a title of two lines
    figure.update_layout(showlegend=False, height=110 + 28 * len(differences), margin=room)
    figure.update_yaxes(tickvals=[*height_of.values()], ticktext=names, range=[-len(differences) + 0.4, 0.6])
    figure.update_yaxes(showgrid=False, automargin=True, ticks="")
    return figure


def draw_hypervolume(history: pd.DataFrame) -> go.Figure:
    """The share of the box between worst and best that the front dominates, over what training took."""
    unit, divisor = magnitude(float(history["macs"].iloc[-1]))
    by, text = ("macs", f"Training compute ({unit}MACs)") if history["macs"].iloc[-1] else ("trial", "Trial")
    figure = new(text, "Share of the box dominated", "<br>%{y:.3f}")
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


def draw_fronts(fronts: Mapping[str, pd.DataFrame], x: str, y: str, lines: Lines = reference_lines.NONE) -> go.Figure:
    """Fronts of several studies: name -> its complete trials, those off the front pale; and lines of reference."""
    figure = new(label(x), label(y), f"<br>{label(x)} %{{x:.4g}}<br>{label(y)} %{{y:.4g}}")
    for place, (name, table) in enumerate(fronts.items()):
        colour = SERIES[place % len(SERIES)]
        told = table.assign(hover=[f"{escape(name)}<br>trial {trial}" for trial in table["trial"]])
        front = told[told["on_front"]].sort_values(x)
        _dots(figure, told[~told["on_front"]], x, y, "", {"color": colour, "size": 6, "opacity": 0.3})
        _dots(figure, front, x, y, escape(name), {"color": colour, "size": 10, "symbol": place % 8})
    figure.for_each_trace(lambda trace: trace.update(showlegend=bool(trace.name)))
    every = pd.concat([table[[x, y]] for table in fronts.values()])
    for column, vertical in ((x, True), (y, False)):
        _refer(figure, column, lines, every[column], vertical)
    notes = max((str(note.text).count("<br>") + 1 for note in figure.layout.annotations if note.y == 1), default=0)
    figure.update_layout(legend={"y": 1.02 + 0.06 * notes}, margin={"t": 26 + 15 * notes})
    return figure


def draw_hypervolumes(histories: Mapping[str, pd.DataFrame], by: str, limit: float) -> go.Figure:
    """Hypervolume over compute of several studies (`share` over `by`), and where all are compared."""
    prefix, divisor = magnitude(max(float(history[by].iloc[-1]) for history in histories.values()))
    text = {"macs": f"Training compute ({prefix}MACs)", "images": "Images trained", "seconds": "Seconds of workers"}[by]
    divisor = divisor if by == "macs" else 1.0
    figure = new(text, "Share of the box dominated", "")
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


def _largest(costs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The components with the largest sums, largest first; all others as one."""
    sums = costs.groupby("component")[column].sum().sort_values(ascending=False)
    kept = list(sums.index[:MOST_COMPONENTS])
    named = costs.assign(component=costs["component"].where(costs["component"].isin(kept), REST))
    together = named.groupby(["trial", "component"], sort=False, as_index=False)[[column]].sum()
    order = together["component"].map({name: place for place, name in enumerate([*kept, REST])})
    together["order"] = order
    return together.sort_values("order", kind="stable")


def draw_components(costs: pd.DataFrame, column: str, names: Mapping[int, str]) -> go.Figure:
    """A bar per trial, a piece per component; the frame of `findings.components`, trials from top to bottom as in `names`."""
    figure = new(label(column), "", "")
    for place, (component, part) in enumerate(_largest(costs, column).groupby("component", sort=False)):
        figure.add_bar(
            x=scaled(column, part[column]),
            y=[names[trial] for trial in part["trial"]],
            name=str(component),
            orientation="h",
            customdata=part["trial"].tolist(),
            marker={"color": PALE if component == REST else SERIES[place % len(SERIES)], "opacity": 0.85},
            hovertemplate=f"%{{y}}<br>{escape(str(component))} %{{x:.4g}}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.35, height=130 + 26 * len(names), legend={"y": 1.02})
    figure.update_yaxes(categoryorder="array", categoryarray=[*names.values()][::-1], automargin=True, ticks="")
    figure.update_yaxes(showgrid=False)
    return figure


def new(x: str, y: str, hover: str) -> go.Figure:
    """An empty figure in the style of the page, with the titles of its axes; `hover` ends what `_dots` tell."""
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
        customdata=[int(trial) for trial in rows["trial"]],
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
        names[height] = f"<b>{escape(str(axis).replace('_', ' '))}</b> {_sure(part)}"
        for value in part["value"]:
            height -= 1.0
            heights[str(axis), str(value)], names[height] = height, escape(str(value))
        height -= 1.3
    return heights, names


def _sure(part: pd.DataFrame) -> str:
    """How much of the scores an axis explains, and whether that may be chance; nothing where there are too few trials."""
    share, p = part["share"].iloc[0], part["p"].iloc[0]
    if part["n"].sum() < importance.FEWEST_TRIALS:
        return ""
    return f"{share:.0%}" if p < importance.CHANCE else f"{share:.0%}, may be chance"


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
    _make_room(figure, limit, vertical)


def _refer(figure: go.Figure, column: str, lines: Lines, values: pd.Series, vertical: bool) -> None:
    """Lines of reference in a column: dotted where the values lie near; beyond, those of the vertical axis are named above."""
    below, near, above = reference_lines.in_sight(column, lines, values.astype(float))
    add = figure.add_vline if vertical else figure.add_hline
    for _, value in near:
        add(scaled(column, value), line={"color": GREY, "width": 1.2, "dash": "dot"})
        _make_room(figure, scaled(column, value), vertical)
    for name, value in reference_lines.together(near, values.astype(float)):
        along = {"x": scaled(column, value), "y": 0, "yref": "paper", "textangle": -90, "yanchor": "bottom"}
        upon = {"y": scaled(column, value), "x": 0, "xref": "paper", "yanchor": "bottom"}
        _note(figure, escape(name), xanchor="left", **(along if vertical else upon))
    if (below or above) and not vertical:
        told = reference_lines.beyond(below, above, lambda value: shown(column, value))
        text = "<br>".join(map(escape, told))
        _note(figure, text, x=0, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom", align="left")
        figure.update_layout(margin={"t": 12 + 15 * len(told)}, height=figure.layout.height + 15 * (len(told) - 1))


def _note(figure: go.Figure, text: str, **place: Any) -> None:
    figure.add_annotation(text=text, showarrow=False, font={"size": 11, "color": TEXT}, **place)


def _make_room(figure: go.Figure, value: float, vertical: bool) -> None:
    """Widen an axis to a value: shapes do not."""
    invisible = {"mode": "markers", "marker": {"opacity": 0}, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=[value if vertical else None], y=[None if vertical else value], **invisible)


def _opacity(count: int) -> float:
    """Marks that crowd let each other through."""
    return 0.6 if count <= 60 else 0.25


def _reasons(rows: pd.DataFrame) -> list[str]:
    return [f"trial {row['trial']}<br>{escape(str(row.get('reason') or 'stopped'))}" for _, row in rows.iterrows()]
