"""An evolution in the report: which block went when, for what value, and what became of quality and cost."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from nas.analysis.naming import label, scaled, shown
from nas.cost.latency_table import COLUMN as LATENCY
from nas.report.palette import FRONT, GREY, GRID, KNEE, LIMIT, TEXT
from nas.runs.evolution import Action, Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nas.analysis.findings import Run


def told(run: Run) -> dict[str, Any] | None:
    """What the page's section sets out, a row a round; None of a run without rounds."""
    if not run.rounds:
        return None
    cost, quality = columns(run)
    heads = ["round", label(cost), label(quality), "what was done after it", f"lost per {label(cost)}", "weighed"]
    shown_ = {"quality": label(quality), "unit": label(cost), "picture": data_url(draw(run))}
    return {"heads": heads, "rows": list(_rows(run)), **shown_}


def columns(run: Run) -> tuple[str, str]:
    """The cost that is saved, and the quality that it is weighed against."""
    settings = run.settings["search"]["evolution"]
    return settings["cost"], settings["quality"] or run.scores[0]


def _rows(run: Run) -> Iterator[tuple[str, ...]]:
    cost, quality = columns(run)
    by_trial = {found["trial"]: found for found in run.rounds}
    for _, row in run.table[run.table["state"] == "complete"].iterrows():
        found = by_trial.get(int(row["trial"]))
        done = [one for one in found["actions"] if one["done"]] if found else []
        values = [_value(one, cost) for one in done]
        weighed = f"{len([one for one in found['actions'] if one['quality'] is not None])}" if found else ""
        yield (
            f"trial {row['trial']}",
            shown(cost, row[cost]),
            shown(quality, row[quality]),
            ", ".join(map(_said, done)),
            ", ".join("" if value is None else f"{value:.3g}" for value in values),
            weighed,
        )


def _value(action: Action, cost: str) -> float | None:
    """Quality lost per unit of cost, in the unit of its label."""
    return None if action["value"] is None else action["value"] / float(scaled(cost, 1.0))


def _said(action: Action) -> str:
    copied = "copied, " if action["kind"] == "copy" else ""
    return f"{copied}{action['axis']} {action['before']} → {action['after']}"


# --- the drawing ------------------------------------------------------------------------------------------------------


def draw(run: Run) -> Figure:
    """Quality and cost of every trial above the table of values: an axis a row, a column for what was weighed after a trial.

    A cell says the change, and at its right what the removal would lose per unit of cost, the more the darker; what was done
    has a frame, dashed where it is a copy.
    """
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(action["axis"] for found in run.rounds for action in found["actions"]))
    trials = [int(trial) for trial in run.table.loc[run.table["state"] == "complete", "trial"]]
    size = (1.9 + 1.05 * max(len(trials), 4), 3.2 + 0.26 * len(axes))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    quality, cost, table = figure.subplots(3, 1, sharex=True, height_ratios=[1.3, 1.3, 0.26 * len(axes)])
    for panel, column, colour in ((quality, columns(run)[1], FRONT), (cost, columns(run)[0], GREY)):
        _course(panel, run, column, colour, trials)
    cost.axhline(scaled(columns(run)[0], _target(run)), color=LIMIT, linestyle="--", linewidth=1.2)
    _values(table, run, axes, trials)
    return figure


def _course(panel: Axes, run: Run, column: str, colour: str, trials: Sequence[int]) -> None:
    """A column of every trial."""
    rows = run.table.set_index("trial").loc[list(trials)]
    panel.plot(range(len(trials)), scaled(column, rows[column].astype(float)), "-o", color=colour, markersize=4)
    panel.set_ylabel(label(column).replace(" ", "\n", 1), fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(color=GRID)
    panel.spines[["top", "right"]].set_visible(False)


def _values(panel: Axes, run: Run, axes: Sequence[str], trials: Sequence[int]) -> None:
    """What every removal would lose, after each trial."""
    from matplotlib.patches import Rectangle

    most = max((one["value"] or 0.0 for found in run.rounds for one in found["actions"]), default=0.0) or 1.0
    for found in (found for found in run.rounds if found["trial"] in trials):
        column = trials.index(found["trial"])
        for one in _shown(found):
            row, share = axes.index(one["axis"]), (one["value"] or 0.0) / most
            corner = (column - 0.46, row - 0.42)
            panel.add_patch(Rectangle(corner, 0.92, 0.84, facecolor=FRONT, alpha=0.04 + 0.5 * share, linewidth=0))
            value = _value(one, columns(run)[0])
            change, worth = f"{one['before']} → {one['after']}", "" if value is None else f"{value:.2g}"
            for place, side, said, colour in ((-0.42, "left", change, TEXT), (0.42, "right", worth, TEXT)):
                panel.text(column + place, row, said, ha=side, va="center", fontsize=6, color=colour)
            if one["done"]:
                style: dict[str, Any] = {
                    "edgecolor": KNEE,
                    "linewidth": 1.4,
                    "linestyle": "--" if one["kind"] == "copy" else "-",
                }
                panel.add_patch(Rectangle(corner, 0.92, 0.84, facecolor="none", **style))
    panel.set_xlim(-0.6, len(trials) - 0.4)
    panel.set_ylim(len(axes) - 0.4, -0.6)
    panel.set_yticks(range(len(axes)), axes, fontsize=7)
    panel.set_xticks(range(len(trials)), [f"trial {trial}" for trial in trials], fontsize=7)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)


def _shown(found: Round) -> list[Action]:
    """One action an axis: that which was done, or the removal."""
    done = {one["axis"] for one in found["actions"] if one["done"]}
    return [one for one in found["actions"] if one["done"] or (one["kind"] == "removal" and one["axis"] not in done)]


def _target(run: Run) -> float:
    """The cost at which removals end."""
    settings: Mapping[str, Any] = run.settings["search"]["evolution"]
    whole = 1.0 if settings["cost"] == LATENCY else float(run.trials[0]["cost"][settings["cost"]])
    return float(settings["target"]) * whole


def data_url(figure: Figure) -> str:
    """A figure as a data URL."""
    written = BytesIO()
    figure.savefig(written, format="png")
    return f"data:image/png;base64,{b64encode(written.getvalue()).decode()}"
