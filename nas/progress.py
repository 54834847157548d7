"""What a person sees while a study runs: a line per event, and in a terminal a bar with the front so far below it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.dominance import nondominated
from nas.numbers import amount
from nas.records import Record
from nas.settings import Study

PICTURES_PER_S = 2
STYLES = {"complete": "green", "stopped": "yellow", "failed": "red", "over_budget": "dim", "duplicate": "dim"}


class Progress:
    """Prints events; `live` adds the moving part when the console is a terminal."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._running = 0
        self._next = 0.0  # when the picture may be drawn again

    @contextmanager
    def live(self, records: Mapping[int, Record], study: Study) -> Iterator[None]:
        self._records, self._study, self._began = records, study, time.monotonic()
        self._already = self._trained("complete", "stopped", "failed")
        if not self.console.is_terminal:
            yield
            return
        with Live(
            self._picture(), console=self.console, refresh_per_second=PICTURES_PER_S, transient=True
        ) as self._live:
            yield
        self._live = None

    def say(self, text: str) -> None:
        self.console.print(text)

    def started(self, record: Record) -> None:
        changed = ", ".join(f"{axis}={value}" for axis, value in record["choices"].items())
        self._print(
            record,
            "start",
            f"{amount(record['cost']['params'])} params, {amount(record['cost']['macs'])} MACs",
            changed,
        )

    def concluded(self, record: Record) -> None:
        scores = record["rungs"][-1]["metrics"] if record["rungs"] else {}
        told = ", ".join(f"{name} {amount(scores[name])}" for name in scores)
        self._print(
            record, record["state"].replace("_", " "), told or record["reason"], record["reason"] if told else ""
        )

    def refresh(self, running: int) -> None:
        self._running = running
        if self._live and time.monotonic() >= self._next:
            self._next = time.monotonic() + 1 / PICTURES_PER_S
            self._live.update(self._picture())

    def _print(self, record: Record, event: str, text: str, detail: str) -> None:
        style = STYLES.get(record["state"], "")
        line = Text.assemble((f"trial {record['trial']:>3} ", "bold"), (f"{event:<11} ", style), text)
        if detail:
            line.append(f"  {detail}", style="dim")
        if self.console.is_terminal:
            self.console.print(line)
        else:
            self.console.out(line.plain, highlight=False)  # without styles, and so without laying the line out

    def _trained(self, *states: str) -> int:
        return sum(record["state"] in states for record in self._records.values())

    def _picture(self) -> RenderableType:
        total, ended = self._study.trials, self._trained("complete", "stopped", "failed")
        over = self._trained("over_budget")
        status = f" {ended}/{total} trials, {self._running} running, {over} over budget{self._left(total, ended)}"
        bar = Table.grid()
        bar.add_row(ProgressBar(total, ended, width=30), Text(status))
        return Group(bar, self._front())

    def _left(self, total: int, ended: int) -> str:
        new = ended - self._already
        if new < 1:
            return ""
        seconds = (time.monotonic() - self._began) / new * (total - ended)
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"

    def _front(self) -> RenderableType:
        objectives = self._study.objectives
        complete = [record for record in self._records.values() if record["state"] == "complete"]
        if not complete or self._study.ablation:
            return Text("")
        rows = [{**record["cost"], **record["rungs"][-1]["metrics"]} for record in complete]
        points = [[row[c] if way == "minimise" else -row[c] for c, way in objectives.items()] for row in rows]
        table = Table(title="front so far", title_justify="left", box=None, pad_edge=False)
        for column in ("trial", *objectives):
            table.add_column(column, justify="right")
        members = [(record, row) for record, row, on in zip(complete, rows, nondominated(points), strict=True) if on]
        for record, row in sorted(members, key=lambda member: member[1][next(iter(objectives))]):
            table.add_row(str(record["trial"]), *(amount(row[column]) for column in objectives))
        return table
