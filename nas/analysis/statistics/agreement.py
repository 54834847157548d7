"""How far a cheap signal can be trusted: rank correlation with long trainings, over anchor architectures.

Everything is computed from the table of measurements that `nas.trust.anchors` makes. Kendall's tau-b is signed so that +1 means
"orders the architectures as the long trainings do"; regret@k is what is lost by believing the signal: how far the best of
its top k lies below the best of all, as a share of the range from worst to best. Intervals are 95 % bootstrap percentiles
over architectures. A stored result is found again by the settings it was measured under.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from nas import assets
from nas.disk import files
from nas.errors import InputError, brief

PROXY_SETTINGS = (
    "space",
    "dataset",
    "autoencoder",
    "conditioning",
    "proxy",
    "objective",
    "training",
    "sampling",
    "evaluation",
)
TRUSTED = 0.3  # an interval of tau that reaches below this is warned of
RESAMPLES = 2_000
TOP = 3
LEAST_ANCHORS = 8  # fewer give a bootstrap interval that says nothing
COSTS = ("params", "macs")
EARLIER = "scratch of "  # kinds of long trainings before their end
KINDS = ("slice", "warm", "scratch", "long")
ZERO_COST = ("grad_norm", "snip", "synflow", "naswot", "zico")

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """A signal against a truth, over architectures."""

    signal: str
    target: str
    n: int
    tau: float
    tau_low: float
    tau_high: float
    regret: float
    regret_low: float
    regret_high: float

    @property
    def doubtful(self) -> bool:
        """Whether the interval of tau reaches below what can be trusted."""
        return not self.tau_low >= TRUSTED


def agreement(signal: str, target: str, scores: Values, truth: Values) -> Agreement:
    """Scores and truth (n,) by architecture, both the larger the better. ValueError below LEAST_ANCHORS."""
    if len(scores) < LEAST_ANCHORS:
        raise ValueError(f"an interval needs at least {LEAST_ANCHORS} architectures, got {len(scores)}")
    drawn = np.random.default_rng(0).integers(0, len(scores), (RESAMPLES, len(scores)))
    regrets = [regret(scores[rows], truth[rows]) for rows in drawn]
    measured = tau(scores, truth), *_interval(taus(scores, truth, drawn)), regret(scores, truth), *_interval(regrets)
    return Agreement(signal, target, len(scores), *(round(float(value), 4) for value in measured))


def tau(scores: Values, truth: Values) -> float:
    """Kendall's tau-b; 0 where a side is constant, because such a signal orders nothing."""
    value = float(kendalltau(scores, truth).statistic)
    return 0.0 if np.isnan(value) else value


def regret(scores: Values, truth: Values, k: int = TOP) -> float:
    """(best of all - best of the k with the highest scores) / (best - worst), of the truth; 0 to 1."""
    chosen = np.argsort(-scores, kind="stable")[:k]
    span = truth.max() - truth.min()
    return float((truth.max() - truth[chosen].max()) / span) if span else 0.0


def taus(scores: Values, truth: Values, drawn: NDArray[np.int64]) -> Values:
    """Tau-b of every resample, rows of indices (resamples, n), by the pairs' signs weighted with how often each was drawn."""
    often = np.stack([(drawn == index).sum(1) for index in range(len(scores))], axis=1).astype(float)
    ranks = (rankdata(values) for values in (scores, truth))  # of infinite scores too
    x, y = (np.sign(values[:, None] - values[None]) for values in ranks)
    agreeing, untied_x, untied_y = (((often @ signs) * often).sum(1) for signs in (x * y, abs(x), abs(y)))
    both = np.sqrt(untied_x * untied_y)
    return np.asarray(np.divide(agreeing, both, out=np.zeros_like(both), where=both > 0))


def _interval(values: Sequence[float] | Values) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


# --- signals of an anchor table --------------------------------------------------------------------------------------


def table(rows: pd.DataFrame, targets: Mapping[str, bool]) -> list[Agreement]:
    """Every signal in the anchors' rows against every target, a column with whether higher is better.

    The truth is the mean over seeds of the long trainings; a signal is what one trial would see (seed 0). The first rows
    are the ceiling and the floor: how well two seeds agree with each other. `scratch` is the beginning of the long training with
    the same seed, which flatters it; so are long trainings of lesser lengths, `scratch of N images`.
    """
    rows = at_one_length(rows)
    measured = rows[["kind", "seed"]].drop_duplicates().itertuples(index=False, name=None)
    by_kind = {
        (kind, seed): rows[(rows["kind"] == kind) & (rows["seed"] == seed)].set_index("key").sort_index()
        for kind, seed in measured
    }
    found: list[Agreement] = []
    for target, higher in targets.items():
        sign = 1.0 if higher else -1.0
        long = rows[rows["kind"] == "long"].groupby("key")[target].mean().sort_index() * sign
        for kind in ("long", "warm", "scratch"):
            pair = [by_kind[kind, seed][target] * sign for seed in (0, 1) if (kind, seed) in by_kind]
            if len(pair) == 2:
                found += _compared(f"{kind}: seed 0 with seed 1", target, *pair)
        for name, scores in _signals(by_kind, target, sign).items():
            found += _compared(name, target, scores, long)
    return found


