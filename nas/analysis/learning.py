"""Whether trials learnt anything, in words: how far their best scores have come from an untrained network to the autoencoder's
copies of real pictures (`nas.analysis.reference_lines.way`).
"""

from __future__ import annotations

import pandas as pd

from nas.analysis import naming, reference_lines
from nas.analysis.fronts import Objectives
from nas.analysis.reference_lines import Lines
from nas.numbers import listed


def nothing_learnt(table: pd.DataFrame, goals: Objectives, lines: Lines) -> str:
    """What to say where trials draw no better than an untrained network; empty where they do, or nobody knows."""
    if reference_lines.learnt(table, goals, lines) is not False:
        return ""
    complete, told = table[table["state"] == "complete"], []
    for column, sense in goals.items():
        if column in lines["untrained"].scores:
            best = complete[column].min() if sense == "minimise" else complete[column].max()
            scored = [
                lines[name] for name in ("untrained", "autoencoded") if name in lines and column in lines[name].scores
            ]
            beside = ", ".join(f"{line.label} {naming.shown(column, line[column])}" for line in scored)
            told.append(f"{naming.measured(column, best)} ({beside})")
    return (
        "Nothing was learnt: in no score has a trial come a third of the way from an untrained network to the autoencoder's "
        f"copies of real pictures. The best are {listed(told)}."
    )


def little_learnt(table: pd.DataFrame, lines: Lines) -> str:
    """The scores in which no trial has come a third of the way, objectives or not; empty where there are none.

    Scores that copies do not have, such as a loss, are left out.
    """
    complete, told = table[table["state"] == "complete"], []
    for column, condition in table.attrs.get("conditions", {}).items():
        known = all(name in lines and column in lines[name].scores for name in ("untrained", "autoencoded"))
        if not known or column not in complete or complete[column].isna().all():
            continue
        sense = "maximise" if condition["higher_is_better"] else "minimise"
        best = float(complete[column].max() if sense == "maximise" else complete[column].min())
        come = reference_lines.way(column, sense, best, lines)
        if come is not None and come < reference_lines.LEARNT:
            told.append(f"{naming.measured(column, best)} is {max(come, 0):.0%} of the way".replace("%", " %"))
    if not told:
        return ""
    way = "from an untrained network to the autoencoder's copies of real pictures"
    return f"Little was learnt by some scores: {listed(told)} {way}."
