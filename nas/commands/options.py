"""What several verbs take, and the table they print."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a setting of the study file; repeatable."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="postgresql://user@host/database, or a journal file; default the journal of the run."
    ),
]
Run_ = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or a study's folder in runs/ (its latest run).")
]


def print_grid(headings: list[str], cells: list[list[str]]) -> None:
    """A table as wide as it needs to be; columns of numbers to the right."""
    widths = [max(len(row[i]) for row in [headings, *cells]) for i in range(len(headings))]
    right = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells) for i in range(len(headings))]
    for row in [headings, *cells]:
        pairs = zip(row, widths, right, strict=True)
        typer.echo(
            "  ".join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in pairs).rstrip()
        )
    typer.echo()
