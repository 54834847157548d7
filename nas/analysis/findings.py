"""What a run has to tell, as frames and plain values: what happened, who won and why, the front, what it all cost.

Compute, then draw: `nas.report.figures` and `nas.report.stills` draw these frames, `nas.report.sections` words them,
`nas.report.page` sets them out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from nas.analysis import ablation, certainty, fronts, learning, naming, reference_lines, results
from nas.analysis.fronts import Objectives
from nas.analysis.naming import said
from nas.analysis.people import judged
from nas.analysis.people.judged import Judged
from nas.analysis.reference_lines import Line, Lines
from nas.analysis.results import COSTS
from nas.errors import InputError
from nas.networks import backbones
from nas.numbers import listed, number_of
from nas.runs import description, earlier, evolution, looks
from nas.runs.earlier import Earlier
from nas.runs.evolution import Round
from nas.runs.looks import Looks

Budget = Mapping[str, float]

PASSES = (
    3  # a training step costs about three forward passes: one forward, two backward (Kaplan et al. 2020, section 2.1)
)
TOLD = {"duplicate": "seen before", "stopped": "stopped early", "failed": "failed", "running": "still running"}
HOVER_WIDTH = 46  # characters a line


@dataclass(frozen=True)
class Run:
    """Everything a report is made from, read once."""

    path: Path
    settings: dict[str, Any]
    trials: list[results.Record]
    captions: list[str]
    goals: Objectives
    table: pd.DataFrame
    curves: pd.DataFrame

    @classmethod
    def read(cls, run_dir: Path) -> Run:
        path, settings, trials = Path(run_dir), description.resolved(run_dir), results.records(run_dir)
        goals = results.objectives(settings)
        table = results.with_preference(results.frame(trials, description.conditions(path), goals), path)
        return cls(path, settings, trials, description.captions(path), goals, table, results.curves(trials))

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.path.name)

    @property
    def is_ablation(self) -> bool:
        return bool(self.settings.get("ablation"))

    @cached_property
    def effects(self) -> dict[str, dict[str, pd.DataFrame]]:
        """The tables of an ablation by column and kind; {} for a search, and while there is nothing to compare."""
        try:
            return ablation.of_run(self.path) if self.is_ablation else {}
        except InputError:
            return {}

    @cached_property
    def lines(self) -> dict[str, Line]:
        """The lines of reference; {} of a run that has none."""
        return reference_lines.read(self.path)

    @cached_property
    def looks(self) -> Looks:
        """What a pool was looked at for; {} of a run without one, and where they are damaged."""
        try:
            return looks.read(self.path)
        except InputError:
            return {}

    @cached_property
    def earlier(self) -> list[Earlier]:
        """The runs that the search knew when it began; none of a run without any, and where they are damaged."""
        try:
            return earlier.read(self.path)
        except InputError:
            return []

    @cached_property
    def rounds(self) -> list[Round]:
        """What an evolution weighed; none of a run without one, and where they are damaged."""
        try:
            return evolution.read(self.path)
        except InputError:
            return []

    @cached_property
    def judged(self) -> Judged | None:
        """What people prefer; None of a run that nobody judged."""
        return judged.of_run(self.path, self.table, self.goals)

    @cached_property
    def certainty(self) -> certainty.Certainty:
        """Who is on the front for sure, at the study's confidence."""
        return certainty.of_front(self.table, self.goals, certainty.confidence(self.settings))

    @property
    def budget(self) -> dict[str, float]:
        return {name: float(limit) for name, limit in (self.settings.get("budget") or {}).items() if name in self.table}

    @property
    def scores(self) -> list[str]:
        """The objectives that were measured, not counted."""
        return [column for column in self.goals if column not in COSTS]

    @cached_property
    def best(self) -> pd.DataFrame:
        """Who is shown: the front in reading order; of an ablation the first complete repeat of every cell."""
        if self.is_ablation:
            done = self.table[self.table["state"] == "complete"]
            return done.sort_values("repeat", kind="stable").drop_duplicates("cell")
        return members(self.table, self.goals)

    @cached_property
    def knee(self) -> int | None:
        """The winner's trial; None for an ablation, before any trial was trained to the end, and where nothing was learnt."""
        return None if self.is_ablation else _winner_of(self.table, self.goals, self.lines)


