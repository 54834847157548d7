"""Figures for papers, READMEs and notebooks: matplotlib, from the same frames as the page. `draw_*` gives a figure,
`save_*` writes one (png, pdf, svg by suffix)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nas.analysis import findings, importance, naming, reference_lines
from nas.analysis.findings import Run
from nas.analysis.fronts import Objectives
from nas.analysis.naming import label, magnitude, pairs, scaled
from nas.analysis.reference_lines import Lines
from nas.errors import InputError
from nas.report.chapters import evolution, preference
from nas.report.palette import FRONT, GREY, GRID, KNEE, LIMIT, PALE, SERIES, TEXT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^Dvp*X"


def save_front(run: Run, path: Path) -> None:
    points = findings.pareto(run.table, run.goals, run.lines)
    draw_front(points, pairs(run.goals), run.budget, run.lines).savefig(path)


def draw_front(
    points: pd.DataFrame,
    shown_pairs: Sequence[tuple[str, str]],
    budget: Mapping[str, float],
    lines: Lines = reference_lines.NONE,
) -> Figure:
    """The frame of `findings.pareto` in up to three panels, 150 dots an inch, legible at the width of a README, and lines of
    reference."""
    from matplotlib.figure import Figure

    panels = list(shown_pairs)[:3]
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 4.3), dpi=150, layout="constrained")
    for place, (x, y) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        _panel(axes, points, x, y)
        if x in budget and naming.in_sight(budget[x], points[x].max()):
            axes.axvline(scaled(x, budget[x]), color=LIMIT, linestyle="--", linewidth=1.2, label="budget")
        trained, rest = reference_lines.points(lines, x, y)
        for line in trained:
            at = scaled(x, line[x]), scaled(y, line[y])
            axes.scatter(*at, marker="D", s=40, facecolors="none", edgecolors=GREY, linewidths=1.5, label=line.label)
        _refer(axes, y, rest, points[y])
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = min(len(names), 3 * len(panels))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    return figure


def save_run(run: Run, folder: Path, suffix: str) -> list[Path]:
    """Front, hypervolume, importance and learning curves of a run, or an ablation's differences, each a file; returns them."""
    written: list[Path] = []

    def save(name: str, figure: Any) -> None:
        written.append(folder / f"{name}.{suffix}")
        figure.savefig(written[-1])

    if run.is_ablation:
        for column, kinds in run.effects.items():
            if "differences" in kinds:
                save(f"differences_{column}", draw_differences(kinds["differences"], column))
    elif run.table["on_front"].any():
        written.append(folder / f"front.{suffix}")
        save_front(run, written[-1])
        save("hypervolume", draw_hypervolume(findings.hypervolume(run.table, run.goals)))
        decisions = importance.of_decisions(run.table, run.curves, run.goals)
        if len(decisions):
            save("importance", draw_importance(decisions, run.goals))
    if run.rounds:
        save("evolution", evolution.draw(run))
    if run.judged is not None:
        save("people", preference.draw(run, run.judged))
    for column in (column for column in run.scores if column in run.curves):
        save(f"curves_{column}", _curves(run, column))
    if not written:
        raise InputError(f"{run.path}: no trial was trained to the end, so there is nothing to draw")
    return written


def _refer(axes: Any, column: str, lines: Lines, values: pd.Series) -> None:
    """Lines of reference of the vertical axis: dotted where the values lie near, else named above the panel."""
    below, near, above = reference_lines.in_sight(column, lines, values.astype(float))
    for _, value in near:
        axes.axhline(scaled(column, value), color=GREY, linestyle=":", linewidth=1.2)
    for name, value in reference_lines.together(near, values.astype(float)):
        place = {"xy": (0.01, scaled(column, value)), "xycoords": ("axes fraction", "data"), "va": "bottom"}
        axes.annotate(name, **place, fontsize=8, color=TEXT)
    if below or above:
        told = reference_lines.beyond(below, above, lambda value: naming.shown(column, value))
        axes.set_title("\n".join(told), fontsize=8, color=TEXT, loc="left")


def save_fronts(fronts: Mapping[str, pd.DataFrame], shown_pairs: Sequence[tuple[str, str]], path: Path) -> None:
    draw_fronts(fronts, shown_pairs).savefig(path)


