"""Fronts of noisy measurements: who is on them for sure, and which architecture to measure again.

Trials of one architecture with other seeds are repeats. Their spread, pooled over all architectures, is the noise; from
it come draws of what the true means may be, and everything here is counted over those draws. All objectives are
minimised, one array (repeats, objectives) per architecture. Objectives that never differ between repeats (parameters,
multiply-adds) have no noise and are taken as they are.

Assumptions: noise is normal, equal for all architectures, independent between objectives, and nothing is known about
the means beforehand. With the last one, draws scatter around measurements that scatter already. Counted over simulated
problems (tests/test_racing.py): while the noise of one measurement is at most 0.6 of the spread between architectures,
94 to 99 % of those declared sure are on the front; where it is as large as that spread few are declared (1 in 5 to 10
problems), of which 80 to 92 % are. Members of a crowded front get too low a probability, and with noise as large as the
spread a third of those declared out are on it. Repeats cure both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from nas.documents.section import Section
from nas.search.dominance import hypervolume, nondominated

Values = Mapping[str, ArrayLike]  # architecture -> (repeats, objectives), all to be minimised
Array = NDArray[np.float64]
Place = Literal["sure", "perhaps", "no"]

DRAWS = 2000  # the standard error of a probability is then at most 0.011
HYPERVOLUME_DRAWS = 500  # a hypervolume takes longer than a front


class Racing(Section):
    """What may be spent on certainty after the search."""

    trials: int = Field(0, ge=0, le=1_000_000)
    """Extra trials that repeat architectures whose place on the front is undecided; 0 repeats none."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Probability from which an architecture is on the front for sure; below 1 - confidence it is not."""


@dataclass(frozen=True)
class Noise:
    """The standard deviation between repeats of one architecture, and how well it is known."""

    sd: tuple[float, ...]
    """Per objective, in its unit; NaN while no architecture was measured twice."""
    degrees: int
    """Degrees of freedom: measurements less architectures."""

    @property
    def known(self) -> bool:
        return self.degrees > 0


@dataclass(frozen=True)
class Verdict:
    """One architecture and the front."""

    key: str
    n: int
    """Measurements."""
    mean: tuple[float, ...]
    """Per objective, as measured."""
    probability: float
    """Of being on the front; NaN while the noise is unknown."""
    place: Place
    """Perhaps, also while the noise is unknown."""


def noise(values: Values) -> Noise:
    """Pooled within-architecture standard deviation: sqrt(sum of squared deviations from own means / degrees).

    The within-group mean square of a one-way analysis of variance; degrees = sum of (n - 1).
    """
    measured = _checked(values)
    squares = sum(((rows - _mean(rows)) ** 2).sum(0) for rows in measured.values())
    degrees = sum(len(rows) - 1 for rows in measured.values())
    spread = np.sqrt(squares / degrees) if degrees else np.full_like(squares, np.nan)
    return Noise(tuple(spread.tolist()), degrees)


