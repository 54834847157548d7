"""Pruned decoders: a table of what each is worth, drawn against the time of a picture, what it makes of the same latents, and the
section of a run's page that has all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nas import numbers
from nas.analysis import naming
from nas.report.palette import FRONT, GREY, GRID
from nas.runs import pictures as files

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from nas.analysis.findings import Run

FOLDER = "decoders"  # of a run: a folder for each network whose decoder was pruned
TABLE = "decoders.csv"
FRONT_PICTURE, GRID_PICTURE = "decoders.png", "pictures.png"
COLUMNS = 8  # latents in the grid
MOST_SCORES = 2  # of the study's, each a panel beside that of PSNR
TIME = "eager_cpu_ms"  # which other programs on the machine disturb less


def draw(table: pd.DataFrame, scores: Sequence[str]) -> Figure:
    """A panel of PSNR to the teacher, which has no finite one, and a panel for each score, against CPU time."""
    from matplotlib.figure import Figure

    panels = ["psnr_db", *[name for name in scores if name in table][:MOST_SCORES]]
    figure = Figure(figsize=(3.8 * len(panels), 3.6), dpi=150, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = table[np.isfinite(table[name])].sort_values(TIME)
        axes.plot(rows[TIME], rows[name], color=GREY, linewidth=1, zorder=1)
        axes.scatter(rows[TIME], rows[name], color=FRONT, s=28, zorder=2)
        for _, row in rows.iterrows():
            axes.annotate(f"{row['ratio']:g}", (row[TIME], row[name]), (5, 5), textcoords="offset points", fontsize=8)
        axes.set_xlabel("Decoder, CPU time of a picture, ms")
        axes.set_ylabel("PSNR to the whole decoder, dB" if name == "psnr_db" else naming.label(name))
        axes.margins(0.14)  # room for the ratios
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def grid(table: pd.DataFrame, scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The table as a person reads it: headings and rows."""
    names = [str(name) for name in table]
    near = [name for name in names if name.endswith("_to_teacher")]
    times = [name for name in names if name.endswith("_median_ms")]
    columns = [*near, *(name for name in scores if name in names)]
    headings = ["ratio", "parameters", "MACs", "PSNR, dB"]
    headings += [f"{naming.label(name.removesuffix('_to_teacher'))} to the whole's" for name in near]
    headings += [naming.label(name) for name in columns[len(near) :]]
    headings += [f"{name.removesuffix('_median_ms')}, ms" for name in times]
    rows = [
        [
            f"{row['ratio']:g}",
            numbers.amount(row["params"]),
            numbers.amount(row["macs"]),
            "exact" if row["psnr_db"] == float("inf") else f"{row['psnr_db']:.2f}",
            *(naming.shown(name, row[name]) for name in columns),
            *(f"{row[name]:.2f}" for name in times),
        ]
        for _, row in table.iterrows()
    ]
    return headings, rows


def of_run(run: Run) -> list[dict[str, Any]]:
    """Name, table and pictures, as data URLs, of every network whose decoder was pruned."""
    return [
        {
            "name": folder.name.replace("-", " "),
            "headings": headings,
            "rows": rows,
            "front": files.whole(folder / FRONT_PICTURE),
            "grid": files.whole(folder / GRID_PICTURE),
        }
        for folder in sorted((run.path / FOLDER).glob("*"))
        if (folder / TABLE).is_file()
        for headings, rows in [grid(pd.read_csv(folder / TABLE), list(run.goals))]
    ]


def save(table: pd.DataFrame, pictures: Mapping[float, Tensor], folder: Path, scores: Sequence[str]) -> None:
    """Both pictures; in the grid a row for each decoder, as in `pictures` (N, 3, S, S), the teacher's first."""
    import torch

    draw(table, scores).savefig(folder / FRONT_PICTURE)
    rows = [each[:COLUMNS] for each in pictures.values()]
    files.save_grid(torch.cat(rows), folder / GRID_PICTURE, columns=len(rows[0]))