def draw_fronts(fronts: Mapping[str, pd.DataFrame], shown_pairs: Sequence[tuple[str, str]]) -> Figure:
    """The fronts of several studies on one axis: name -> complete trials with `on_front`; one panel per pair, at most three."""
    from matplotlib.figure import Figure

    panels = list(shown_pairs)[:3]
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 4.3), dpi=150, layout="constrained")
    for place, (x, y) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for number, (name, table) in enumerate(fronts.items()):
            colour, front = SERIES[number % len(SERIES)], table[table["on_front"]]
            axes.scatter(*_xy(table[~table["on_front"]], x, y), color=colour, s=14, alpha=0.35)
            axes.scatter(*_xy(front, x, y), color=colour, s=44, marker=MARKERS[number % len(MARKERS)], label=name)
        plain(axes, label(x), label(y))
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), frameon=False, fontsize=10)
    return figure


def draw_hypervolume(history: pd.DataFrame) -> Figure:
    """The frame of `findings.hypervolume`: the share of the box over training compute."""
    figure, axes = _single()
    prefix, divisor = magnitude(float(history["macs"].iloc[-1]))
    axes.step(history["macs"] / divisor, history["share"], where="post", color=FRONT)
    axes.set_ylim(bottom=0)
    plain(axes, f"Training compute ({prefix}MACs)", "Share of the box dominated")
    return figure


def draw_importance(decisions: pd.DataFrame, goals: Objectives) -> Figure:
    """A bar per decision and objective; those that may be chance are pale."""
    shown_axes = list(dict.fromkeys(decisions["axis"]))
    columns = [column for column in goals if column in set(decisions["column"])]
    figure, first = _single(width=3.0 * len(columns) + 1.6, height=0.28 * len(shown_axes) + 1.2, panels=len(columns))
    for axes, column in zip(figure.axes, columns, strict=True):
        part = decisions[decisions["column"] == column].set_index("axis").reindex(shown_axes)
        colours = [FRONT if p < importance.CHANCE else PALE for p in part["p"]]
        axes.barh([name.replace("_", " ") for name in shown_axes], 100 * part["share"].fillna(0.0), color=colours)
        axes.invert_yaxis()
        axes.set_title(label(column), fontsize=10)
        axes.tick_params(labelleft=axes is first, labelsize=9)
        plain(axes, "Share of the differences (%)", "")
    return figure


def _curves(run: Run, column: str) -> Any:
    figure, axes = _single()
    on_front = set(run.best["trial"])
    for trial, part in run.curves.dropna(subset=[column]).groupby("trial"):
        colour = FRONT if trial in on_front else GREY if (part["state"] == "complete").all() else PALE
        axes.plot(
            part["images_seen"], scaled(column, part[column]), color=colour, marker="o", markersize=3, linewidth=1
        )
        if (part["state"] == "stopped").all():
            axes.scatter(
                part["images_seen"].iloc[-1], scaled(column, part[column].iloc[-1]), color=GREY, marker="x", s=28
            )
    plain(axes, "Images seen", label(column))
    return figure


def draw_cells(cells: pd.DataFrame, column: str) -> Figure:
    """The mean of every cell with its interval."""
    figure, axes = _single(height=0.36 * len(cells) + 1.0)
    half = scaled(column, (cells["high"] - cells["low"]) / 2).fillna(0.0)
    axes.errorbar(scaled(column, cells["mean"]), cells["cell"].astype(str), xerr=half, fmt="D", color=FRONT, capsize=3)
    axes.invert_yaxis()
    plain(axes, label(column), "")
    return figure


def draw_differences(differences: pd.DataFrame, column: str) -> Figure:
    """What every cell differs from the reference cell by, paired by repeat, with its interval."""
    figure, axes = _single(height=0.36 * len(differences) + 1.0)
    half = scaled(column, (differences["high"] - differences["low"]) / 2).fillna(0.0)
    cells = differences["cell"].astype(str)
    axes.errorbar(scaled(column, differences["estimate"]), cells, xerr=half, fmt="D", color=FRONT, capsize=3)
    axes.axvline(0.0, color=LIMIT, linestyle="--", linewidth=1.2)
    axes.invert_yaxis()
    plain(axes, f"{label(column)}, less that of {differences['against'].iloc[0]}", "")
    return figure


