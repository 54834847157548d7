"""Contrasts over the repeats of an ablation: Student's t, Holm's procedure, power. `nas.analysis.ablation` says which and why."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Variance = Literal["separate", "pooled"]
POWER = 0.8
MOST_REPEATS = 10_000  # more than this is no plan


def tested(
    values: Array, weights: Array, confidence: float = 0.95, variance: Variance = "separate", goal: str | None = None
) -> dict[str, Any]:
    """Contrasts (k, cells) of values (cells, repeats), NaN where one is missing, tested against 0.

    Columns: n, estimate, low, high, p, p_holm, verdict, repeats_needed.

    n counts the repeats in which all cells of the contrast are there. `repeats_needed` is for rows that are not settled:
    how many repeats, in total and at least one more, would find an effect of the estimated size, at the estimated
    scatter, with probability 0.8 at this row's step of Holm's procedure. The estimates are uncertain, so it is a rough plan.
    """
    estimate, error, counts, freedom, spread = _errors(values, weights, variance)
    half = quantile(confidence, freedom) * error
    p = _p_values(estimate, error, freedom)
    adjusted = holm(p)
    alpha = 1 - confidence
    settled = adjusted < alpha
    step = alpha / _holm_factor(p)
    cells_used = len(values) if variance == "pooled" else 2
    needed = [
        math.nan if done or not math.isfinite(s) else max(n + 1.0, repeats_needed(e, s, level, cells=cells_used))
        for done, n, e, s, level in zip(settled, counts, estimate, spread, step, strict=True)
    ]
    return {
        "n": counts,
        "estimate": estimate,
        "low": estimate - half,
        "high": estimate + half,
        "p": p,
        "p_holm": adjusted,
        "verdict": [_verdict(*row, goal) for row in zip(estimate, adjusted, settled, strict=True)],
        "repeats_needed": np.array(needed, dtype=float),
    }


def _errors(
    values: Array, weights: Array, variance: Variance
) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64], Array]:
    """For each contrast: its estimate, standard error, repeats, degrees of freedom, and the scatter of one repeat."""
    used = weights != 0
    present = ~((used[:, :, None] & ~np.isfinite(values)).any(axis=1))  # (k, repeats)
    per_repeat = np.where(present, weights @ np.nan_to_num(values), np.nan)
    counts = present.sum(axis=1)
    estimate, spread = moments(per_repeat)
    freedom = counts - 1
    if variance == "pooled":
        residual, freedom_of_all = _residual(values)
        spread = residual * np.sqrt((weights**2).sum(axis=1))
        freedom = np.full(len(weights), freedom_of_all)
    return estimate, spread / np.sqrt(np.maximum(counts, 1)), counts, freedom, spread


def _residual(values: Array) -> tuple[float, int]:
    """Standard deviation and degrees of freedom of what cells and repeats, added, leave over; complete repeats only."""
    block = values[:, np.isfinite(values).all(axis=0)]
    freedom = (block.shape[0] - 1) * (block.shape[1] - 1)
    if freedom < 1:
        return math.nan, 0
    left = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0, keepdims=True) + block.mean()
    return float(np.sqrt((left**2).sum() / freedom)), freedom


def moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (n - 1) of each row, NaN left out; NaN where there are too few."""
    counts = np.isfinite(values).sum(axis=1)
    mean = np.nansum(values, axis=1) / np.where(counts > 0, counts, np.nan)
    squares = np.nansum((values - mean[:, None]) ** 2, axis=1)
    return mean, np.sqrt(squares / np.where(counts > 1, counts - 1, np.nan))


def quantile(confidence: float, freedom: Any) -> Array:
    """Student's two-sided quantile; NaN without degrees of freedom."""
    degrees = np.asarray(freedom, dtype=float)
    return np.asarray(special.stdtrit(np.where(degrees > 0, degrees, np.nan), (1 + confidence) / 2), dtype=float)


def _p_values(estimate: Array, error: Array, freedom: Any) -> Array:
    """Two-sided p of Student's t. Without any scatter it is 0, or 1 for no difference."""
    degrees = np.where(np.asarray(freedom) > 0, freedom, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((error == 0) & (estimate == 0), 0.0, np.abs(estimate) / error)
    return np.asarray(2 * special.stdtr(degrees, -t), dtype=float)


def holm(p: Array) -> Array:
    """Holm's (1979) step-down p-values: the i-th smallest of m times m - i + 1, made to rise, at most 1. NaN stays NaN."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    ordered = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(ordered), 0, -1)
    adjusted[ordered] = np.minimum(np.maximum.accumulate(p[ordered] * factors), 1.0)
    return adjusted


def _holm_factor(p: Array) -> Array:
    """What Holm's procedure multiplies each p by: m for the smallest, 1 for the largest."""
    factors = np.ones(len(p))
    known = np.flatnonzero(~np.isnan(p))
    factors[known[np.argsort(p[known], kind="stable")]] = np.arange(len(known), 0, -1)
    return factors


def power(effect: float, spread: float, repeats: int, alpha: float, cells: int = 2) -> float:
    """Probability that a two-sided t-test at `alpha` finds an effect whose values per repeat scatter by `spread`.

    Noncentral t (Cohen 1988, section 2.3; R's power.t.test, strict): df = (cells - 1)(repeats - 1), noncentrality
    effect / spread x sqrt(repeats). `cells` is 2 for a paired difference, all of them where the variance is pooled.
    """
    freedom = (cells - 1) * (repeats - 1)
    critical = special.stdtrit(freedom, 1 - alpha / 2)
    shift = abs(effect) / spread * math.sqrt(repeats)
    far = special.nctdtr(freedom, shift, -critical)  # scipy 1.17 gives NaN where this is tiny
    return float(1 - special.nctdtr(freedom, shift, critical) + np.nan_to_num(far))


def repeats_needed(effect: float, spread: float, alpha: float = 0.05, wanted: float = POWER, cells: int = 2) -> float:
    """The fewest repeats with which `power` reaches `wanted`; infinity if more than 10,000."""
    if spread == 0:
        return 2.0 if effect else math.inf
    ratio = abs(effect) / spread
    normal = special.ndtri(1 - alpha / 2) + special.ndtri(wanted)
    if ratio == 0 or (normal / ratio) ** 2 > MOST_REPEATS:
        return math.inf
    repeats = max(2, math.floor((normal / ratio) ** 2))  # what a known scatter would need; Student's t needs a few more
    while power(ratio, 1.0, repeats, alpha, cells) < wanted:
        repeats += 1
    return float(repeats)


def _verdict(estimate: float, p: float, settled: bool, goal: str | None) -> str:
    if math.isnan(p):
        return ""
    if not settled:
        return "not settled"
    if goal is None:
        return "higher" if estimate > 0 else "lower"
    return "better" if (estimate > 0) == (goal == "maximise") else "worse"
