"""Members of a space ranked by scores that need no training, on a study's own data, and how far such a ranking was found right.

No score is believed by itself: beside each stands its measured agreement with long trainings on the study's proxy, where
`nas trust` measured it, and the costs stand beside the scores as the signals that are for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nas.analysis.statistics import agreement
from nas.disk import files
from nas.errors import InputError, shown
from nas.menu import nearest
from nas.networks.backbones import Backbone
from nas.settings import study_file
from nas.space import screen
from nas.space.search_space import SearchSpace
from nas.trial.checks.check import check
from nas.trust import anchors, zero_cost
from nas.trust.anchor_table import AnchorTable

SIGNALS = (*zero_cost.NAMES, "macs", "params")


@dataclass(frozen=True)
class Ranking:
    """What was found."""

    members: pd.DataFrame
    """A row for each, the best first: key, rank (the mean of its ranks by the signals asked for, 1 the best), params, macs, the
    scores, and its choices as text."""
    trust: list[agreement.Agreement]
    """What was measured of the scores and costs on this proxy; empty where nothing was."""


def run(
    path: Path,
    overrides: Sequence[str],
    members: int,
    by: Sequence[str],
    out: Path,
    cache: Path,
    workers: int,
    say: Callable[[str], None],
) -> Ranking:
    """Score so many members of a study's space, spread over its multiply-adds, and write `ranking.csv` to `out`.

    What `out` holds already of the same settings is not scored again. Raises InputError for a study without a space, too few
    members within its budget, and an unknown score.
    """
    for name in by or [""]:
        if name not in SIGNALS:
            raise InputError(f"--by: unknown score {shown(name)}{nearest(name, [*SIGNALS])}")
    with study_file.opened(path, overrides) as (study, _):
        if study.space is None or study.search is None:
            raise InputError("search: nas zero-cost ranks the members of a space; this study has none")
        space = SearchSpace.load(study.space)
        check(study, space)
    anchors.prepared(study)
    table = AnchorTable(out)
    table.check(agreement.proxy_settings(study.resolved()), ())
    rows = anchors.scored_on_paper(study, space, members, table, cache, workers, say)
    ranked = ordered(rows, by)
    architectures = {config.key: config for config in table.architectures()}
    ranked["choices"] = [_choices(space, architectures[key]) for key in ranked["key"]]
    with files.replacing(out / "ranking.csv") as partial:
        ranked.to_csv(partial, index=False)
    return Ranking(ranked, _known(agreement.find(study.resolved(), cache)))


def ordered(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows of a table of scores, the best first by the mean of their ranks by these signals; larger is hoped better."""
    found = rows[["key", *dict.fromkeys(("params", "macs", *zero_cost.NAMES))]].copy()
    found.insert(1, "rank", found[list(by)].rank(ascending=False).mean(axis=1))
    return found.sort_values(["rank", "macs"], ignore_index=True)


def _choices(space: SearchSpace, member: Backbone) -> str:
    """A member's choices as text."""
    found = screen.position(space, member) or {}
    return ", ".join(f"{name} {choice}" for name, choice in found.items())


def _known(trust: agreement.Trust | None) -> list[agreement.Agreement]:
    """How the signals of a ranking agree with long trainings."""
    wanted = {"macs", "params", *(f"zero-cost: {name}" for name in zero_cost.NAMES)}
    return [found for found in trust.agreements if found.signal in wanted] if trust else []
