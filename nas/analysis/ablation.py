"""What an ablation says, and how surely: cell means, main effects, interactions and paired differences, with intervals.

Repeat r of every cell was trained with the same seed, so each repeat is a replicate of the whole design. A contrast (a
difference, a main effect, an interaction) is computed inside each repeat, where what the seed adds to all cells cancels,
and Student's t is applied to its values over the repeats: the paired t-test. It assumes that these few values are normal,
and nothing about the cells' variances. `variance="pooled"` estimates one residual variance from all cells instead (the
randomised block design, Montgomery 2017, section 4.1): more degrees of freedom, but wrong when cells scatter unequally.

Intervals are for one quantity at a time. p-values are Holm's (1979), over the rows of one table. All training noise that
a seed decides is in them; the choice of data, evaluation captions and base model is not.

    table = nas.analysis.results.load("runs/ufogen_lora/2026-01-01_10-00-00")
    seen = nas.analysis.ablation.read(table, "fid_efficientnet_lite0")
    print(nas.analysis.ablation.render(nas.analysis.ablation.differences(seen), "markdown"))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from nas.analysis import results
from nas.analysis.statistics import contrasts
from nas.analysis.statistics.contrasts import MOST_REPEATS, Array, Variance
from nas.errors import InputError
from nas.menu import nearest
from nas.runs import description

Style = Literal["markdown", "latex", "html", "plain"]
FILES: dict[Style, tuple[str, str]] = {
    "markdown": ("md", "## {}\n\n"),
    "latex": ("tex", "% {}\n"),
    "html": ("html", "<h2>{}</h2>\n"),
}
KINDS = ("cells", "differences", "main_effects", "interactions")
MOST_TOLD = 4  # settled differences spelled out in the answer's sentence
FACTOR = "factor."


@dataclass(frozen=True)
class Responses:
    """One column of an ablation: a value for every cell and repeat."""

    column: str
    levels: pd.DataFrame
    """One row per cell: `cell`, and a column per factor with the name of its level."""
    values: Array
    """(cells, repeats); NaN where a training is missing."""
    reference: int
    """The row of the cell that others are compared with."""
    goal: str | None = None
    """'minimise' or 'maximise', if known."""
    confidence: float = 0.95
    variance: Variance = "separate"

    @property
    def factors(self) -> list[str]:
        return [str(column) for column in self.levels if column != "cell"]

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Each cell's level of each factor."""
        columns = [list(map(str, self.levels[factor])) for factor in self.factors]
        return [dict(zip(self.factors, row, strict=True)) for row in zip(*columns, strict=True)]

    @property
    def base_levels(self) -> dict[str, str]:
        """The reference's level of each factor."""
        return self.rows[self.reference]

    def levels_of(self, factor: str) -> list[str]:
        """A factor's levels, in the order of the cells."""
        return list(dict.fromkeys(row[factor] for row in self.rows))


# --- reading ---------------------------------------------------------------------------------------------------------


def read(
    table: pd.DataFrame,
    column: str,
    reference: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    variance: Variance = "separate",
) -> Responses:
    """A column of `nas.analysis.results.load`'s frame by cell and repeat; only trials that were trained to the end count.

    `reference` maps factors to levels, as the study file does; by default what the run says. Raises InputError for a
    frame that is no ablation, a column that is not there, or a reference that is no cell.
    """
    if "cell" not in table:
        raise InputError("ablation: the run has no cells; expected one of a study with an ablation section")
    if column not in table or not pd.api.types.is_numeric_dtype(table[column]):
        numbers = [str(name) for name in table.select_dtypes("number")]
        raise InputError(f"ablation: no column {column!r} with numbers{nearest(column, numbers)}")
    complete = table[(table["state"] == "complete") & table["cell"].notna()]
    if complete.empty:
        raise InputError("ablation: no cell was trained to the end")
    factors = [str(name) for name in table if str(name).startswith(FACTOR)]
    levels = complete.drop_duplicates("cell")[["cell", *factors]].astype(str).reset_index(drop=True)
    levels = levels.rename(columns=lambda name: str(name).removeprefix(FACTOR))
    wide = complete.pivot_table(index="cell", columns="repeat", values=column, aggfunc="last", dropna=False, sort=False)
    values = wide.reindex(levels["cell"]).to_numpy(dtype=float)
    found = _reference_row(levels, reference if reference is not None else table.attrs.get("reference") or {})
    goal = (table.attrs.get("conditions") or {}).get(column, {}).get("higher_is_better")
    way = None if goal is None else "maximise" if goal else "minimise"
    return Responses(column, levels, values, found, way, confidence, variance)


