"""What a run's judgements say: scores with intervals, how alike judges are, and which metrics order trials as people do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from nas.analysis import naming
from nas.analysis.fronts import Objectives
from nas.analysis.people import judges, preference
from nas.analysis.people.judges import Alike, Judge
from nas.analysis.people.preference import COLUMN, Scores
from nas.analysis.statistics import agreement
from nas.analysis.statistics.agreement import LEAST_ANCHORS, Agreement
from nas.numbers import listed, number_of
from nas.runs import judgements
from nas.runs.judgements import Judgement

VERDICTS = {
    "agrees": ("{} orders them as people do", "{} order them as people do"),
    "disagrees": ("{} orders them the other way", "{} order them the other way"),
    "open": ("of {} it cannot be told yet", "of {} it cannot be told yet"),
}


@dataclass(frozen=True)
class Judged:
    """All that the report and `nas judge --results` tell."""

    given: tuple[Judgement, ...]
    scores: Scores
    metrics: tuple[Agreement, ...]
    """Kendall's tau of every metric with people over the judged trials, 1 the same order, with an interval over trials. Of fewer
    than LEAST_ANCHORS trials there are none."""
    asked: tuple[str, ...]
    """The metrics that are objectives of the study; all where none is."""

    @cached_property
    def judges(self) -> list[Judge]:
        return judges.each(self.given)

    @cached_property
    def between(self) -> dict[tuple[str, str], Alike]:
        return judges.between(self.given)

    @property
    def apart(self) -> bool:
        """Whether the answers tell the trials apart."""
        return self.scores.p < preference.CHANCE

    def verdict(self, metric: Agreement) -> str:
        """A key of VERDICTS; nothing agrees with answers that may be chance."""
        if not self.apart:
            return "open"
        return "agrees" if metric.tau_low > 0 else "disagrees" if metric.tau_high < 0 else "open"


def of_run(run_dir: Path, table: pd.DataFrame, goals: Objectives) -> Judged | None:
    """`table`: the run's results. None where nobody judged. InputError for a damaged file of judgements."""
    given = judgements.read(run_dir)
    return of(given, table, goals) if given else None


def of(given: Sequence[Judgement], table: pd.DataFrame, goals: Objectives) -> Judged:
    """What these answers say of trials with these results."""
    scores = preference.fit(preference.choices(given))
    metrics = tuple(_metrics(table, scores))
    columns = [one.signal for one in metrics]
    asked = [column for column in columns if column in goals]
    return Judged(tuple(given), scores, metrics, tuple(asked or columns))


def sentence(found: Judged) -> str:
    """Whether the metrics agree with the judges, or why that cannot be told."""
    who = "one person" if len(found.judges) == 1 else f"{len(found.judges)} people"
    trials = len(found.scores.trials)
    told = f"{number_of(len(found.given), 'answer')} of {who} on {number_of(trials, 'trial')}"
    if not found.apart:
        return (
            f"{told} do not tell the trials apart (p = {found.scores.p:.2g}): they are too few, or the trials look alike to "
            "people. So it cannot be told whether the metrics agree."
        )
    if not found.metrics:
        return f"{told} tell some apart; whether metrics agree can be told of {LEAST_ANCHORS} judged trials that have scores."
    return f"{told} tell some apart: {'; '.join(_verdicts(found))}."


def _verdicts(found: Judged) -> Iterator[str]:
    """A clause a verdict."""
    by_verdict: dict[str, list[str]] = {}
    for one in found.metrics:
        if one.signal in found.asked:
            by_verdict.setdefault(found.verdict(one), []).append(naming.within(one.signal))
    for kind, (one_name, several) in VERDICTS.items():
        if names := by_verdict.get(kind):
            yield (one_name if len(names) == 1 else several).format(listed(names))


def _metrics(table: pd.DataFrame, scores: Scores) -> Iterator[Agreement]:
    """Every metric that all judged trials of the run have, and that differs between them."""
    people = {int(trial): value for trial, value in zip(scores.trials, scores.values, strict=True) if trial.isdigit()}
    rows = table[table["trial"].isin(list(people))]
    truth = np.array([people[int(trial)] for trial in rows["trial"]])
    for column, told in table.attrs.get("conditions", {}).items():
        usable = column != COLUMN and column in rows and rows[column].notna().all() and rows[column].nunique() > 1
        if usable and len(rows) >= LEAST_ANCHORS:
            sign = 1.0 if told.get("higher_is_better") else -1.0
            yield agreement.agreement(column, COLUMN, sign * rows[column].to_numpy(dtype=float), truth)
