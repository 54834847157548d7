"""Pictures of cache schedules: the front beside the heuristics, and which unit is computed at which step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas.cost.units import COMPUTE, WHOLE, Modes, Units
from nas.report.palette import FRONT, GREY, GRID, PALE, SERIES
from nas.runs import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "schedules"  # of a run: a folder for each network whose schedule was searched
PICTURES = FRONT_PICTURE, STATES_PICTURE = "front.png", "schedules.png"
COLOURS = {"in a kept block": "#f1f3f5", "kept": PALE, "extrapolated": SERIES[1], "computed": FRONT}
KEPT, EXTRAPOLATED, COMPUTED = 1, 2, 3  # places in COLOURS
MOST_SHOWN = 4  # schedules in one picture


def draw_front(table: pd.DataFrame) -> Figure:
    """Distance from the uncached pictures over the share of multiply-adds, on captions the search has not seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    families = table[~table["found"]]["schedule"].str.split(" ").str[0]
    for place, (family, rows) in enumerate(table[~table["found"]].groupby(families, sort=False)):
        colour = GREY if family == "uncached" else SERIES[(place + 1) % len(SERIES)]
        axes.scatter(100 * rows["macs_share"], rows["distance"], s=28, color=colour, label=str(family), zorder=2)
    found = table[table["found"]].sort_values("macs_share")
    axes.plot(100 * found["macs_share"], found["distance"], "-o", color=FRONT, label="found", zorder=3)
    axes.set_xlabel("Multiply-adds of the denoiser, % of uncached")
    axes.set_ylabel("Distance from uncached, grey levels")
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def states(modes: Modes, units: Units) -> NDArray[np.int64]:
    """(units, steps): the place in COLOURS of what happens."""
    computed = units.effective(modes)
    called = np.ones_like(computed)
    inner = units.inside >= 0
    called[:, inner] = computed[:, units.inside[inner]]
    found = np.where(modes > 0, EXTRAPOLATED, KEPT)
    found = np.where(computed, COMPUTED, np.where(called, found, 0))
    return np.asarray(found.T)


def draw_schedules(named: Mapping[str, Modes], units: Units) -> Figure:
    """A panel a schedule: steps across, units down in the order of the network, whole blocks above what lies in them."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    order, labels = _order(units)
    figure = Figure(figsize=(2.1 + 1.7 * len(named), 0.085 * len(units) + 1.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(named), sharey=True, squeeze=False)[0]
    for axes, (name, modes) in zip(panels, named.items(), strict=True):
        axes.imshow(
            states(modes, units)[order], cmap=ListedColormap(list(COLOURS.values())), vmin=0, vmax=3, aspect="auto"
        )
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.set_xticks(range(0, len(modes), max(1, len(modes) // 5)))
        axes.tick_params(labelsize=7)
    panels[0].set_yticks([place for place, _ in labels], [text for _, text in labels], fontsize=6)
    patches = [Patch(facecolor=colour, edgecolor=GREY, label=state) for state, colour in COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _order(units: Units) -> tuple[list[int], list[tuple[int, str]]]:
    """Units by where they lie, each before what lies in it, and a label for each that lies in none."""
    held: dict[int, list[int]] = {}
    for place, holder in enumerate(units.inside):
        held.setdefault(int(holder), []).append(place)
    order: list[int] = []
    labels: list[tuple[int, str]] = []
    for place in held.get(-1, []):
        member = units.members[place]
        if member.component == WHOLE or not labels or _block(member.name) != labels[-1][1]:
            labels.append((len(order), member.name if member.component == WHOLE else _block(member.name)))
        order += [place, *held.get(place, [])]
    return order, labels


def _block(name: str) -> str:
    return name.rpartition(".")[0]


def shown(table: pd.DataFrame, plans: Mapping[str, Modes]) -> dict[str, Modes]:
    """A few of the found schedules from dear to cheap, or of all where none was found, but for the uncached."""
    rows = table[table["found"]] if table["found"].any() else table
    names = [str(name) for name in rows.sort_values("macs_share", ascending=False)["schedule"]]
    names = [name for name in names if (plans[name] != COMPUTE).any()]
    places = np.linspace(0, len(names) - 1, min(MOST_SHOWN, len(names))).round().astype(int)
    return {names[place]: plans[names[place]] for place in places}


def of_run(run_dir: Path) -> list[dict[str, str | None]]:
    """Name and pictures, as data URLs, of every network whose schedule was searched."""
    return [
        {
            "name": folder.name.replace("-", " "),
            **{name.partition(".")[0]: pictures.whole(folder / name) for name in PICTURES},
        }
        for folder in sorted((run_dir / FOLDER).glob("*"))
        if (folder / FRONT_PICTURE).is_file()
    ]


def save(table: pd.DataFrame, plans: Mapping[str, Modes], units: Units, folder: Path) -> list[Path]:
    """Both pictures."""
    figures: dict[str, Any] = {FRONT_PICTURE: draw_front(table)}
    if chosen := shown(table, plans):
        figures[STATES_PICTURE] = draw_schedules(chosen, units)
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return [folder / name for name in figures]
