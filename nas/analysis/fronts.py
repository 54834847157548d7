"""The front of a table of results, and numbers that describe it. Objectives are minimised: maximised columns turn their sign."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from nas.errors import InputError
from nas.menu import nearest
from nas.search.dominance import growing_volume, nondominated

Objectives = Mapping[str, str]  # column -> "minimise" or "maximise"


def minimised(table: pd.DataFrame, goals: Objectives) -> np.ndarray:
    """The objectives as a float64 array (trials, objectives) in which smaller is better everywhere.

    What is missing or infinite is NaN: no front, corner or volume can hold it. Raises InputError for an unknown column.
    """
    unknown = [column for column in goals if column not in table]
    if unknown:
        raise InputError(f"results: unknown objective {unknown[0]!r}{nearest(unknown[0], list(table.columns))}")
    columns = [table[column].astype("Float64").to_numpy(dtype=float, na_value=math.nan) for column in goals]
    values = np.stack(columns, axis=1) * _signs(goals)
    return np.where(np.isfinite(values), values, math.nan)


def identity(trial: Mapping[Any, Any]) -> str:
    """What a trial (a record, or a row of a table) shares with its repeats and with no other: its architecture's key, and in an
    ablation its cell, for cells of one architecture may differ in all else."""
    cell = trial.get("cell")
    return str(trial["key"]) if pd.isna(cell) else f"{trial['key']} {cell}"


def identities(table: pd.DataFrame) -> pd.Series:
    """`identity` of every row, aligned with the frame."""
    named = table[[column for column in ("key", "cell") if column in table]]
    return pd.Series([identity(row) for row in named.to_dict("records")], index=table.index, dtype=object)


def pooled(table: pd.DataFrame, goals: Objectives) -> np.ndarray:
    """As `minimised`, but an architecture (a cell) trained to the end more than once has the mean over its repeats, in the row
    of the first; its other rows are NaN."""
    values = minimised(table, goals)
    complete = np.flatnonzero((table["state"] == "complete").to_numpy(dtype=bool))
    for _, rows in pd.Series(complete).groupby(identities(table).to_numpy()[complete], sort=False):
        values[rows.iloc[0]] = values[rows].mean(axis=0)
        values[rows.iloc[1:]] = math.nan
    return values


def front(table: pd.DataFrame, goals: Objectives) -> pd.Series:
    """Which complete architectures no other one dominates (as good everywhere, better somewhere). Exact ties both stay.

    An architecture with repeats counts with their mean, and its first trial stands for it. A complete trial with a missing
    or infinite objective is not on the front. Boolean, aligned with the frame.
    """
    values = pooled(table, goals)
    eligible = (table["state"] == "complete").to_numpy(dtype=bool) & np.isfinite(values).all(axis=1)
    members = np.zeros(len(table), dtype=bool)
    members[eligible] = nondominated(values[eligible])
    return pd.Series(members, index=table.index, name="on_front")


def measurements(table: pd.DataFrame, goals: Objectives) -> dict[str, np.ndarray]:
    """Every architecture's (cell's) complete trials by `identity`, as an array (repeats, objectives), all minimised: what
    `nas.search.racing` reads."""
    values = minimised(table, goals)
    usable = (table["state"] == "complete").to_numpy(dtype=bool) & np.isfinite(values).all(axis=1)
    rows = pd.Series(np.flatnonzero(usable))
    named = identities(table).to_numpy()[usable]
    return {str(name): values[part.to_numpy()] for name, part in rows.groupby(named, sort=False)}


def usable(table: pd.DataFrame, goals: Objectives) -> np.ndarray:
    """The complete trials that have every objective, as `minimised`; repeats are rows of their own."""
    values = minimised(table[table["state"] == "complete"], goals)
    return np.asarray(values[np.isfinite(values).all(axis=1)])


def reference_point(table: pd.DataFrame, goals: Objectives) -> dict[str, float]:
    """A corner for the hypervolume, per column: the worst complete trial, moved out by a tenth of their range.

    The tenth is an assumption; it lets the ends of the front count. {} without a complete trial.
    """
    values = usable(table, goals)
    if not len(values):
        return {}
    worst, best = values.max(axis=0), values.min(axis=0)
    margin = 0.1 * np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1.0))
    corner = (worst + margin) * _signs(goals)
    return {column: float(value) for column, value in zip(goals, corner, strict=True)}


def hypervolume_box(table: pd.DataFrame, goals: Objectives, reference: Mapping[str, float]) -> float:
    """The volume between the best value of every objective and the reference, which a front cannot exceed."""
    corner = _signs(goals) * np.array([reference[column] for column in goals])
    return float(np.prod(corner - usable(table, goals).min(axis=0)))


def hypervolume_history(
    table: pd.DataFrame, goals: Objectives, reference: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The front's hypervolume after each trial, in trial order: trial, images_trained (cumulative), hypervolume.

    As in `front`, an architecture counts with the mean of its repeats so far, so the volume may fall where one is trained again.
    The hypervolume's unit is the product of the objectives' units. The reference is in the columns' own units and
    defaults to `reference_point`; give one to compare runs.
    """
    ordered = table.sort_values("trial")
    images = ordered["images_seen"].fillna(0).cumsum()
    given = reference_point(table, goals) if reference is None else reference
    volumes = np.zeros(len(ordered))
    if given:
        volumes = _volumes(ordered, goals, _signs(goals) * np.array([given[column] for column in goals]))
    history = {"trial": ordered["trial"].to_numpy(), "images_trained": images.to_numpy(), "hypervolume": volumes}
    return pd.DataFrame(history).astype({"trial": "int64", "images_trained": "int64"})


