"""A network as what it costs: a bar for every resolution, as long as its multiply-adds, with a colour for each kind of part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.cost.count import Part
from nas.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1c5fb8", "#e8590c", "#2b8a3e", "#862e9c", "#0b7285", "#a61e4d", "#5f3dc4", "#5c4813")
REST = "#ced4da"
SUFFIXES = (".png", ".svg", ".pdf")


def draw(networks: Mapping[str, Sequence[Part]]) -> Figure:
    """Networks by name, one below the other on one scale. The dearest parts of all have colours of their own."""
    from matplotlib.figure import Figure

    total = Counter[str]()
    for parts in networks.values():
        for part in parts:
            total[part.component] += part.cost.macs
    named = [component for component, macs in total.most_common(len(COLOURS)) if macs]
    bars = {name: bars_of(parts, named) for name, parts in networks.items()}
    figure = Figure(figsize=(8, 0.9 + sum(0.5 + 0.26 * len(rows) for rows in bars.values())), layout="constrained")
    axes = figure.subplots(
        len(bars), 1, sharex=True, squeeze=False, height_ratios=[len(rows) + 1 for rows in bars.values()]
    )
    for axis, (name, rows) in zip(axes[:, 0], bars.items(), strict=True):
        for place, (_, row) in enumerate(rows):
            left = 0.0
            for component, macs in row:
                colour = COLOURS[named.index(component)] if component in named else REST
                axis.barh(place, macs, left=left, color=colour, height=0.72)
                left += macs
        axis.set_yticks(range(len(rows)), [f"{side}\u00d7{side}" if side else "all" for side, _ in rows])
        axis.invert_yaxis()
        axis.set_title(f"{name}: {sum(macs for _, row in rows for _, macs in row):,.1f} G", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("G multiply-adds")
    others = [("rest", REST)] if len(total) > len(named) else []
    keys = [*zip(named, COLOURS, strict=False), *others]
    handles = [axes[0, 0].barh(0, 0, color=colour) for _, colour in keys]
    figure.legend(
        handles, [component for component, _ in keys], loc="outside lower center", ncols=5, fontsize=8, frameon=False
    )
    return figure


def bars_of(parts: Sequence[Part], named: Sequence[str]) -> list[tuple[int, list[tuple[str, float]]]]:
    """Of each resolution, the largest first, its components in the order of `named`, with billions of multiply-adds; what is
    not named comes last, together."""
    sides = sorted({part.side for part in parts if part.cost.macs}, reverse=True)
    found = []
    for side in sides:
        macs = Counter[str]()
        for part in parts:
            if part.side == side:
                macs[part.component if part.component in named else ""] += part.cost.macs
        found.append((side, [(component, macs[component] / 1e9) for component in [*named, ""] if macs[component]]))
    return found


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the suffix (png, svg, pdf) chooses the format. Raises InputError for another, and where none can be."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--picture {path}: expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"--picture {path}: cannot be written: {error.strerror}") from None