# --- what happened ---------------------------------------------------------------------------------------------------


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many trials ended in each state, how many were proposed, and the size of the front."""
    found: dict[str, int] = {state: int((table["state"] == state).sum()) for state in results.STATES}
    return {"proposed": len(table), **found, "front": int(table["on_front"].sum())}


def refusals(table: pd.DataFrame, budget: Budget) -> dict[str, int]:
    """Refused trials by the budgets they broke: {"macs": 3, "macs and params": 1}."""
    refused = table[table["state"] == "over_budget"]
    limits = [column for column in budget if column in table]
    broken = [" and ".join(c for c in limits if _exceeds(row[c], budget[c])) for _, row in refused.iterrows()]
    return {str(name): int(count) for name, count in pd.Series(broken, dtype=object).value_counts().items()}


def answer(table: pd.DataFrame, goals: Objectives, budget: Budget, lines: Lines = reference_lines.NONE) -> str:
    """What came of the study, in plain numbers."""
    n = counts(table)
    parts = [f"{n[state]} {words}" for state, words in TOLD.items() if n[state]]
    if n["over_budget"]:
        why = ", ".join(f"{count} by {said(name)}" for name, count in refusals(table, budget).items() if name)
        parts.insert(0, f"{n['over_budget']} refused before training as over budget" + (f" ({why})" if why else ""))
    parts.append(f"{n['complete']} fully trained")
    proposed = f"{number_of(n['proposed'], 'architecture')} {'was' if n['proposed'] == 1 else 'were'} proposed"
    return f"{proposed}: {listed(parts)}. {_outcome(table, goals, lines)}"


def elapsed_s(trials: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds from the first start to the last end; None before any trial ended."""
    started, finished = (
        [pd.Timestamp(time) for r in trials if (time := r.get(end))] for end in ("started", "finished")
    )
    return (max(finished) - min(started)).total_seconds() if started and finished else None


def compute(table: pd.DataFrame) -> pd.DataFrame:
    """What was spent after each trial, in trial order: trial, and cumulative `images`, `macs` and `seconds`.

    `macs` are multiply-adds of training alone, by the passes of the proxy that an image cost (three where none are recorded);
    `seconds` are those of the workers, sampling and scoring included. A trial without a number adds nothing.
    """
    ordered = table.sort_values("trial")
    images = ordered["images_seen"].astype("Float64").to_numpy(dtype=float, na_value=0.0)
    each = ordered["proxy_macs"].astype("Float64").to_numpy(dtype=float, na_value=0.0)
    passes = ordered["passes"].fillna(PASSES).to_numpy() if "passes" in ordered else PASSES
    spent = {"images": images, "macs": passes * images * each, "seconds": ordered["total_s"].fillna(0.0).to_numpy()}
    return pd.DataFrame({"trial": ordered["trial"].astype(int).to_numpy()} | {k: v.cumsum() for k, v in spent.items()})


# --- the winner ------------------------------------------------------------------------------------------------------