def _reference_row(levels: pd.DataFrame, reference: Mapping[str, str]) -> int:
    matches = np.ones(len(levels), dtype=bool)
    for factor, level in reference.items():
        if factor not in levels:
            raise InputError(f"ablation: reference: no factor {factor!r}{nearest(factor, list(levels.columns[1:]))}")
        matches &= (levels[factor] == str(level)).to_numpy()
    rows = np.flatnonzero(matches)
    if not len(rows):
        spelled = ", ".join(f"{factor}={level}" for factor, level in reference.items())
        raise InputError(f"ablation: reference: no cell {spelled} was trained to the end")
    return int(rows[0])


# --- tables ----------------------------------------------------------------------------------------------------------


def cells(seen: Responses) -> pd.DataFrame:
    """Every cell: cell, its levels, n, mean, sd, low, high. The interval is Student's over the cell's own repeats."""
    counts = np.isfinite(seen.values).sum(axis=1)
    mean, sd = contrasts.moments(seen.values)
    half = contrasts.quantile(seen.confidence, counts - 1) * sd / np.sqrt(np.maximum(counts, 1))
    found = seen.levels.assign(n=counts, mean=mean, sd=sd, low=mean - half, high=mean + half)
    return _titled(found, "cells", seen)


def differences(seen: Responses) -> pd.DataFrame:
    """Every other cell less the reference, paired by repeat: cell, against, and the columns of `contrasts.tested`."""
    others = [row for row in range(len(seen.levels)) if row != seen.reference]
    weights = np.zeros((len(others), len(seen.levels)))
    weights[range(len(others)), others] = 1.0
    weights[:, seen.reference] = -1.0
    names = seen.levels["cell"].to_numpy()
    told = {"cell": names[others], "against": [names[seen.reference]] * len(others)}
    return _titled(pd.DataFrame(told | _tested(seen, weights)), "differences", seen)


def ratios(seen: Responses) -> pd.DataFrame:
    """`differences` of logarithms, as ratios: estimate, low and high are the cell over the reference. Needs values > 0."""
    if (seen.values <= 0).any():
        raise InputError(f"ablation: {seen.column} has values of 0 or less, which have no ratios")
    found = differences(replace(seen, values=np.log(seen.values)))
    found[["estimate", "low", "high"]] = np.exp(found[["estimate", "low", "high"]])
    return _titled(found, "ratios", seen)


def main_effects(seen: Responses) -> pd.DataFrame:
    """What each level does against the reference's level of its factor, averaged over all pairs of cells that differ in
    that factor alone: factor, level, against, and the columns of `contrasts.tested`."""
    told, weights = [], []
    for factor, base in seen.base_levels.items():
        for level in seen.levels_of(factor):
            found = _contrast(seen, {factor: (level, base)}) if level != base else None
            if found is not None:
                told.append({"factor": factor, "level": level, "against": base})
                weights.append(found)
    return _titled(_joined(told, ["factor", "level", "against"], seen, weights), "main_effects", seen)


def interactions(seen: Responses) -> pd.DataFrame:
    """How much the effect of one level changes with another factor's (a difference of differences), against the
    reference's levels: factor, level, with_factor, with_level, and the columns of `contrasts.tested`. Empty unless factorial."""
    told, weights = [], []
    for (a, a0), (b, b0) in combinations(seen.base_levels.items(), 2):
        for level, other in product(seen.levels_of(a), seen.levels_of(b)):
            if level == a0 or other == b0:
                continue
            found = _contrast(seen, {a: (level, a0), b: (other, b0)})
            if found is not None:
                told.append({"factor": a, "level": level, "with_factor": b, "with_level": other})
                weights.append(found)
    names = ["factor", "level", "with_factor", "with_level"]
    return _titled(_joined(told, names, replace(seen, goal=None), weights), "interactions", seen)


