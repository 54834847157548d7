"""Which decision mattered: how much of the scores each explains, how sure that is, and which way it goes.

A sampler that learns does not vary one choice at a time, so all of this shows where to look, not what causes what.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nas.analysis.fronts import Objectives
from nas.analysis.naming import cell
from nas.analysis.results import COSTS
from nas.analysis.statistics.contrasts import holm

MOST_VALUES = 6  # numeric choices with more values than this are shown by quarters
FEWEST_TRIALS = 8
SHUFFLES = 999  # of the scores among the trials
CHANCE = 0.05  # p-values from here on are told as chance
ROUNDING = 1e-9  # shares that differ by less are equal


def values_of(table: pd.DataFrame, curves: pd.DataFrame, column: str) -> pd.Series:
    """A column by trial: of a cost all that was proposed, of a score every trained trial at the first rung.

    At the first rung all have seen the same images; later ones hold only survivors, which would flatter choices that
    are stopped early.
    """
    if column in COSTS:
        return table.dropna(subset=[column]).set_index("trial")[column].astype(float)
    if column not in curves or not len(curves):
        return pd.Series(dtype=float)
    first = curves[(curves["rung"] == curves["rung"].min()) & curves[column].notna()]
    scores: pd.Series = first.set_index("trial")[column].astype(float)
    return scores


def scores_by_choice(table: pd.DataFrame, curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """axis, value (text), order, trial, score, from `values_of`; numeric choices with many values are grouped by quarters."""
    scores = values_of(table, curves, column)
    trained = table[table["trial"].isin(scores.index)]
    parts = []
    for axis in (str(name) for name in table if str(name).startswith("arch.")):
        values = _grouped(trained[axis].dropna())
        if values.nunique() < 2:
            continue
        numbers = trained.loc[values.index, "trial"].astype(int)
        part = {"axis": axis[5:], "value": values.map(cell), "order": values.map(_rank), "trial": numbers}
        parts.append(pd.DataFrame(part).assign(score=scores.reindex(numbers).to_numpy()))
    empty = pd.DataFrame(columns=["axis", "value", "order", "trial", "score"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def effects(points: pd.DataFrame) -> pd.DataFrame:
    """Mean score by choice, axes that explain most first: axis, value, n, mean, and `share` and `p` as in `explained`."""
    if not len(points):
        return pd.DataFrame(columns=["axis", "value", "n", "mean", "share", "p"])
    found = explained(points)
    grouped = points.groupby(["axis", "value"], sort=False)
    means = grouped.agg(n=("score", "size"), mean=("score", "mean"), order=("order", "first")).reset_index()
    means = means.join(found, on="axis").sort_values(["share", "axis", "order"], ascending=[False, True, True])
    return means.drop(columns="order").reset_index(drop=True)


def of_decisions(table: pd.DataFrame, curves: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """The importance of every choice for every objective, the most important first, with the direction of its effect.

    Columns: column, axis, share and p (see `explained`), best, worst (values with the best and the worst mean), gain (their
    difference, in the column's unit), trend (Spearman's rho of a numeric choice with the column; NaN for others). Columns
    seen in fewer than 8 trials are left out.
    """
    rows = []
    for column, way in goals.items():
        points = scores_by_choice(table, curves, column)
        if points["trial"].nunique() < FEWEST_TRIALS:
            continue
        found = explained(points)
        for axis, part in points.groupby("axis", sort=False):
            sign = 1.0 if way == "minimise" else -1.0
            rows.append({"column": column, "axis": axis, **found.loc[axis], **direction(part, sign)})
    names = ["column", "axis", "share", "p", "best", "worst", "gain", "trend"]
    told = pd.DataFrame(rows, columns=names)
    order = told.groupby("axis")["share"].mean().rank(ascending=False, method="first")
    return told.assign(order=told["axis"].map(order)).sort_values(["order"], kind="stable").drop(columns="order")


def explained(points: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """By axis, of the frame of `scores_by_choice`: share and p.

    `share`: the part of the scores' variance that lies between the values of the axis, beyond what as many random groups would
    take (adjusted R squared, at least 0). `p`: how often shuffled scores give as much (999 shuffles), times the number of
    axes that were looked at (Holm), so that among many axes of noise the best is not taken for real.
    """
    scores = points.groupby("trial")["score"].first()
    rng = np.random.default_rng(seed)
    drawn = np.stack([scores.to_numpy(float), *(rng.permutation(scores.to_numpy(float)) for _ in range(SHUFFLES))])
    rows = {}
    for axis, part in points.groupby("axis", sort=False):
        codes = pd.factorize(part["value"])[0]
        places = scores.index.get_indexer(pd.Index(part["trial"])).astype(np.int64)
        shares = _adjusted(drawn[:, places], np.eye(codes.max() + 1)[codes])
        rows[axis] = max(0.0, shares[0]), float((shares >= shares[0] - ROUNDING).mean())
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["share", "p"]).rename_axis("axis")
    return found.assign(p=holm(found["p"].to_numpy()))


def _adjusted(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Adjusted R squared of every row of scores (draws, n) by groups (n, k), one-hot; 0 where there is nothing to explain."""
    n, k = groups.shape
    centred = scores - scores.mean(axis=1, keepdims=True)
    total = (centred**2).sum(axis=1)
    within = total - ((centred @ groups) ** 2 / groups.sum(axis=0)).sum(axis=1)
    if n <= k:
        return np.zeros(len(scores))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, 1 - (within / (n - k)) / (total / (n - 1)), 0.0)


def sureness(p: float) -> str:
    """How sure a share is, in as few words as a cell has room for."""
    return ("p < 0.01" if p < 0.01 else f"p {p:.2f}") if p < CHANCE else "may be chance"


def direction(part: pd.DataFrame, sign: float) -> dict[str, Any]:
    """Which value of a choice is best and which worst by mean score, by how much, and the trend of a numeric one."""
    means = part.groupby("value", sort=False)["score"].mean()
    best, worst = str((sign * means).idxmin()), str((sign * means).idxmax())
    numeric = pd.to_numeric(part["value"], errors="coerce").notna().all()
    trend = part["order"].rank().corr(part["score"].rank()) if numeric else float("nan")
    return {"best": best, "worst": worst, "gain": abs(float(means[best] - means[worst])), "trend": float(trend)}


def parallel(table: pd.DataFrame, goals: Objectives) -> tuple[list[str], pd.DataFrame]:
    """What the parallel coordinates show: the choices in which trained trials differ, then the objectives (column names),
    and the trials that have all objectives."""
    trained = table[table["state"].isin(["complete", "stopped"])].dropna(subset=list(goals))
    axes = [str(name) for name in trained if str(name).startswith("arch.") and trained[name].astype(str).nunique() > 1]
    return [*axes, *goals], trained


def _grouped(values: pd.Series) -> pd.Series:
    """Choices as they are; many numbers by quarters."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any() or numbers.nunique() <= MOST_VALUES:
        return values
    return pd.qcut(numbers.astype(float), 4, duplicates="drop", precision=2).astype(str)


def _rank(value: Any) -> float:
    """Numbers sort by size, text keeps the order in which it was met."""
    try:
        return float(str(value).lstrip("(").split(",")[0])
    except ValueError:
        return 0.0