def _single(width: float = 5.2, height: float = 3.8, panels: int = 1) -> tuple[Figure, Any]:
    """An empty figure, 150 dots an inch, and its first axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, [figure.add_subplot(1, panels, place + 1) for place in range(panels)][0]


def _xy(rows: pd.DataFrame, x: str, y: str) -> tuple[pd.Series, pd.Series]:
    return scaled(x, rows[x].astype(float)), scaled(y, rows[y].astype(float))


def plain(axes: Any, x: str, y: str) -> None:
    """Names of the axes, a grid behind what is drawn, and no frame above and to the right."""
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=10)
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
    plain(axes, label(x), label(y))


def save_replay(rules: pd.DataFrame | None, explored: pd.DataFrame | None, path: Path) -> None:
    """What each rule saves and loses, and hypervolume against compute: frames of `nas.trust.replay`, 150 dots an inch."""
    from matplotlib.figure import Figure

    panels: list[tuple[Callable[[Any, pd.DataFrame], None], pd.DataFrame]] = []
    if rules is not None:
        panels.append((_draw_rules, rules))
    if explored is not None:
        panels += [(partial(_draw_explored, unit=unit), explored) for unit in PAID]
    figure = Figure(figsize=(5.4 * len(panels) + 0.4, 4.3), dpi=150, layout="constrained")
    for place, (draw, frame) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        draw(axes, frame)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_rules(axes: Any, rules: pd.DataFrame) -> None:
    """Training images saved against hypervolume lost; bars hold 95 % of the shuffles."""
    for place, row in enumerate(rules.to_dict("records")):
        x, y = 100 * row["images_saved"], 100 * row["hypervolume_lost"]
        bars = [
            [[centre - 100 * row[f"{name}_low"]], [100 * row[f"{name}_high"] - centre]]
            for centre, name in ((x, "images_saved"), (y, "hypervolume_lost"))
        ]
        name = row["rule"].replace("multi_metric", "Optuna Hub, multi-metric")
        axes.errorbar(
            x,
            y,
            [[max(0.0, bars[1][0][0])], [max(0.0, bars[1][1][0])]],
            [[max(0.0, bars[0][0][0])], [max(0.0, bars[0][1][0])]],
            color=SERIES[place % len(SERIES)],
            marker=MARKERS[place % len(MARKERS)],
            label=name,
            capsize=2,
            linewidth=1,
        )
    axes.axhline(2, color=LIMIT, linestyle="--", linewidth=1)
    axes.axvline(60, color=LIMIT, linestyle="--", linewidth=1)
    axes.set_xlabel("training images saved (%)")
    axes.set_ylabel("hypervolume lost (%)")
    axes.set_title("Rules: wanted is the lower right", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


PAID = {"images": "training images paid", "seconds": "seconds of workers paid"}


def _draw_explored(axes: Any, explored: pd.DataFrame, unit: str) -> None:
    """Share of the table's hypervolume against full trainings paid: colour by sampler, broken where nothing stops."""
    samplers = list(dict.fromkeys(explored["sampler"]))
    for (sampler, rule), part in explored[explored["unit"] == unit].groupby(["sampler", "rule"], sort=False):
        place = samplers.index(sampler)
        axes.plot(
            part["trainings"],
            100 * part["hypervolume"],
            color=SERIES[place % len(SERIES)],
            marker=MARKERS[place % len(MARKERS)],
            linestyle=":" if rule == "none" else "-",
            markersize=4,
            linewidth=1.3,
            label=f"{sampler}, {rule}",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(explored["trainings"])), [f"{count:g}" for count in sorted(set(explored["trainings"]))])
    axes.set_xlabel(f"{PAID[unit]}, in full trainings")
    axes.set_ylabel("hypervolume (% of the table's)")
    axes.set_title("Samplers, with and without stopping", fontsize=10)
    axes.legend(frameon=False, fontsize=7, loc="lower right")
