"""What people prefer, in the report: scores with intervals, each metric beside them, and how alike judges are."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.analysis import fronts
from nas.analysis.naming import arrow, label, scaled, within
from nas.analysis.people import judged
from nas.analysis.people.preference import COLUMN
from nas.analysis.results import COSTS
from nas.numbers import listed
from nas.report.chapters.evolution import data_url
from nas.report.palette import FRONT, GREY, GRID, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nas.analysis.findings import Run
    from nas.analysis.people.judged import Judged
    from nas.analysis.people.judges import Alike

MOST_PANELS = 3  # metrics that are drawn beside people
WORDS = {"agrees": "the same order", "disagrees": "the other way", "open": "cannot be told"}


def told(run: Run) -> dict[str, Any] | None:
    """What the page's section sets out; None of a run that nobody judged."""
    found = run.judged
    if found is None:
        return None
    goals = chosen(run)
    return {
        "sentence": judged.sentence(found),
        "trials": _trials(run, found, goals),
        "goals": listed([within(column) for column in goals]) if len(goals) > 1 and not run.is_ablation else "",
        "metrics": [
            (label(one.signal), _interval(one.tau, one.tau_low, one.tau_high), WORDS[found.verdict(one)])
            for one in found.metrics
        ],
        "judges": [
            (one.name, f"{one.answers:,}", f"{one.ties:,}", _share(one.left), f"{one.seconds:.1f} s", _alike(one.again))
            for one in found.judges
        ],
        "between": [(f"{one} and {other}", _alike(alike)) for (one, other), alike in found.between.items()],
        "picture": data_url(draw(run, found)),
    }


def chosen(run: Run) -> dict[str, str]:
    """The study's objectives with people in place of its scores."""
    return {COLUMN: "maximise", **{column: way for column, way in run.goals.items() if column in COSTS}}


def _trials(run: Run, found: Judged, goals: dict[str, str]) -> list[tuple[str, str, str, str, str]]:
    """Trial, score, how often it is preferred, comparisons, and whether it is on the front that people make; best first."""
    scores, on_front = found.scores, set(run.table.loc[fronts.front(run.table, goals), "trial"].astype(str))
    rows = []
    for place in np.argsort(-scores.values, kind="stable"):
        value, half, trial = float(scores.values[place]), float(scores.half[place]), scores.trials[place]
        games = scores.wins[place].sum() + scores.wins[:, place].sum()
        interval = _interval(value, value - half, value + half)
        rows.append(
            (
                named(run, trial),
                interval,
                f"{1 / (1 + np.exp(-value)):.0%}",
                f"{games:,.0f}",
                "yes" if trial in on_front else "",
            )
        )
    return rows


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _share(value: float) -> str:
    return "" if isnan(value) else f"{value:.0%}"


def _alike(alike: Alike) -> str:
    if not alike.questions:
        return "no question in common"
    alpha = "" if isnan(alike.alpha) else f", alpha {alike.alpha:.2f}"
    return f"{alike.share:.0%} [{alike.low:.0%}, {alike.high:.0%}] of {alike.questions:,}{alpha}"


# --- the drawing ------------------------------------------------------------------------------------------------------


def draw(run: Run, found: Judged) -> Figure:
    """Scores of the trials, best at the top, with their intervals; then people against the study's metrics, a dot a trial."""
    from matplotlib.figure import Figure

    columns = [column for column in found.asked if column in run.table][:MOST_PANELS]
    trials = len(found.scores.trials)
    size = (3.4 * (1 + len(columns)), max(3.0, 0.8 + 0.24 * trials))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 1 + len(columns)))
    _ranking(panels[0], run, found)
    for panel, column in zip(panels[1:], columns, strict=True):
        _against(panel, run, found, column)
    for panel in panels:
        panel.tick_params(labelsize=8, colors=TEXT)
        panel.grid(color=GRID)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _ranking(panel: Axes, run: Run, found: Judged) -> None:
    order = np.argsort(found.scores.values, kind="stable")
    colours = [_colour(run, found.scores.trials[place]) for place in order]
    for row, (place, colour) in enumerate(zip(order, colours, strict=True)):
        bars = {"xerr": found.scores.half[place], "color": colour, "fmt": "o", "markersize": 5, "elinewidth": 1.6}
        panel.errorbar(found.scores.values[place], row, **bars)
    panel.axvline(0, color=GREY, linestyle=":", linewidth=1)
    panel.set_yticks(range(len(order)), [named(run, found.scores.trials[place]) for place in order])
    panel.set_xlabel(label(COLUMN), fontsize=9)


def _against(panel: Axes, run: Run, found: Judged, column: str) -> None:
    rows = run.table.set_index(run.table["trial"].astype(str))
    places = [place for place, trial in enumerate(found.scores.trials) if trial in rows.index]
    for place in places:
        trial = found.scores.trials[place]
        x, y = float(scaled(column, rows[column][trial])), found.scores.values[place]
        colour = _colour(run, trial)
        panel.errorbar(
            x, y, yerr=found.scores.half[place], color=colour, fmt="o", markersize=5, elinewidth=1, alpha=0.9
        )
        panel.annotate(trial, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=TEXT)
    panel.set_xlabel(label(column) + arrow(run.goals.get(column, "")), fontsize=9)
    panel.set_ylabel(label(COLUMN), fontsize=9)


def _colour(run: Run, trial: str) -> str:
    """That of the study's front, or of the rest."""
    return FRONT if trial in set(run.table.loc[run.table["on_front"], "trial"].astype(str)) else GREY


def named(run: Run, trial: str) -> str:
    """A trial as the page names it: of an ablation by its cell."""
    if not trial.isdigit():
        return trial
    rows = run.table[run.table["trial"] == int(trial)]
    if not run.is_ablation or not len(rows):
        return f"trial {trial}"
    row = rows.iloc[0]
    return f"{row['cell']}, repeat {row['repeat']}" if row["repeat"] else str(row["cell"])