def at_one_length(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with long trainings of one length, the greatest that enough architectures have; what is longer is left out, and
    what is shorter is of the kind `scratch of N images`.
    """
    long = rows["kind"] == "long"
    trained = rows[long].groupby("images_seen")["key"].nunique()
    if trained.empty:
        return rows
    enough = trained[trained >= LEAST_ANCHORS]
    length = enough.index.max() if len(enough) else trained.index.max()
    found: pd.DataFrame = rows[~(long & (rows["images_seen"] > length))].copy()
    shorter = (found["kind"] == "long") & (found["images_seen"] < length)
    found.loc[shorter, "kind"] = [f"{EARLIER}{int(images):,} images" for images in found.loc[shorter, "images_seen"]]
    return found


def pairs(rows: pd.DataFrame, targets: Mapping[str, bool]) -> dict[str, pd.DataFrame]:
    """For each target a frame by architecture with the columns slice, warm, scratch (seed 0, where measured) and long."""
    rows, found = at_one_length(rows), {}
    for target in targets:
        by_kind = {kind: rows[(rows["kind"] == kind) & (rows["seed"] == 0)].set_index("key")[target] for kind in KINDS}
        by_kind["long"] = rows[rows["kind"] == "long"].groupby("key")[target].mean()
        found[target] = pd.DataFrame({kind: values for kind, values in by_kind.items() if len(values)})
    return found


def _compared(name: str, target: str, scores: pd.Series, truth: pd.Series) -> list[Agreement]:
    """Over the architectures both have; nothing where they are too few or a value is missing."""
    both = pd.concat([scores, truth], axis=1, join="inner").dropna()
    if len(both) < LEAST_ANCHORS:
        return []
    return [agreement(name, target, both.iloc[:, 0].to_numpy(float), both.iloc[:, 1].to_numpy(float))]


def _signals(by_kind: Mapping[tuple[str, int], pd.DataFrame], target: str, sign: float) -> dict[str, pd.Series]:
    """Each signal as a series by architecture, the larger the better."""
    found: dict[str, pd.Series] = {}
    earlier = [kind for kind, seed in by_kind if kind.startswith(EARLIER) and seed == 0]
    for kind in ("warm", "scratch", "slice", *earlier):
        if (kind, 0) not in by_kind:
            continue
        part = by_kind[kind, 0]
        found[f"{kind}: {target}"] = part[target] * sign
        if target != "denoising_loss":
            found[f"{kind}: denoising_loss"] = -part["denoising_loss"]
        if kind == "warm":
            levels = [column for column in map(str, part) if column.startswith("denoising_loss_t")]
            found |= {f"warm: {column}": -part[column] for column in levels}
    costs = next(iter(by_kind.values()))
    found |= {column: costs[column].astype(float) for column in COSTS}
    if ("zero_cost", 0) in by_kind:
        part = by_kind["zero_cost", 0]
        found |= {f"zero-cost: {column}": part[column] for column in ZERO_COST if column in part}
    return found


# --- stored beside the proxy -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trust:
    """What was measured for one proxy."""

    settings: dict[str, Any]
    """The settings of the study it was measured under, those that decide what a trial means."""
    anchors: int
    seeds: int
    long_images: int
    """Images of the long from-scratch trainings."""
    agreements: tuple[Agreement, ...]

    def of_trials(self) -> list[Agreement]:
        """How a study's own trials agree with long trainings, one row per score."""
        kind = "scratch" if self.settings["training"]["init"] == "scratch" else "warm"
        return [found for found in self.agreements if found.signal == f"{kind}: {found.target}"]

    def between_seeds(self) -> list[Agreement]:
        """How two seeds of a study's trials agree with each other, one row per score."""
        kind = "scratch" if self.settings["training"]["init"] == "scratch" else "warm"
        return [found for found in self.agreements if found.signal == f"{kind}: seed 0 with seed 1"]

    def save(self, folder: Path) -> Path:
        """Write it where `find` looks: in the package's assets or a cache folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _name(self.settings)
        files.write_text(path, json.dumps(asdict(self), indent=1) + "\n")
        return path


def proxy_settings(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a study's resolved settings that decides what a trial's scores mean."""
    later = [name for name in ("prior",) if name in resolved]  # tables that were recorded before it compare as they did
    return {name: resolved.get(name) for name in (*PROXY_SETTINGS, *later)}


def summary(found: Sequence[Agreement]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: one row per signal, for each target tau and regret with their intervals."""
    targets = list(dict.fromkeys(each.target for each in found))
    by_place = {(each.signal, each.target): each for each in found}
    signals = dict.fromkeys(_generic(each) for each in found)
    headings = ["signal", *(text for target in targets for text in (f"tau: {target}", f"regret@{TOP}"))]
    cells = []
    for signal in signals:
        row = [signal]
        for target in targets:
            each = by_place.get((signal.replace("same score", target), target))
            row.append(f"{each.tau:.2f} [{each.tau_low:.2f}, {each.tau_high:.2f}]" if each else "")
            row.append(f"{each.regret:.2f} [{each.regret_low:.2f}, {each.regret_high:.2f}]" if each else "")
        cells.append(row)
    return headings, cells


def _generic(found: Agreement) -> str:
    """A signal's name, with "same score" where it is the target's own column."""
    kind, _, column = found.signal.partition(": ")
    return f"{kind}: same score" if column == found.target else found.signal


def find(resolved: Mapping[str, Any], cache: Path) -> Trust | None:
    """What was measured for the proxy of these settings; None if nothing was."""
    settings = proxy_settings(resolved)
    for folder in (cache, assets.FOLDER):
        path = folder / _name(settings)
        if path.is_file():
            stored = files.read_object(path)
            try:
                return Trust(**{**stored, "agreements": tuple(Agreement(**each) for each in stored["agreements"])})
            except (KeyError, TypeError) as error:
                raise InputError(f"{path}: not what nas trust wrote ({brief(error)}); remove it") from None
    return None


def _name(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"trust_{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
