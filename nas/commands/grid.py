"""The table that verbs print: as wide as it needs to be in a file, and in a terminal no wider than that."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

import typer

GAP = "  "
NARROWEST = 16  # characters that a column of text may be cut down to


def print_grid(headings: list[str], cells: list[list[str]]) -> None:
    """A table; columns of numbers to the right."""
    typer.echo("\n".join(laid_out(headings, cells, terminal_width())) + "\n")


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output goes elsewhere and COLUMNS does not say."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return None


def laid_out(headings: Sequence[str], cells: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The lines of a table, at most `width` characters each where that can be: text is wrapped, the widest column first; what
    is still too wide becomes several tables, each with the first column."""
    rows = [list(headings), *map(list, cells)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(headings))]
    right = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells) for i in range(len(headings))]
    if width is not None:
        _narrow(widths, [wraps and not flush for wraps, flush in zip(_wraps(rows), right, strict=True)], width)
    parts = _parts(widths, width)
    return [
        line for part in parts for line in [*_lines(rows, widths, right, part), *([""] if part != parts[-1] else [])]
    ]


def _wraps(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns have a space to be wrapped at."""
    return [any(" " in row[i].strip() for row in rows) for i in range(len(rows[0]))]


def _narrow(widths: list[int], may: list[bool], width: int) -> None:
    """Take from the widest columns that may be wrapped until the table fits, or none can be narrower."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        wide = [i for i in range(len(widths)) if may[i] and widths[i] > NARROWEST]
        if not wide:
            return
        widths[max(wide, key=lambda i: widths[i])] -= 1


def _parts(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """The columns of each table: the first one, then as many more as fit."""
    parts, room = [[0]], 0
    for i in range(1, len(widths)):
        needed = len(GAP) + widths[i]
        if width is not None and len(parts[-1]) > 1 and widths[0] + room + needed > width:
            parts.append([0])
            room = 0
        parts[-1].append(i)
        room += needed
    return parts


def _lines(
    rows: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool], columns: Sequence[int]
) -> list[str]:
    lines = []
    for row in rows:
        wrapped = {i: textwrap.wrap(row[i], max(widths[i], 1)) or [""] for i in columns}
        for line in range(max(map(len, wrapped.values()))):
            texts = {i: wrapped[i][line] if line < len(wrapped[i]) else "" for i in columns}
            padded = [texts[i].rjust(widths[i]) if right[i] else texts[i].ljust(widths[i]) for i in columns]
            lines.append(GAP.join(padded).rstrip())
    return lines