def _volumes(ordered: pd.DataFrame, goals: Objectives, corner: np.ndarray) -> np.ndarray:
    """The hypervolume of the front of every row and those before it: it grows from row to row, but where an architecture is
    trained again its mean moves, and the front begins anew."""
    complete = (ordered["state"] == "complete").to_numpy(dtype=bool)
    values = minimised(ordered, goals)
    repeats = np.flatnonzero(complete & ~np.isfinite(pooled(ordered, goals)).all(axis=1))
    volumes = np.zeros(len(ordered))
    for start, end in pairwise([0, *repeats, len(ordered)]):
        means = pooled(ordered[: start + 1], goals)
        points = np.vstack([means, values[start + 1 : end]])
        points[~complete[: len(points)]] = math.nan
        volumes[start:end] = growing_volume(points, corner)[start:]
    return volumes


def knee(table: pd.DataFrame, goals: Objectives) -> int:
    """The front's knee: the member farthest below the plane through its extremes, objectives scaled to [0, 1].

    With two objectives that is the line through the two ends (Das 1999). With more, it is the plane that meets every
    axis alike, so the knee has the smallest sum of scaled objectives. The scale comes from the ends of the front, so look
    at those too. A tie, as of a front of two, goes to the smallest sum on the scale of all that was trained, then to the
    earlier trial.
    """
    on_front = front(table, goals)
    members = table[on_front]
    if not len(members):
        raise InputError("results: no trial was trained to the end, so there is no front to pick from")
    order = np.argsort(members["trial"].to_numpy(dtype=int), kind="stable")
    everything = pooled(table, goals)
    members, values = members.iloc[order], everything[on_front.to_numpy()][order]
    trained = everything[(table["state"] == "complete").to_numpy() & np.isfinite(everything).all(axis=1)]
    sums = [_scaled(values, ends).sum(axis=1).round(12) for ends in (trained, values)]
    return int(members["trial"].iloc[np.lexsort(sums)[0]])


def _scaled(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Objectives with the least of `ends` at 0 and the largest at 1."""
    low, high = ends.min(axis=0), ends.max(axis=0)
    scaled: np.ndarray = (values - low) / np.where(high > low, high - low, 1.0)
    return scaled


def _signs(goals: Objectives) -> np.ndarray:
    return np.array([1.0 if direction == "minimise" else -1.0 for direction in goals.values()])
