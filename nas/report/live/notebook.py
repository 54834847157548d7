"""What a notebook shows: a study as it runs, in one display that is renewed in place, and a run as a table."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.text import Text

from nas.analysis import ablation, findings, results
from nas.errors import InputError
from nas.numbers import amount
from nas.report.live.progress import WIDTH, Callbacks, Progress
from nas.runs.records import Record
from nas.settings.study import Study

LINES = 6  # of the newest events
STYLE = "<pre style='line-height: normal; font-family: monospace'>{code}</pre>"


class InNotebook(Progress):
    """What is said once is printed. Events, how far the study is and the front so far are in a display that goes when the study
    is over."""

    def __init__(self, callbacks: Callbacks):
        super().__init__(Console(highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=False), callbacks)
        self._events: deque[Text] = deque(maxlen=LINES)

    @contextmanager
    def live(self, records: Mapping[int, Record], study: Study, folder: Callable[[int], Path]) -> Iterator[None]:
        from IPython.display import display

        with super().live(records, study, folder):
            self._display: Any = display(Html(""), display_id=True)
            yield
            self._display.update(Html(""))

    def refresh(self, running: int) -> None:
        self._running = running
        if self._due():
            self._display.update(Html(drawn(Group(self._picture(), *self._events))))

    def _show(self, line: Text) -> None:
        self._events.append(line)


class Html:
    """What a notebook displays as HTML."""

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return ""

    def _repr_html_(self) -> str:
        return self._text


def drawn(what: RenderableType) -> str:
    """What a terminal of WIDTH columns would show, as HTML."""
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False)
    console.print(what)
    return console.export_html(inline_styles=True, code_format=STYLE)


def of_run(run_dir: Path, table: pd.DataFrame) -> str:
    """A run as HTML: how its trials ended, and the front, or the means of an ablation's cells. `table`: its results."""
    said = f"<p>{escape(str(run_dir))}: {results.states(table) or 'no trial yet'}</p>"
    if "cell" not in table:
        return said + _front(table)
    try:
        found = ablation.of_run(run_dir)
    except InputError:  # no cell was trained to the end
        return said
    return said + "".join(
        f"<p>{column}</p>{ablation.render(kinds['cells'], 'html')}" for column, kinds in found.items()
    )


def _front(table: pd.DataFrame) -> str:
    goals = table.attrs["objectives"]
    rows = findings.members(table, goals)
    columns = {column: [amount(value) for value in rows[column]] for column in dict.fromkeys([*goals, "params"])}
    return pd.DataFrame({"trial": list(rows["trial"]), **columns}).to_html(index=False, border=0)
