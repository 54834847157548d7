"""Which decision mattered: PED-ANOVA with the direction of each effect, and the scores behind every value of a choice.

A sampler that learns does not vary one choice at a time, so all of this shows where to look, not what causes what.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from nas.fronts import Objectives
from nas.naming import cell
from nas.results import COSTS

MOST_VALUES = 6  # numeric choices with more values than this are shown by quarters
FEWEST_TRIALS = 8
FEWEST_AT_THE_TOP = 5  # Optuna's advice for a stable PED-ANOVA
SHUFFLES = 19  # an importance above all of 19 with shuffled scores is beyond chance at the 5 % level


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
    """Mean score by choice, axes with the largest share first: axis, value, n, mean, share.

    `share` is the part of the scores' variance that the axis explains beyond what as many random groups would (adjusted
    R squared, at least 0).
    """
    if not len(points):
        return pd.DataFrame(columns=["axis", "value", "n", "mean", "share"])
    shares = {axis: _explained(part) for axis, part in points.groupby("axis", sort=False)}
    grouped = points.groupby(["axis", "value"], sort=False)
    found = grouped.agg(n=("score", "size"), mean=("score", "mean"), order=("order", "first")).reset_index()
    found["share"] = found["axis"].map(shares)
    ordered = found.sort_values(["share", "axis", "order"], ascending=[False, True, True])
    return ordered.drop(columns="order").reset_index(drop=True)


def of_decisions(table: pd.DataFrame, curves: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """The importance of every choice for every objective, the most important first, with the direction of its effect.

    Columns: column, axis, share (of the column's importances), beyond_chance, best, worst (values with the best and the
    worst mean), gain (their difference, in the column's unit), trend (Spearman's rho of a numeric choice with the column;
    NaN for others). Columns seen in fewer than 8 trials are left out.
    """
    rows = []
    for column, way in goals.items():
        points = scores_by_choice(table, curves, column)
        if points["trial"].nunique() < FEWEST_TRIALS:
            continue
        sign = 1.0 if way == "minimise" else -1.0
        found = ped_anova(points, sign)
        for axis, part in points.groupby("axis", sort=False):
            rows.append({"column": column, "axis": axis, **found.loc[axis], **direction(part, sign)})
    names = ["column", "axis", "share", "beyond_chance", "best", "worst", "gain", "trend"]
    told = pd.DataFrame(rows, columns=names)
    order = told.groupby("axis")["share"].mean().rank(ascending=False, method="first")
    return told.assign(order=told["axis"].map(order)).sort_values(["order"], kind="stable").drop(columns="order")


def ped_anova(points: pd.DataFrame, sign: float, seed: int = 0) -> pd.DataFrame:
    """By axis: share (of all importances) and beyond_chance (above all of 19 evaluations with shuffled scores).

    Watanabe et al. 2023, "PED-ANOVA" (arXiv 2304.10255), by Optuna, which knows conditional choices: how far the values
    among the best tenth (at least five trials) depart from those among all. `sign` is -1 where higher is better.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.importance import PedAnovaImportanceEvaluator

    scores = sign * points.groupby("trial")["score"].first()
    offered = {axis: list(dict.fromkeys(part["value"])) for axis, part in points.groupby("axis", sort=False)}
    kinds = {str(axis): CategoricalDistribution(values) for axis, values in offered.items()}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for trial, part in points.groupby("trial"):
        choices = {str(axis): value for axis, value in zip(part["axis"], part["value"], strict=True)}
        known: dict[str, BaseDistribution] = {axis: kinds[axis] for axis in choices}
        study.add_trial(optuna.trial.create_trial(params=choices, distributions=known, value=scores[trial]))
    optuna.logging.set_verbosity(verbosity)
    top = max(0.1, min(0.5, FEWEST_AT_THE_TOP / len(scores)))
    judge = PedAnovaImportanceEvaluator(target_quantile=top)
    axes = list(kinds)

    def importances(values: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that lower is better, which is how it is called
            found = judge.evaluate(study, target=lambda trial: float(values[trial.number]))
        return np.array([found.get(axis, 0.0) for axis in axes])

    rng = np.random.default_rng(seed)
    seen = importances(scores.to_numpy())
    chance = np.max([importances(rng.permutation(scores.to_numpy())) for _ in range(SHUFFLES)], axis=0)
    shares = seen / (seen.sum() or 1.0)
    return pd.DataFrame({"share": shares, "beyond_chance": seen > chance}, index=pd.Index(axes, name="axis"))


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


def _explained(part: pd.DataFrame) -> float:
    groups = part.groupby("value")["score"]
    count, kinds = len(part), groups.ngroups
    total = float(((part["score"] - part["score"].mean()) ** 2).sum())
    within = float(((part["score"] - groups.transform("mean")) ** 2).sum())
    if count <= kinds or total == 0.0:
        return 0.0
    return max(0.0, 1.0 - (within / (count - kinds)) / (total / (count - 1)))


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
