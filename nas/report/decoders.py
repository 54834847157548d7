"""Pictures of pruned decoders: what each is worth against the time of a picture, and what it makes of the same latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nas.analysis import naming
from nas.report.palette import FRONT, GREY, GRID
from nas.runs.pictures import save_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

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


def save(table: pd.DataFrame, pictures: Mapping[float, Tensor], folder: Path, scores: Sequence[str]) -> None:
    """Both pictures; in the grid a row for each decoder, as in `pictures` (N, 3, S, S), the teacher's first."""
    import torch

    draw(table, scores).savefig(folder / FRONT_PICTURE)
    rows = [each[:COLUMNS] for each in pictures.values()]
    save_grid(torch.cat(rows), folder / GRID_PICTURE, columns=len(rows[0]))
