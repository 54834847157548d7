"""What a person sees while a study runs: a line per event, and in a terminal a bar with the front so far below it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.analysis.naming import cell
from nas.numbers import amount, duration
from nas.runs import headway
from nas.runs.records import Record, Rung
from nas.search.dominance import nondominated
from nas.settings.study import Study

if TYPE_CHECKING:
    from nas.trial.clock.pace import Estimate

PICTURES_PER_S = 2
PAUSE_S, PAUSES = (
    30.0,
    0.02,
)  # between lines on how far the study is: seconds, or a share of the whole where that is longer
WIDTH = 100  # columns of a line where no terminal says its own
MOST_SHARES = 4  # running trials whose share is told
STYLES = {"complete": "green", "stopped": "yellow", "failed": "red", "over_budget": "dim", "duplicate": "dim"}


@dataclass(frozen=True)
class Callbacks:
    """What else is told of a record, once it is saved. What it raises ends the run, which can go on later."""

    on_trial: Callable[[Record], object] | None = None
    """Given every trial's record when the trial has ended."""
    on_rung: Callable[[Record, Rung], object] | None = None
    """Given a trial's record and its newest rung, which is the last one in it."""


class Progress:
    """Prints events, and from time to time how far the study is; where the console is a terminal, that moves below them."""

    def __init__(self, console: Console | None = None, callbacks: Callbacks = Callbacks()):  # noqa: B008 (frozen)
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._callbacks = callbacks
        self._live: Live | None = None
        self._running = 0
        self._next = 0.0  # when the picture may be drawn again
        self._expected: float | None = None  # seconds that were to go when `expect` was told

    @contextmanager
    def live(self, records: Mapping[int, Record], study: Study, folder: Callable[[int], Path]) -> Iterator[None]:
        """`folder`: of a trial, where its worker leaves how far it is."""
        self._records, self._study, self._folder = records, study, folder
        self._begin()
        if not self.console.is_terminal:
            yield
            return
        with Live(
            self._picture(), console=self.console, refresh_per_second=PICTURES_PER_S, transient=True
        ) as self._live:
            yield
        self._live = None

    def _begin(self) -> None:
        """Measure from here how fast the study goes."""
        self._began, self._already = time.monotonic(), self._done()
        self._told = self._began

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def expect(self, estimate: Estimate) -> None:
        """Say how long the study will take; what is left is counted down from it, until trials have shown their own speed."""
        self._expected = estimate.seconds
        self.say(estimate.told())
        self._begin()

    def started(self, record: Record) -> None:
        choices = ", ".join(f"{axis} {cell(value)}" for axis, value in record["choices"].items())
        costs = f"{amount(record['cost']['params'])} params, {amount(record['cost']['macs'])} MACs"
        self._print(record, "start", costs, choices)

    def scored(self, record: Record) -> None:
        """A trial has a new rung."""
        if self._callbacks.on_rung is not None:
            told = deepcopy(record)
            self._callbacks.on_rung(told, told["rungs"][-1])

    def concluded(self, record: Record) -> None:
        """A trial has ended."""
        self._tell(record)
        if self._callbacks.on_trial is not None:
            self._callbacks.on_trial(deepcopy(record))

    def _tell(self, record: Record) -> None:
        scores = record["rungs"][-1]["metrics"] if record["rungs"] else {}
        if not scores:
            return self._print(record, record["state"].replace("_", " "), record["reason"], "", whole=True)
        ordered = [*(name for name in self._study.objectives if name in scores), *scores]
        told = ", ".join(f"{name} {amount(scores[name])}" for name in dict.fromkeys(ordered))
        of_all = f"{self._ended()} of {self._total()}"
        self._print(record, record["state"].replace("_", " "), f"{of_all}: {told}", "")
        if record["reason"] and record["state"] == "failed":
            self.say(f"          {record['reason']}")

    def refresh(self, running: int) -> None:
        """Look whether there is something to show; called about once a second."""
        self._running, now = running, time.monotonic()
        if self._live:
            if self._due():
                self._live.update(self._picture())
        elif now >= self._told + max(PAUSE_S, PAUSES * (self._expected or 0.0)) and self._at_work():
            self._told = now
            self.say(f"{self._status()}{self._shares()}")

    def _due(self) -> bool:
        """Whether it is time for a new picture."""
        now = time.monotonic()
        due = now >= self._next
        if due:
            self._next = now + 1 / PICTURES_PER_S
        return due

    def _print(self, record: Record, event: str, text: str, detail: str, whole: bool = False) -> None:
        """One line, cut to the terminal's width, or else to 100 columns, unless all of it matters."""
        style = STYLES.get(record["state"], "")
        line = Text.assemble((f"trial {record['trial']:>3} ", "bold"), (f"{event:<11} ", style), text)
        if detail:
            line.append(f"  {detail}", style="dim")
        if not whole:
            line.truncate(self.console.width if self.console.is_terminal else WIDTH, overflow="ellipsis")
        self._show(line)

    def _show(self, line: Text) -> None:
        if self.console.is_terminal:
            self.console.print(line)
        else:
            self.console.out(line.plain, highlight=False)  # without styles, and so without laying the line out

    # -- how far it is -------------------------------------------------------------------------------------------

    def _trained(self, *states: str) -> int:
        return sum(record["state"] in states for record in self._records.values())

    def _ended(self) -> int:
        return self._trained("complete", "stopped", "failed")

    def _total(self) -> int:
        return max(self._study.trials, self._ended() + len(self._at_work()))

    def _at_work(self) -> list[Record]:
        return [record for record in self._records.values() if record["state"] == "running"]

    def _share(self, record: Record) -> float:
        """Of a running trial: its rungs, and what of the next is done."""
        rungs = len(self._study.stopping.rungs)
        return min(1.0, (len(record["rungs"]) + headway.read(self._folder(record["trial"]))) / rungs)

    def _done(self) -> float:
        """Trials that are done, running ones by their share."""
        return self._ended() + sum(map(self._share, self._at_work()))

    def _status(self) -> str:
        ended, total, over = self._ended(), self._total(), self._trained("over_budget")
        share = self._done() / total if total else 0.0
        refused = f", {over} over budget" if over else ""
        return f"{ended} of {total} trials, {share:.0%} of the work{refused}{self._left()}"

    def _shares(self) -> str:
        told = ", ".join(
            f"trial {record['trial']} {self._share(record):.0%}" for record in self._at_work()[:MOST_SHARES]
        )
        return f": {told}" if told else ""

    def _left(self) -> str:
        """Seconds to go: by the estimate at first, by the study's own speed once a few trials are done."""
        new, left = self._done() - self._already, self._total() - self._done()
        elapsed = time.monotonic() - self._began
        measured = elapsed / new * left if new > 0 else None
        shown = min(1.0, new / max(1, 2 * self._running))  # how much of the speed has been seen
        if self._expected is None:
            seconds = measured if new >= 1 else None
        elif measured is None:
            seconds = max(0.0, self._expected - elapsed)
        else:
            first = self._expected * left / max(left + new, 1e-9)
            seconds = (1 - shown) * first + shown * measured
        return "" if seconds is None else f", about {duration(seconds)} left"

    def _picture(self) -> RenderableType:
        bar = Table.grid()
        bar.add_row(ProgressBar(self._total() or 1, self._done(), width=20), Text(f" {self._status()}"))
        shares = self._shares()
        return Group(bar, *([Text(shares.removeprefix(": "), style="dim")] if shares else []), self._front())

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
