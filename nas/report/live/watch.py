"""A terminal view of a run, from its records on disk: another process may be running it, on this machine or another."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas import numbers
from nas.analysis import fronts, naming, reference_lines, results
from nas.errors import InputError
from nas.numbers import amount
from nas.report.live.progress import STYLES
from nas.runs import description, headway

MOST_MEMBERS = 20
LAST = 5  # conclusions shown


def watch(path: Path, every: float = 2.0, once: bool = False, console: Console | None = None) -> None:
    """Show a run until it has its report, or once. Ctrl-C leaves the run alone."""
    if every <= 0:
        raise InputError(f"watch: --every {every:g}: expected seconds above 0")
    run_dir = description.find(path)
    console = console or Console(highlight=False)
    if once:
        console.print(picture(run_dir))
        return
    with Live(picture(run_dir), console=console, auto_refresh=False) as live:
        while not is_over(run_dir):
            time.sleep(every)
            live.update(picture(run_dir), refresh=True)


def is_over(run_dir: Path) -> bool:
    """Whether no trial is running and the report was written after the last word of every trial."""
    if any(record["state"] == "running" for record in results.records(run_dir)):
        return False
    page, records = run_dir / "report.html", list(run_dir.glob("trials/*/record.json"))
    written = max((path.stat().st_mtime for path in records), default=0.0)
    return page.exists() and page.stat().st_mtime >= max(written, (run_dir / "resolved.yaml").stat().st_mtime)


def picture(run_dir: Path) -> RenderableType:
    """The run as it is on disk now: progress, running trials, the last conclusions, and the front or the cells."""
    settings, trials = description.resolved(run_dir), results.records(run_dir)
    goals = results.objectives(settings)
    table = results.frame(trials, description.conditions(run_dir), goals)
    parts = [_head(run_dir, settings, trials), _running(run_dir, trials, settings), _concluded(trials)]
    lines = reference_lines.read(run_dir)
    parts.append(_cells(table, goals) if settings.get("ablation") else _front(table, goals, lines))
    return Group(*(part for part in parts if part is not None))


def _head(run_dir: Path, settings: dict[str, Any], trials: list[results.Record]) -> RenderableType:
    counted = pd.Series([record["state"] for record in trials], dtype=object).value_counts()
    ended = sum(int(counted.get(state, 0)) for state in ("complete", "stopped", "failed"))
    asked = max(_asked(settings, trials), ended, 1)
    told = ", ".join(f"{counted[s]} {s.replace('_', ' ')}" for s in results.STATES if s in counted) or "no trial yet"
    title = Text.assemble((str(settings.get("name") or run_dir.name), "bold"), (f"  {run_dir}", "dim"))
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(asked, ended, width=30), Text(f"{ended}/{asked} trials{_since(run_dir)}"))
    return Group(title, bar, Text(told))


def _asked(settings: dict[str, Any], trials: list[results.Record]) -> int:
    """How many trainings the study asks for in all; 0 where only the design knows."""
    search, ablation = settings.get("search") or {}, settings.get("ablation") or {}
    raced = int((settings.get("racing") or {}).get("trials") or 0)
    cells = len({record["cell"] for record in trials if "cell" in record})
    return int(search["trials"]) + raced if search else cells * int(ablation.get("repeats") or 1)


def _since(run_dir: Path) -> str:
    """How long ago anything was recorded; a run that is over says so."""
    if is_over(run_dir):
        return ", finished"
    written = [path.stat().st_mtime for path in run_dir.glob("trials/*/record.json")]
    return f", last word {numbers.duration(max(0.0, time.time() - max(written)))} ago" if written else ""


def _running(run_dir: Path, trials: list[results.Record], settings: dict[str, Any]) -> RenderableType | None:
    running = [record for record in trials if record["state"] == "running"]
    if not running:
        return None
    rungs = (settings.get("stopping") or {}).get("rungs") or []
    table = _table("running", ("trial", "rung", "since", "params", "GMACs", "choices"))
    for record in running:
        cost, done = record.get("cost") or {}, len(record.get("rungs") or [])
        share = headway.read(run_dir / "trials" / f"{record['trial']:04d}")
        rung = (f"{done + 1} of {len(rungs)}" if rungs else str(done + 1)) + (f", {share:.0%}" if share else "")
        costs = [naming.shown(name, cost.get(name)) for name in ("params", "macs")]
        choices = ", ".join(f"{axis} {value}" for axis, value in (record.get("choices") or {}).items())
        name = str(record.get("cell") or choices)
        table.add_row(
            str(record["trial"]),
            rung,
            _age(record.get("started")),
            *costs,
            Text(name, overflow="ellipsis", no_wrap=True),
        )
    return table


def _age(started: str | None) -> str:
    if not started:
        return ""
    return numbers.duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()))


def _concluded(trials: list[results.Record]) -> RenderableType | None:
    ended = sorted((r for r in trials if r.get("finished")), key=lambda record: (record["finished"], record["trial"]))
    if not ended:
        return None
    table = _table("last conclusions", ("trial", "state", "why, or scores"))
    for record in ended[-LAST:]:
        rungs = record.get("rungs") or []
        scores = ", ".join(f"{name} {amount(value)}" for name, value in (rungs[-1]["metrics"] if rungs else {}).items())
        state = record["state"]
        told = Text(record.get("reason") or scores, overflow="ellipsis", no_wrap=True)
        table.add_row(str(record["trial"]), Text(state.replace("_", " "), style=STYLES.get(state, "")), told)
    return table


def _front(table: pd.DataFrame, goals: fronts.Objectives, lines: reference_lines.Lines) -> RenderableType:
    front = table[table["on_front"]].sort_values(next(iter(goals)))
    if not len(front):
        return Text("no trial was trained to the end yet, so there is no front", style="dim")
    knee = fronts.knee(table, goals)
    shown = _table("front so far", ("trial", *(naming.label(c) + naming.arrow(way) for c, way in goals.items()), ""))
    for _, row in front.head(MOST_MEMBERS).iterrows():
        mark = "knee" if row["trial"] == knee else ""
        shown.add_row(str(row["trial"]), *(naming.shown(column, row[column]) for column in goals), mark)
    for line in lines.values():
        shown.add_row(line.label, *(naming.shown(column, line[column]) for column in goals), "no trial", style="dim")
    return (
        shown
        if len(front) <= MOST_MEMBERS
        else Group(shown, Text(f"and {len(front) - MOST_MEMBERS} more", style="dim"))
    )


def _cells(table: pd.DataFrame, goals: fronts.Objectives) -> RenderableType:
    done = table[table["state"] == "complete"] if "cell" in table else table.head(0)
    if not len(done):
        return Text("no cell was trained to the end yet", style="dim")
    shown = _table(
        "means so far", ("cell", "repeats", *(naming.label(c) + naming.arrow(way) for c, way in goals.items()))
    )
    for cell, part in done.groupby("cell", sort=False):
        shown.add_row(Text(str(cell)), str(len(part)), *(naming.shown(column, part[column].mean()) for column in goals))
    return shown


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="left" if column in ("choices", "cell", "state", "why, or scores", "") else "right"
        )
    return table
