"""Studies side by side: their fronts on one axis, hypervolume at equal compute, and which members dominate which.

Only what was measured alike is compared: the same objectives, under the same conditions, on the same data, with costs at
the same deploy scale. Anything else is an InputError that names what differs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from nas import numbers
from nas.analysis import findings, fronts, naming, reference_lines, results
from nas.analysis.findings import Run
from nas.analysis.fronts import Objectives
from nas.analysis.reference_lines import Line
from nas.analysis.results import COSTS
from nas.errors import InputError
from nas.menu import nearest
from nas.numbers import amount, number_of
from nas.runs import description
from nas.search import dominance

Compute = Literal["macs", "images", "seconds"]
DRAWS = 300
SIDES = 1.96  # standard deviations: 95 % of a normal distribution
ALIKE = ("dataset", "evaluation")  # sections that say what a score was measured on
STATED = ("provenance", "name", "question", "tracking", "workers")  # settings whose differences mean nothing here
MOST_DIFFERENCES = 40


@dataclass(frozen=True)
class Study:
    """One of the runs that are compared."""

    name: str
    run: Run
    history: pd.DataFrame
    """trial, images, macs, seconds (cumulative), hypervolume up to the common reference."""
    at: float
    """Hypervolume at the compute all have reached, as a share of the common box."""
    interval: tuple[float, float]
    """Of `at`, had other trials been drawn (see `spread`)."""
    left: int
    """Members of its front that no other study's member dominates."""
    trainings: frozenset[str]
    """Its trials that were trained to the end, each as what no other training has in common with it: seed, time and scores."""


@dataclass(frozen=True)
class Comparison:
    """What `nas compare` says."""

    goals: Objectives
    studies: tuple[Study, ...]
    by: Compute
    limit: float
    """The compute all have reached, in units of `by`."""
    dominated: pd.DataFrame
    """A row per member of a front that members of other fronts dominate: study, trial, by_study, by_trials."""
    differences: pd.DataFrame
    """A row per setting that differs, a column per study."""


def of_runs(run_dirs: Sequence[Path], by: Compute = "macs", seed: int = 0) -> Comparison:
    """Compare runs. InputError for fewer than two, for one without a finished trial, and for what does not compare."""
    if len(run_dirs) < 2:
        raise InputError("compare: expected at least two runs")
    if by not in get_args(Compute):
        raise InputError(f"compare: --by {by}{nearest(by, list(get_args(Compute)))}")
    runs = [Run.read(description.find(path)) for path in run_dirs]
    for run in runs:
        if run.is_ablation:
            raise InputError(f"{run.path}: an ablation has no front to compare; its effects are in its report")
        if not run.table["on_front"].any():
            raise InputError(f"{run.path}: no trial was trained to the end, so there is no front to compare")
    goals = _same_objectives(runs)
    _require_alike(runs, goals)
    names = _names(runs)
    together = pd.concat([run.table for run in runs], ignore_index=True)
    reference = fronts.reference_point(together, goals)
    box = fronts.hypervolume_box(together, goals, reference)
    histories = [_history(run, goals, reference, box, by) for run in runs]
    limit = min(float(history[by].iloc[-1]) for history in histories)
    dominated = _dominated(names, runs, goals)
    studies = []
    for place, (name, run, history) in enumerate(zip(names, runs, histories, strict=True)):
        within = run.table.sort_values("trial")[(history[by] <= limit * (1 + 1e-9)).to_numpy()]
        at, interval = spread(within, goals, reference, seed=seed + place)
        lost = dominated.loc[dominated["study"] == name, "trial"].nunique()
        left = int(run.table["on_front"].sum()) - int(lost)
        share = at / box, (interval[0] / box, interval[1] / box)
        studies.append(Study(name, run, history, *share, left, _trainings(run)))
    return Comparison(goals, tuple(studies), by, limit, dominated, _differences(names, runs))