def against(seen: Responses, value: float) -> pd.DataFrame:
    """Every cell's values over a fixed number (the base model's score), as a ratio: cell, n, estimate, low, high.

    Student's interval of the mean logarithm. Needs values > 0.
    """
    if value <= 0 or (seen.values <= 0).any():
        raise InputError(f"ablation: {seen.column} has values of 0 or less, which have no ratios")
    found = cells(replace(seen, values=np.log(seen.values / value)))
    ratio = np.exp(found[["mean", "low", "high"]].to_numpy())
    told = {"n": found["n"], "estimate": ratio[:, 0], "low": ratio[:, 1], "high": ratio[:, 2]}
    return _titled(found[["cell"]].assign(**told), "against", seen)


def tables(seen: Responses) -> dict[str, pd.DataFrame]:
    """All of them by kind, without those that have no rows; without interactions main effects are the differences again."""
    makers: tuple[Callable[[Responses], pd.DataFrame], ...] = (cells, differences, main_effects, interactions)
    made = {kind: make(seen) for kind, make in zip(KINDS, makers, strict=True)}
    if made["interactions"].empty:
        del made["main_effects"]
    return {kind: table for kind, table in made.items() if len(table)}


def answer(found: Mapping[str, Mapping[str, pd.DataFrame]]) -> str:
    """What `of_run`'s tables come to, in a sentence per column."""
    return " ".join(_said(column, kinds["differences"]) for column, kinds in found.items() if "differences" in kinds)


def _said(column: str, table: pd.DataFrame) -> str:
    text = readable(table)
    settled = [row for row, verdict in enumerate(table["verdict"]) if verdict in ("better", "worse", "higher", "lower")]
    if not table["p"].notna().any():
        return f"{column}: one repeat says nothing about chance."
    if not settled:
        return f"{column}: no cell is settled to differ from {table['against'].iloc[0]!r}."
    interval = text.columns[list(text.columns).index("estimate") + 1]
    parts = [
        f"{table['cell'].iloc[row]} is {table['verdict'].iloc[row]}, {text['estimate'].iloc[row]} ({text[interval].iloc[row]})"
        for row in settled[:MOST_TOLD]
    ]
    counts = {"more settled": len(settled) - len(parts), "not settled": len(table) - len(settled)}
    rest = "".join(f"; {count} {what}" for what, count in counts.items() if count)
    return f"{column}, against {table['against'].iloc[0]!r}: {'; '.join(parts)}{rest}."


# --- contrasts -------------------------------------------------------------------------------------------------------


def _contrast(seen: Responses, changes: Mapping[str, tuple[str, str]]) -> Array | None:
    """Weights (cells,) of the effect of changing each named factor from its second level to its first.

    With two factors: of the difference of differences. Averaged over every setting of the other factors for which all
    cells exist; None if there is none.
    """
    row_of = {tuple(row.values()): index for index, row in enumerate(seen.rows)}
    others = [{factor: level for factor, level in row.items() if factor not in changes} for row in seen.rows]
    sums, sets = np.zeros(len(seen.rows)), 0
    for setting in {tuple(row.values()): row for row in others}.values():
        corners = []
        for signs in product((0, 1), repeat=len(changes)):
            chosen = {factor: pair[sign] for (factor, pair), sign in zip(changes.items(), signs, strict=True)}
            levels = {**setting, **chosen}
            corners.append((row_of.get(tuple(levels[factor] for factor in seen.factors)), (-1.0) ** sum(signs)))
        if all(row is not None for row, _ in corners):
            sets += 1
            for row, sign in corners:
                sums[row] += sign
    return sums / sets if sets else None


def _tested(seen: Responses, weights: Array) -> dict[str, Any]:
    return contrasts.tested(seen.values, weights, seen.confidence, seen.variance, seen.goal)


def _joined(told: list[dict[str, str]], names: list[str], seen: Responses, weights: list[Array]) -> pd.DataFrame:
    tested = _tested(seen, np.reshape(np.array(weights, dtype=float), (len(weights), len(seen.levels))))
    return pd.DataFrame({name: [row[name] for row in told] for name in names} | tested)


