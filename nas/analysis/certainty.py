"""How sure the answer of a search is: who is on the front beyond noise, and how far the proxy's scores can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nas.analysis import fronts, naming, results
from nas.analysis.fronts import Objectives
from nas.analysis.statistics import agreement
from nas.search import racing

TAU = "Kendall's rank correlation tau: 1 is the same order, 0 none"
SIGNALS = {
    "warm": "brief trial",
    "scratch": "brief trial from scratch",
    "slice": "slice of the supernet, as it is",
    "long": "long training",
    "zero-cost": "score without training",
}


@dataclass(frozen=True)
class Contender:
    """An architecture that is, or may be, on the front."""

    trial: int
    """Its first complete trial, which stands for it."""
    trials: int
    means: dict[str, float]
    """Of the objectives over its trials, in the columns' own units."""
    probability: float
    """Of being on the front; NaN while the noise is unknown."""
    place: racing.Place


@dataclass(frozen=True)
class Certainty:
    """The front with its noise."""

    contenders: tuple[Contender, ...]
    degrees: int
    """Degrees of freedom behind the noise: complete trials less architectures; 0: nothing was repeated."""
    noise: dict[str, float]
    """Standard deviation between repeats of one architecture, by objective that has any; in the columns' units."""
    hypervolume: tuple[float, float] | None
    """95 % interval of the front's share of the box between the best and the worst values; None while unknown."""


def confidence(settings: Mapping[str, Any]) -> float:
    """The probability from which a study's resolved settings call a place sure."""
    return float((settings.get("racing") or {}).get("confidence", racing.Racing().confidence))


def of_front(table: pd.DataFrame, goals: Objectives, confidence: float = 0.95) -> Certainty:
    """Who is on the front for sure (with this probability) and who perhaps, best first; members of the front of means are
    always listed."""
    measured = fronts.measurements(table, goals)
    if not measured:
        return Certainty((), 0, {}, None)
    signs = [1.0 if way == "minimise" else -1.0 for way in goals.values()]
    spread = racing.noise(measured)
    identities = fronts.identities(table)
    first = table[table["state"] == "complete"].groupby(identities)["trial"].min()
    on_front = set(identities[table["on_front"]])
    contenders = [
        Contender(
            int(first[verdict.key]),
            verdict.n,
            {column: sign * value for column, sign, value in zip(goals, signs, verdict.mean, strict=True)},
            verdict.probability,
            verdict.place if spread.known else "perhaps",
        )
        for verdict in racing.verdicts(measured, confidence=confidence)
        if verdict.key in on_front or (spread.known and verdict.place != "no")
    ]
    contenders.sort(key=lambda one: (-(0.0 if math.isnan(one.probability) else one.probability), one.trial))
    noise = {column: sd for column, sd in zip(goals, spread.sd, strict=True) if spread.known and sd > 0}
    return Certainty(tuple(contenders), spread.degrees, noise, _hypervolume(table, goals, measured))


def _hypervolume(
    table: pd.DataFrame, goals: Objectives, measured: Mapping[str, np.ndarray]
) -> tuple[float, float] | None:
    corner = fronts.reference_point(table, goals)
    signed = np.array([corner[c] if way == "minimise" else -corner[c] for c, way in goals.items()])
    low, high = racing.hypervolume_interval(measured, signed, confidence=0.95)
    box = float(np.prod(signed - np.min([rows.min(axis=0) for rows in measured.values()], axis=0)))
    return None if math.isnan(low) or box <= 0 else (low / box, min(1.0, high / box))


def of_proxy(settings: Mapping[str, Any], cache: Path) -> tuple[agreement.Trust | None, list[agreement.Agreement]]:
    """What was measured of this study's proxy (None: nothing), and its objectives' rows that cannot be trusted."""
    found = agreement.find(settings, cache)
    if found is None:
        return None, []
    goals = results.objectives(settings)
    return found, [each for each in found.of_trials() if each.target in goals and each.doubtful]


def warning(settings: Mapping[str, Any], cache: Path) -> str:
    """One line when the study's scores may not order architectures as long trainings do; empty when they do."""
    found, doubtful = of_proxy(settings, cache)
    if found is None:
        return "how far these brief trials can be trusted was not measured for this proxy: nas trust STUDY does it"
    told = ", ".join(f"{naming.label(each.target)} {_tau(each)}" for each in doubtful)
    if not told:
        return ""
    return (
        f"weak signal: the order of these brief trials may say little about that of long trainings, by {told} "
        f"({TAU}, with its 95 % interval; warned of where that reaches below {agreement.TRUSTED})"
    )


# --- for the page ----------------------------------------------------------------------------------------------------


def front_page(found: Certainty, goals: Objectives) -> dict[str, Any]:
    """What the report shows of the front's certainty: heads, rows (trial, verdict, cells), noise and hypervolume in words."""
    words = {"sure": "sure", "perhaps": "perhaps", "no": "only in the mean"}
    rows = [
        {
            "trial": one.trial,
            "place": words[one.place],
            "probability": "" if math.isnan(one.probability) else f"{one.probability:.2f}",
            "n": one.trials,
            "cells": [naming.shown(column, value) for column, value in one.means.items()],
        }
        for one in found.contenders
    ]
    told = [f"{naming.label(column)} {naming.shown(column, sd)}" for column, sd in found.noise.items()]
    share = "" if found.hypervolume is None else "{:.1%} to {:.1%}".format(*found.hypervolume)
    return {
        "heads": [naming.label(column) for column in goals],
        "rows": rows,
        "degrees": found.degrees,
        "noise": ", ".join(told),
        "hypervolume": share,
    }


def proxy_page(settings: Mapping[str, Any], cache: Path) -> dict[str, Any]:
    """What the report shows of the trust in the proxy: how it was measured, one row per score, and a warning or ""."""
    found, _ = of_proxy(settings, cache)
    page: dict[str, Any] = {
        "warning": warning(settings, cache),
        "measured": found is not None,
        "rows": [],
        "others": [],
    }
    if found is None:
        return page
    between = {each.target: each for each in found.between_seeds()}
    for each in found.of_trials():
        again = between.get(each.target)
        cells = [_tau(each), f"{each.regret:.2f} [{each.regret_low:.2f}, {each.regret_high:.2f}]", _tau(again)]
        page["rows"].append({"label": naming.label(each.target), "doubtful": each.doubtful, "cells": cells})
    heads, others = agreement.summary(found.agreements)
    heads = [_in_words(head) for head in heads]
    others = [[_in_words(row[0]), *row[1:]] for row in others]
    trainings = "one long training" if found.seeds == 1 else f"{found.seeds} long trainings"
    plan = f"{found.anchors} architectures, {trainings} each of {found.long_images:,} images from scratch"
    return page | {"plan": plan, "heads": heads, "others": others}


def _in_words(text: str) -> str:
    """A heading or a signal of `trust.summary` as people say it."""
    kind, _, rest = text.partition(": ")
    if kind == "tau":
        return f"tau, {naming.label(rest)}"
    if text.startswith("regret@"):
        return f"regret of the top {text.removeprefix('regret@')}"
    words = rest if rest in ("same score", "seed 0 with seed 1") else naming.label(rest)
    return f"{SIGNALS[kind]}: {words}" if kind in SIGNALS else naming.label(text)


def _tau(found: agreement.Agreement | None) -> str:
    return f"{found.tau:.2f} [{found.tau_low:.2f}, {found.tau_high:.2f}]" if found else ""