def membership(values: Values, draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Each architecture's probability of being on the front of the true means; NaN while the noise is unknown.

    The share of draws in which no other dominates it. Ties on all objectives both stay, as in `nas.analysis.fronts.front`.
    ValueError for values that are not finite, ragged, or missing.
    """
    measured = _checked(values)
    if not noise(values).known:
        return dict.fromkeys(measured, float("nan"))
    shares = _on_front(_drawn_means(measured, draws, seed)).mean(0)
    return dict(zip(measured, shares.tolist(), strict=True))


def verdicts(values: Values, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95) -> list[Verdict]:
    """Every architecture's verdict, in the order given."""
    measured = _checked(values)
    probabilities = membership(values, draws, seed)
    return [
        Verdict(key, len(rows), tuple(_mean(rows).tolist()), probabilities[key], _place(probabilities[key], confidence))
        for key, rows in measured.items()
    ]


def hypervolume_interval(
    values: Values, reference: ArrayLike, draws: int = HYPERVOLUME_DRAWS, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval for the hypervolume of the true means up to `reference` (objectives,); NaNs while the noise is unknown.

    The front of noisy means looks better than the true one, and that of draws around them better still by about as
    much. So the interval is the basic one (Davison & Hinkley 1997, chapter 5), 2 H - the quantiles over draws, with
    H the hypervolume of the means: it is corrected for that bias and need not contain H. (Over simulated fronts the
    quantiles themselves covered the truth in 26 to 93 % of cases, these in 88 to 97 %.) Volumes are at least 0.
    """
    measured = _checked(values)
    corner = np.asarray(reference, dtype=np.float64)
    objectives = next(iter(measured.values())).shape[1]
    if corner.shape != (objectives,) or not np.isfinite(corner).all():
        raise ValueError(f"racing: the reference is {corner.tolist()}, expected {objectives} finite numbers")
    if not noise(values).known:
        return float("nan"), float("nan")
    volume = hypervolume(_means(measured), corner)
    drawn = [hypervolume(points, corner) for points in _drawn_means(measured, draws, seed)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return max(0.0, float(2 * volume - high)), max(0.0, float(2 * volume - low))


def next_repeats(values: Values, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95) -> list[str]:
    """The architectures worth another measurement, the most urgent first; empty when everything is decided.

    First members of the front of means that were measured once: luck put some of them there, and without repeats there
    is no noise to reckon with. Then the undecided ones (probability from 1 - confidence to confidence), the least often
    measured first, of those the nearest to one half: all that are still in the race get as many measurements, as in
    Hoeffding races (Maron & Moore 1994). Nearest to one half alone would spend everything on ties that no repeat
    decides: over simulated fronts it left more undecided than repeating all alike, this leaves fewer. Without any noise
    nothing is repeated.
    """
    measured = _checked(values)
    spread = noise(values)
    if spread.known and not any(spread.sd):
        return []
    members = nondominated(_means(measured))
    once = [key for key, member in zip(measured, members, strict=True) if member and len(measured[key]) == 1]
    undecided = [
        (verdict.n, abs(verdict.probability - 0.5), verdict.key)
        for verdict in (verdicts(values, draws, seed, confidence) if spread.known else [])
        if verdict.place == "perhaps" and verdict.key not in once
    ]
    return once + [key for *_, key in sorted(undecided, key=lambda each: each[:2])]


# --- the parts -------------------------------------------------------------------------------------------------------


def _checked(values: Values) -> dict[str, Array]:
    """The values as arrays (repeats, objectives); ValueError names the architecture that has others."""
    if not values:
        raise ValueError("racing: got no architectures, expected at least one")
    measured: dict[str, Array] = {}
    for key, rows in values.items():
        try:
            measured[key] = np.asarray(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"racing: the values of {key} are not an array (repeats, objectives) of numbers"
            ) from error
    width = next(iter(measured.values())).shape[-1:]
    for key, array in measured.items():
        if array.ndim != 2 or not array.size or array.shape[1:] != width:
            raise ValueError(
                f"racing: the values of {key} have shape {array.shape}, expected (repeats, {_first(width)})"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"racing: the values of {key} are {array.tolist()}, expected finite numbers")
    return measured


def _first(width: tuple[int, ...]) -> int | str:
    return width[0] if width and width[0] else "objectives"


def _mean(rows: Array) -> Array:
    """The mean over repeats; of equal numbers exactly that number, so that ties stay ties."""
    return np.asarray(rows[0] + (rows - rows[0]).mean(0))


def _means(measured: Mapping[str, Array]) -> Array:
    return np.stack([_mean(rows) for rows in measured.values()])


def _drawn_means(measured: Mapping[str, Array], draws: int, seed: int) -> Array:
    """What the true means may be, (draws, architectures, objectives), under the prior p(means, variance) ~ 1 / variance.

    Gelman et al. 2013, Bayesian Data Analysis, section 3.2, with one variance per objective shared by all architectures:
    variance = degrees sd^2 / chi^2(degrees), mean = measured mean + sqrt(variance / n) z. An architecture's draws are then
    Student's t with the pooled degrees. Fewer draws are the first of more.
    """
    if draws < 1:
        raise ValueError(f"racing: draws={draws}, expected at least 1")
    spread = noise(measured)
    of_variance, of_means = np.random.default_rng(seed).spawn(2)
    counts = np.array([len(rows) for rows in measured.values()])
    means = _means(measured)
    sd = np.array(spread.sd) * np.sqrt(spread.degrees / of_variance.chisquare(spread.degrees, (draws, len(spread.sd))))
    normal = of_means.standard_normal((draws, *means.shape))
    return np.asarray(means + normal * sd[:, None, :] / np.sqrt(counts)[None, :, None])


def _on_front(points: Array) -> NDArray[np.bool_]:
    """For each draw of (draws, n, objectives), which of the n points no other dominates: (draws, n)."""
    members = np.ones(points.shape[:2], dtype=bool)
    for index in range(points.shape[1]):
        point = points[:, index : index + 1]
        members[:, index] = ~np.any((points <= point).all(-1) & (points < point).any(-1), axis=1)
    return members


def _place(probability: float, confidence: float) -> Place:
    if probability >= confidence:
        return "sure"
    return "no" if probability < round(1 - confidence, 12) else "perhaps"