def _titled(table: pd.DataFrame, kind: str, seen: Responses) -> pd.DataFrame:
    table.attrs = {"kind": kind, "column": seen.column, "confidence": seen.confidence, "variance": seen.variance}
    return table


# --- tables to read --------------------------------------------------------------------------------------------------


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of this file as text: the estimate with its interval in one cell, to the digits the interval allows."""
    main = "mean" if "mean" in table else "estimate"
    names = [str(name) for name in table.columns[: list(table.columns).index("n")]]
    text = table[names].astype(str)
    text["n"] = table["n"].astype(str)
    level = f"{table.attrs.get('confidence', 0.95):.0%} interval"
    decimals = [
        _decimals(low, high, value) for low, high, value in table[["low", "high", main]].itertuples(index=False)
    ]
    text[main] = [_number(value, places) for value, places in zip(table[main], decimals, strict=True)]
    text[level] = [
        "" if math.isnan(low) else f"{_number(low, places)} to {_number(high, places)}"
        for low, high, places in zip(table["low"], table["high"], decimals, strict=True)
    ]
    if "p_holm" in table:
        text["p (Holm)"] = ["" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in table["p_holm"]]
        text["verdict"] = table["verdict"]
        text["repeats to settle"] = [
            "" if math.isnan(n) else f"> {MOST_REPEATS:,}" if math.isinf(n) else f"{n:,.0f}"
            for n in table["repeats_needed"]
        ]
    return text.rename(columns=lambda name: str(name).replace("_", " "))


def render(table: pd.DataFrame, style: Style) -> str:
    """A table of this file as Markdown, LaTeX (booktabs), HTML, everything escaped, or as plain text."""
    text = readable(table)
    if style == "plain":
        return text.to_markdown(index=False, disable_numparse=True, tablefmt="simple")
    if style == "html":
        return text.to_html(index=False, border=0)
    if style == "latex":
        styled = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
        return str(styled.to_latex(hrules=True))
    return text.replace(r"\|", r"\\|", regex=True).to_markdown(index=False, disable_numparse=True)


def of_run(run_dir: Path) -> dict[str, dict[str, pd.DataFrame]]:
    """Every table of an ablation's run, by column (in the order of the study file) and kind."""
    settings = description.resolved(run_dir)
    asked = settings.get("ablation") or {}
    options = {"confidence": asked.get("confidence") or 0.95, "variance": asked.get("variance", "separate")}
    table = results.load(run_dir)
    return {column: tables(read(table, column, **options)) for column in results.objectives(settings)}


def together(found: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """`of_run`'s tables as one, a row per table row, with `column` and `table` in front; what a kind does not have is NaN."""
    rows = [t.assign(column=column, table=kind) for column, kinds in found.items() for kind, t in kinds.items()]
    whole = pd.concat(rows, ignore_index=True)
    first = ["column", "table"]
    return whole[[*first, *(name for name in whole if name not in first)]]


def write(run_dir: Path) -> dict[str, dict[str, pd.DataFrame]]:
    """Write the tables of a run into its directory and return them.

    effects.csv has the numbers in full, one row per table row, with `column` and `table`; effects.md, effects.tex and
    effects.html are to be read.
    """
    found = of_run(run_dir)
    together(found).to_csv(run_dir / "effects.csv", index=False)
    for style, (suffix, heading) in FILES.items():
        parts = [
            heading.format(f"{column}: {kind.replace('_', ' ')}") + render(table, style) + "\n"
            for column, kinds in found.items()
            for kind, table in kinds.items()
        ]
        (run_dir / f"effects.{suffix}").write_text("\n".join(parts), encoding="utf-8")
    return found


def _decimals(low: float, high: float, value: float) -> int:
    """Digits after the point that show the interval's half-width with two digits; of a bare value, four digits."""
    half = (high - low) / 2
    scale, digits = (half, 2) if math.isfinite(half) and half > 0 else (abs(value), 4)
    if not math.isfinite(scale) or scale == 0:
        return 3
    return min(max(0, digits - 1 - math.floor(math.log10(scale))), 8)


def _number(value: float, places: int) -> str:
    return "" if math.isnan(value) else f"{value:,.{places}f}"