def winner(table: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """The knee against the best of the front, one row per objective: column, knee, best, best_trial, position.

    `position` is where the knee lies on the front's range, 0 at the best and 1 at the worst; 0 where all are equal.
    """
    front = table[table["on_front"]]
    knee = front[front["trial"] == fronts.knee(table, goals)].iloc[0]
    rows = []
    for column, way in goals.items():
        ordered = front.sort_values([column, "trial"], ascending=[way == "minimise", True])
        best, worst = ordered.iloc[0], ordered.iloc[-1]
        span = float(worst[column]) - float(best[column])
        position = (float(knee[column]) - float(best[column])) / span if span else 0.0
        row = {"column": column, "knee": knee[column], "best": best[column], "best_trial": int(best["trial"])}
        rows.append({**row, "position": position})
    return pd.DataFrame(rows)


def why(table: pd.DataFrame, goals: Objectives) -> list[str]:
    """Why the knee won, in sentences: what it is, then what each better score of another member would cost."""
    front = table[table["on_front"]]
    if len(front) < 2:
        return ["No other network was trained to the end that is better in any objective."]
    scale = "the front's range" if len(front) > 2 else "the range of all that was trained"
    told = [
        f"No other fully trained network is as good in every objective and better in one; that holds for {len(front)}. "
        f"Of these it gives up least: the sum of its distances from the best, each as a share of {scale}, is smallest."
    ]
    knee = front[front["trial"] == fronts.knee(table, goals)].iloc[0]
    costs = [column for column in goals if column in COSTS]
    for row in winner(table, goals).to_dict("records"):
        other = front[front["trial"] == row["best_trial"]].iloc[0]
        if row["column"] not in COSTS and costs and row["knee"] != row["best"]:
            told.append(_trade(row, other, knee, costs[0]))
    return told


def _trade(row: Mapping[Any, Any], other: pd.Series, knee: pd.Series, cost: str) -> str:
    column = str(row["column"])
    better = (
        f"{naming.label(column)} {naming.shown(column, row['best'])} instead of {naming.shown(column, row['knee'])}"
    )
    return f"Trial {row['best_trial']} has {better}, for {other[cost] / knee[cost]:.2f} times the {said(cost)}."


def parts(trials: Iterable[results.Record], latent_size: int, text_tokens: int) -> pd.DataFrame:
    """Deploy-scale costs by part and resolution of the network: trial, component, side, params, macs.

    Raises InputError for an architecture of a family, or with a field, that this version does not know.
    """

    rows = []
    for record in trials:
        if "architecture" not in record:
            continue  # nothing was decided yet
        try:
            config = backbones.from_dict(record["architecture"])
        except ValueError as error:
            raise InputError(f"trial {record['trial']}: architecture: {error}") from None
        found = config.parts(latent_size, text_tokens)
        rows += [(record["trial"], part.component, part.side, part.cost.params, part.cost.macs) for part in found]
    return pd.DataFrame(rows, columns=["trial", "component", "side", "params", "macs"])


def components(trials: Iterable[results.Record], latent_size: int, text_tokens: int) -> pd.DataFrame:
    """The same by part alone: trial, component, params, macs."""
    table = parts(trials, latent_size, text_tokens)
    return table.groupby(["trial", "component"], sort=False, as_index=False)[["params", "macs"]].sum()


# --- the front -------------------------------------------------------------------------------------------------------


def pareto(table: pd.DataFrame, goals: Objectives, lines: Lines = reference_lines.NONE) -> pd.DataFrame:
    """What the front plots show, one row per trained trial: trial, state, on_front, knee, hover, scores and costs."""
    columns = list(dict.fromkeys([*goals, "macs", "params"]))
    points = table.loc[table["state"].isin(["complete", "stopped"]), ["trial", "state", "on_front", *columns]].copy()
    knee = _winner_of(table, goals, lines)
    points["knee"] = points["trial"] == (-1 if knee is None else knee)
    points["hover"] = [_hover(row) for _, row in table.loc[points.index].iterrows()]
    return points


def forecasts(seen: Looks, table: pd.DataFrame, goals: Objectives, known: Sequence[Earlier] = ()) -> pd.DataFrame:
    """Where a pool's search expected the networks that it did not train, one row each: objectives, costs, trial (-1) and hover.

    A look's scores are those of a few pictures; to each is added what the trained gained from their look in the mean.
    Some of those were looked at in `known` runs.
    """
    first = table[table["state"] == "complete"].drop_duplicates("key").set_index("key")
    everything = {key: look for run in known for key, look in run["looks"].items()} | seen
    rows_of = {key: {**look["cost"], **look["metrics"]} for key, look in everything.items() if not look["failed"]}
    told = {key: row for key, row in rows_of.items() if row.keys() >= goals.keys()}
    trained, begun = [key for key in first.index if key in told], set(table["key"])
    columns = list(dict.fromkeys([*goals, "macs", "params"]))
    gain = {c: float(sum(first[c][key] - told[key][c] for key in trained)) / max(1, len(trained)) for c in columns}
    rows = [
        {column: row[column] + gain[column] for column in columns}
        | {"trial": -1, "hover": _hover_of_choices("looked at, not trained: forecast", seen[key]["choices"].items())}
        for key, row in told.items()
        if key in seen and key not in begun
    ]
    return pd.DataFrame(rows, columns=[*columns, "trial", "hover"])


def members(table: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """The front in reading order: cheapest first when an objective is a cost, else best first."""
    cheap = [column for column in goals if column in COSTS]
    column = cheap[0] if cheap else next(iter(goals))
    return table[table["on_front"]].sort_values([column, "trial"], ascending=[goals[column] == "minimise", True])


def axes_apart(rows: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """The choices in which these trials differ (column names), and those they share (axis -> value as text). To have no such
    choice is to differ."""
    told = {str(axis): list(map(naming.cell, rows[axis])) for axis in rows if str(axis).startswith("arch.")}
    different = [axis for axis, cells in told.items() if len(set(cells)) > 1]
    shared = {axis[5:]: cells[0] for axis, cells in told.items() if axis not in different and cells and cells[0]}
    return different, shared


def hypervolume(table: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """`fronts.hypervolume_history` with what was spent (`compute`) and `share`: the part of the box between the best and
    worst values that the front fills."""
    history = fronts.hypervolume_history(table, goals).merge(compute(table), on="trial")
    reference = fronts.reference_point(table, goals)
    if not reference:
        return history.assign(share=0.0)
    return history.assign(share=history["hypervolume"] / fronts.hypervolume_box(table, goals, reference))


# --- training --------------------------------------------------------------------------------------------------------


def timings(curves: pd.DataFrame) -> pd.DataFrame:
    """Per rung: rung, trials, images_seen, mean seconds of each phase, median images_per_s, largest peak_memory_mib."""
    if not len(curves):
        return pd.DataFrame(columns=["rung", "trials"])
    phases = {name: (name, "mean") for name in results.TIMINGS if name in curves}
    rest = {"images_per_s": ("images_per_s", "median"), "peak_memory_mib": ("peak_memory_mib", "max")}
    named = {"trials": ("trial", "size"), "images_seen": ("images_seen", "max"), **phases, **rest}
    numeric = curves.astype({name: float for name, _ in rest.values()})
    return numeric.groupby("rung").agg(**named).reset_index()


# --- words and small sums --------------------------------------------------------------------------------------------


def _winner_of(table: pd.DataFrame, goals: Objectives, lines: Lines) -> int | None:
    """The knee of the front, where there is a front and something was learnt."""
    if not table["on_front"].any() or reference_lines.learnt(table, goals, lines) is False:
        return None
    return fronts.knee(table, goals)


def _outcome(table: pd.DataFrame, goals: Objectives, lines: Lines) -> str:
    nothing = learning.nothing_learnt(table, goals, lines)
    if nothing:
        return f"{nothing} So there is no winner: train longer, or start from trained weights."
    return f"{_front_in_words(table, goals)} {learning.little_learnt(table, lines)}".rstrip()


def _front_in_words(table: pd.DataFrame, goals: Objectives) -> str:
    best = table[table["on_front"]]
    if not len(best):
        return "No trial was trained to the end, so there is no front and no winner."
    knee = fronts.knee(table, goals)
    row = best[best["trial"] == knee].iloc[0]
    scores = listed([naming.measured(column, row[column]) for column in goals])
    if len(best) == 1:
        return f"Trial {knee} is as good as any in every objective: {scores}."
    return f"Of the fully trained, {len(best)} form the front; its knee is trial {knee}: {scores}."


def _hover(row: pd.Series) -> str:
    seen = "" if pd.isna(row["images_seen"]) else f", {int(row['images_seen']):,} images"
    state = "stopped early" if row["state"] == "stopped" else "front" if row["on_front"] else "fully trained"
    return _hover_of_choices(f"<b>trial {row['trial']}</b> ({state}{seen})", naming.choices(row))


def _hover_of_choices(title: str, choices: Iterable[tuple[str, Any]]) -> str:
    told = ", ".join(f"{axis} {naming.cell(value)}" for axis, value in choices)
    return "<br>".join([title, *(escape(line) for line in textwrap.wrap(told, HOVER_WIDTH))])


def _exceeds(value: Any, limit: float) -> bool:
    return bool(pd.notna(value)) and float(value) > limit