def spread(
    table: pd.DataFrame, goals: Objectives, reference: Mapping[str, float], draws: int = DRAWS, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The hypervolume of these trials' front, and an interval: two bootstrap standard deviations (1.96) to both sides.

    Trials are drawn again, with replacement; repeats of an architecture are one, their mean. A resample misses a third of
    them, so its front is a smaller one and its quantiles lie too low: only the spread is taken. Over simulated random
    searches (15, 30, 80 trials, two objectives, three shapes of front) the interval held the mean over many searches in 76
    to 93 % of cases, the quantiles in 48 to 64 %, racing's basic interval in 34 to 43 %. So it is a little too narrow, and
    for samplers that learn, whose trials are not independent, an approximation.
    """
    values = fronts.pooled(table, goals)
    values[(table["state"] != "complete").to_numpy(dtype=bool)] = math.nan
    signs = np.array([1.0 if way == "minimise" else -1.0 for way in goals.values()])
    corner = signs * np.array([reference[column] for column in goals])
    usable = np.isfinite(values).all(axis=1)
    whole = dominance.hypervolume(values[usable], corner)
    rng = np.random.default_rng(seed)
    rows = [rng.integers(len(values), size=len(values)) for _ in range(draws)] if len(values) else []
    drawn = np.array([dominance.hypervolume(_distinct(values, usable, row), corner) for row in rows] or [0.0])
    half = SIDES * float(drawn.std())
    return whole, (max(0.0, whole - half), whole + half)


# --- what may be compared --------------------------------------------------------------------------------------------


def _same_objectives(runs: Sequence[Run]) -> Objectives:
    first = runs[0]
    for run in runs[1:]:
        if dict(run.goals) != dict(first.goals):
            told = " and ".join(", ".join(f"{way} {column}" for column, way in r.goals.items()) for r in (first, run))
            raise InputError(f"compare: {first.path} and {run.path} have different objectives: {told}")
    return first.goals


def _require_alike(runs: Sequence[Run], goals: Objectives) -> None:
    """The same conditions of every objective, the same data, the same deploy scale."""
    scores = [column for column in goals if column not in COSTS]
    slim = []
    for run in runs:
        table = run.table[["trial"]].copy()
        found = run.table.attrs.get("conditions", {})
        table.attrs["conditions"] = {column: found[column] for column in scores if column in found}
        slim.append(table)
    results.concat(slim)
    sections = (*(ALIKE if scores else ()), *(("deploy",) if len(scores) < len(goals) else ()))
    for section in sections:
        _require_same_section(runs, section)


def _require_same_section(runs: Sequence[Run], section: str) -> None:
    first = _flat({section: runs[0].settings.get(section)})
    for run in runs[1:]:
        other = _flat({section: run.settings.get(section)})
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                raise InputError(
                    f"compare: {runs[0].path} and {run.path} do not compare: {key} is {first.get(key)} and {other.get(key)}"
                )


# --- the parts -------------------------------------------------------------------------------------------------------


def _history(run: Run, goals: Objectives, reference: Mapping[str, float], box: float, by: Compute) -> pd.DataFrame:
    history = fronts.hypervolume_history(run.table, goals, reference).merge(findings.compute(run.table), on="trial")
    if not history[by].iloc[-1]:
        others = [name for name in get_args(Compute) if name != by and history[name].iloc[-1]]
        raise InputError(
            f"{run.path}: its records have no {by} to compare by" + (f"; try --by {others[0]}" if others else "")
        )
    return history.assign(share=history["hypervolume"] / box)


def _trainings(run: Run) -> frozenset[str]:
    done = [record for record in run.trials if record["state"] == "complete"]
    marks = ("key", "seed", "started", "finished")
    told = [[*(record.get(mark) for mark in marks), record["rungs"][-1]["metrics"]] for record in done]
    return frozenset(json.dumps(each, sort_keys=True) for each in told)


def _distinct(values: np.ndarray, usable: np.ndarray, rows: np.ndarray) -> np.ndarray:
    chosen = np.unique(rows)
    return np.asarray(values[chosen[usable[chosen]]])


def _names(runs: Sequence[Run]) -> list[str]:
    """Names of studies; runs of one study by their directory too."""
    names = [run.name for run in runs]
    told = [
        name if names.count(name) == 1 else f"{name} {run.path.name}" for name, run in zip(names, runs, strict=True)
    ]
    return [n if told.count(n) == 1 else f"{n} ({place + 1})" for place, n in enumerate(told)]


def _dominated(names: Sequence[str], runs: Sequence[Run], goals: Objectives) -> pd.DataFrame:
    members = [run.table[run.table["on_front"]] for run in runs]
    values = [fronts.pooled(run.table, goals)[run.table["on_front"].to_numpy()] for run in runs]
    rows = []
    for mine in range(len(runs)):
        for other in (place for place in range(len(runs)) if place != mine):
            better = (values[other][None] <= values[mine][:, None]).all(-1) & (
                values[other][None] < values[mine][:, None]
            ).any(-1)
            for member, by in zip(members[mine]["trial"], better, strict=True):
                if by.any():
                    trials = [int(trial) for trial in members[other]["trial"].to_numpy()[by]]
                    rows.append((names[mine], int(member), names[other], trials))
    return pd.DataFrame(rows, columns=["study", "trial", "by_study", "by_trials"])


def _differences(names: Sequence[str], runs: Sequence[Run]) -> pd.DataFrame:
    flat = [_flat({key: value for key, value in run.settings.items() if key not in STATED}) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = [[key, *(str(each.get(key, "")) for each in flat)] for key in keys]
    return pd.DataFrame([row for row in rows if len(set(row[1:])) > 1], columns=["setting", *names])


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by dotted path; a list is one value."""
    if not isinstance(value, Mapping):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{path}.{key}" if path else str(key))
    return found


# --- to read ---------------------------------------------------------------------------------------------------------


def spent(found: Comparison) -> str:
    """The compute at which hypervolumes are compared, in words."""
    if found.by == "seconds":
        return f"{numbers.duration(found.limit)} of workers"
    if found.by == "images":
        return f"{found.limit:,.0f} training images"
    return f"{amount(found.limit)}MACs of training"


def summary(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and a row per study: trials, front, members left, hypervolume at equal compute with its interval, best scores;
    and a row per line of reference."""
    headings = [
        "study",
        "trained",
        "front",
        "not dominated",
        "hypervolume",
        "95 %",
        *(f"best {c}" for c in found.goals),
    ]
    rows = []
    for study in found.studies:
        table = study.run.table
        front = table[table["on_front"]]
        best = [getattr(front[c], "min" if way == "minimise" else "max")() for c, way in found.goals.items()]
        low, high = study.interval
        cells = [str(int((table["state"] == "complete").sum())), str(len(front)), str(study.left)]
        cells += [f"{study.at:.3f}", f"{low:.3f} to {high:.3f}"]
        rows.append([study.name, *cells, *(naming.shown(c, b) for c, b in zip(found.goals, best, strict=True))])
    for line in shared_lines(found).values():
        rows.append([line.label, *[""] * 5, *(naming.shown(column, line[column]) for column in found.goals)])
    return headings, rows


def shared_lines(found: Comparison) -> dict[str, Line]:
    """The lines of reference that all have alike."""
    return reference_lines.shared([study.run.lines for study in found.studies])


def verdict(found: Comparison) -> str:
    """Who is ahead at equal compute, in a sentence, and whether the intervals part."""
    first, second = sorted(found.studies, key=lambda study: -study.at)[:2]
    shared = len(first.trainings & second.trainings)
    if first.trainings == second.trainings:
        what = f"the same {shared:,} trainings: one is a copy of the other, and nothing differs"
        return f"{first.name} and {second.name} hold {what}."
    apart = first.interval[0] > second.interval[1]
    sure = "the intervals do not overlap" if apart else "the intervals overlap, so this may be chance"
    told = f"After {spent(found)}, {first.name} fills {first.at:.3f} of the common box and {second.name} {second.at:.3f}: {sure}."
    if shared:
        same = f"{number_of(shared, 'training')} of theirs {'is' if shared == 1 else 'are'} the same"
        told += f" {same}, so they are not independent, and the intervals say little."
    return told


def dominations(found: Comparison) -> list[str]:
    """A line per pair of studies: how many members of one front members of another dominate, and which."""
    lines = []
    for (study, other), part in found.dominated.groupby(["study", "by_study"], sort=False):
        front = next(one for one in found.studies if one.name == study).run.table["on_front"].sum()
        told = ", ".join(
            f"{row['trial']} (by {', '.join(map(str, row['by_trials'][:3]))}{', ...' if len(row['by_trials']) > 3 else ''})"
            for row in part.to_dict("records")
        )
        lines.append(f"{other} dominates {len(part)} of {front} on the front of {study}: {told}")
    return lines or ["No member of a front is dominated by one of another study."]
