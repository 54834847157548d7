"""Which trial `pick` means: the knee, of the study's objectives or of other columns, the best by a column, or a number."""

from __future__ import annotations

import pandas as pd

from nas.analysis.fronts import Objectives, front, knee
from nas.analysis.people import preference
from nas.analysis.results import PROXY_COSTS
from nas.errors import ArgumentError
from nas.menu import nearest


def pick(table: pd.DataFrame, goals: Objectives, how: str) -> int:
    """The trial number that `knee`, `knee:<column>,<column>`, `best:<column>` or `trial:<number>` names; InputError with the
    nearest otherwise.

    `knee:` is the knee of the front of these columns, such as human_preference,macs, in place of the study's objectives.
    `best:fid` finds `fid_efficientnet_lite0` if no other column begins so. `trial:` takes any trial that was trained.
    """
    kind, _, name = how.partition(":")
    if how == "knee":
        return knee(table, goals)
    if kind == "knee":
        return knee(table, objectives(table, goals, name))
    if kind == "best":
        return _best(table, goals, name)
    if kind == "trial":
        return _numbered(table, name)
    ways = ["knee", *(f"best:{column}" for column in goals), "trial:<number>"]
    raise ArgumentError(f"pick: {how!r} is not a way to pick a trial{nearest(how, ways)}")


def objectives(table: pd.DataFrame, goals: Objectives, names: str) -> Objectives:
    """The columns that are named, with commas between them, each with its direction. InputError with the nearest otherwise."""
    columns = [_column(f"knee:{names}", name.strip(), _scores_and_costs(table)) for name in names.split(",")]
    return {column: "maximise" if _higher_is_better(table, goals, column) else "minimise" for column in columns}


def _best(table: pd.DataFrame, goals: Objectives, name: str) -> int:
    column = _column(f"best:{name}", name, _scores_and_costs(table))
    complete = table[(table["state"] == "complete") & table[column].notna()]
    if not len(complete):
        raise ArgumentError(f"pick: best:{name}: no trial that was trained to the end has a value for {column}")
    off_front = ~front(table, goals)[complete.index]
    ranked = complete.assign(_value=complete[column].astype(float), _off_front=off_front)
    rising = [not _higher_is_better(table, goals, column), True, True]
    return int(ranked.sort_values(["_value", "_off_front", "trial"], ascending=rising)["trial"].iloc[0])


def _column(how: str, name: str, columns: list[str]) -> str:
    begun = [column for column in columns if column.startswith(f"{name}_")]
    if name in columns:
        return name
    if len(begun) == 1:
        return begun[0]
    if name == preference.COLUMN:
        raise ArgumentError(f"pick: {how}: nobody has judged this run yet; nas judge asks a person")
    raise ArgumentError(f"pick: {how}: no such column{nearest(name, columns)}")


def _higher_is_better(table: pd.DataFrame, goals: Objectives, column: str) -> bool:
    if column in goals:
        return goals[column] == "maximise"
    return bool(table.attrs.get("conditions", {}).get(column, {}).get("higher_is_better", False))


def _numbered(table: pd.DataFrame, name: str) -> int:
    numbers = [str(number) for number in table["trial"]]
    if name not in numbers:
        expected = f"expected a number from {numbers[0]} to {numbers[-1]}" if numbers else "the run has no trials yet"
        raise ArgumentError(f"pick: trial:{name}: no such trial, {expected}")
    row = table.iloc[numbers.index(name)]
    if pd.isna(row["rung"]):
        raise ArgumentError(f"pick: trial:{name} was never trained ({row['state']}: {row['reason']})")
    return int(name)


def _scores_and_costs(table: pd.DataFrame) -> list[str]:
    """The columns a person can name as an objective or ask the best of: metrics and costs at deploy scale."""
    columns = list(table.columns)
    return columns[columns.index("on_front") + 1 : columns.index(PROXY_COSTS[0])]
