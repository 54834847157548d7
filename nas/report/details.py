"""What the page knows of every trial: what a click opens, ranges choose by, and two trials are compared in."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nas.analysis import findings, naming
from nas.analysis.findings import Run
from nas.analysis.naming import label, shown
from nas.analysis.people import preference
from nas.report.palette import FRONT, GREY, KNEE, LINE, PALE, SERIES
from nas.runs.pictures import Grid

MARKS = {
    "stopped": ("stopped early", PALE, "x"),
    "complete": ("fully trained", GREY, "circle"),
    "front": ("front", FRONT, "circle"),
    "knee": ("knee", KNEE, "star"),
}  # of trained trials in a figure, those below first


def of_run(run: Run, album: dict[int, Grid]) -> dict[str, Any]:
    """By trial number its state, scores, choices, costs by part, and where its tiles lie; and what is the same for all."""
    wanted = dict.fromkeys([*run.goals, *run.scores, preference.COLUMN, "macs", "params"])
    columns = [column for column in wanted if column in run.table]
    listed, parts = _parts(run)
    told = {}
    for _, row in run.table.iterrows():
        number = int(row["trial"])
        told[number] = {
            "state": state(run, row),
            "kind": _kind(run, row),
            "reason": str(row["reason"] or ""),
            "scores": [(label(c), text) for c in columns if (text := shown(c, row[c]))],
            "numbers": {c: None if pd.isna(row[c]) else float(naming.scaled(c, row[c])) for c in columns},
            "choices": naming.choices(row),
            "parts": parts.get(number, []),
            "tiles": _tiles(album[number], len(run.captions)) if number in album else [],
        }
    same = {"captions": run.captions, "columns": {c: label(c) for c in columns}, "path": str(run.path)}
    return {"trials": told, "kinds": MARKS, "components": listed, **same}


def _parts(run: Run) -> tuple[list[tuple[str, str, bool]], dict[int, list[tuple[int, int, float]]]]:
    """Every component with its colour and whether that is its own, the dearest of the study first; and by trained trial what each
    costs at a resolution: (component, side, millions of multiply-adds)."""
    deploy = run.settings.get("deploy") or {}
    if not {"image_size", "downsampling", "text_tokens"} <= set(deploy):
        return [], {}
    trained = set(run.table.loc[run.table["state"].isin(["complete", "stopped"]), "trial"])
    records = [record for record in run.trials if record["trial"] in trained]
    size = int(deploy["image_size"]) // int(deploy["downsampling"])
    costs = findings.parts(records, size, int(deploy["text_tokens"]))
    costs = costs[costs["macs"] > 0]
    order = [str(name) for name in costs.groupby("component")["macs"].sum().sort_values(ascending=False).index]
    listed = [
        (name, *((SERIES[place], True) if place < len(SERIES) else (LINE, False))) for place, name in enumerate(order)
    ]
    places = {name: place for place, name in enumerate(order)}
    found: dict[int, list[tuple[int, int, float]]] = {}
    for name in order:
        of = costs[costs["component"] == name]
        for trial, side, macs in zip(of["trial"].tolist(), of["side"].tolist(), of["macs"].tolist(), strict=True):
            found.setdefault(int(trial), []).append((places[name], int(side), round(float(macs) / 1e6, 1)))
    return listed, found


def _kind(run: Run, row: pd.Series) -> str:
    """How the page marks it: a key of `MARKS`, or its state for one that was not trained."""
    if row["trial"] == run.knee:
        return "knee"
    return "front" if row["on_front"] else str(row["state"])


def state(run: Run, row: pd.Series) -> str:
    """A trial's state in words."""
    if run.is_ablation:
        return f"{row['cell']}, repeat {row['repeat']}, {row['state']}"
    if row["trial"] == run.knee:
        return "knee of the front"
    return "front" if row["on_front"] else str(row["state"]).replace("_", " ")


def _tiles(grid: Grid, captions: int) -> list[tuple[int, int]]:
    """Left and top of every tile that has a caption, in pixels of a page that shows tiles 64 px wide."""
    scale = 64 / grid.tile
    count = min(captions, grid.rows * grid.columns)
    return [(round(x * scale), round(y * scale)) for x, y in map(grid.corner, range(count))]
