"""A sweep's picture: a distance against a score of captions, or one score against what varies, a curve for each network and way
of drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from nas.analysis.naming import label
from nas.report.palette import GREY
from nas.report.stills import MARKERS, plain

if TYPE_CHECKING:
    from pathlib import Path

LINES = ("-", ":", "-.")  # of ways in several steps; one step is dashed
ACROSS = 100  # letters of a legend, with 6 for each mark
ROWS, ROW = 3, 0.19  # of a legend, within the picture's height, and the inches of a further one
WORDS = {
    "guidance": "guidance {:g}",
    "guidance_interval": "guided at {}",
    "experts": "experts {}",
}  # of fields whose value does not say what it is


def save(points: pd.DataFrame, scores: Sequence[str], path: Path) -> None:
    """A curve per network and way of drawing over guidance scales, or where every way has one scale over steps; a filled mark
    where a network is drawn as trained.

    `points` is what `nas.study.sweep.curves` makes of the scores: two are the axes, one stands over what varies. The legend names
    the fields that differ. Where a network is drawn in more than two ways, the marks say in how many steps, only the ends of a
    curve say their scale, and the legend names the networks and the ways apart; of a single network the colours say the way.
    """
    from matplotlib.figure import Figure

    along = _along(points)
    x, y = scores if len(scores) == 2 else (along, *scores)
    named = points.assign(way=_ways(points, along))
    many = int(named.drop_duplicates(["model", "way"]).groupby("model").size().max()) > 2
    figure = Figure(figsize=(6.4, 5.2 if many else 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names, ways = (list(dict.fromkeys(named[column])) for column in ("model", "way"))
    alone = many and len(names) == 1
    colours = _colours(ways if alone else names)
    looks = _looks(named, along, many)
    for (name, way), rows in named.groupby(["model", "way"], sort=False):
        line, mark = looks[str(way)]
        colour = colours[str(way if alone else name)]
        rows = rows.sort_values(along, kind="stable")
        axes.plot(
            rows[x], rows[y], line, color=colour, marker=mark, mfc="white", label=way if alone else f"{name}, {way}"
        )
        own = rows[rows["as_trained"]]
        axes.plot(own[x], own[y], linestyle="", marker=mark, color=colour)
        ends = rows.iloc[[0, -1]] if len(rows) > 1 else rows[:0]
        if x != along:
            _say(axes, ends if many and along == "guidance" else rows, x, y, along, colour)
    plain(axes, label(x), label(y))
    apart = {"handles": _apart(colours, looks)} if many and not alone else {}
    if alone:
        axes.set_title(names[0], fontsize=10)
    longest = max(map(len, [*names, *ways] if many else [f"{name}, {way}" for name in names for way in ways]))
    columns = max(1, min(3 if many else 2, ACROSS // (longest + 6)))
    legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9, **apart)
    figure.set_figheight(figure.get_figheight() + ROW * max(0, math.ceil(len(legend.get_texts()) / columns) - ROWS))
    figure.savefig(path)


def _along(points: pd.DataFrame) -> str:
    """What varies along a curve: guidance, or steps where no way has two scales and some way two numbers of steps."""

    def longest(field: str) -> int:
        rest = [column for column in _fields(points) if column != field]
        return int(points.groupby(["model", *rest], sort=False)[field].nunique().max())

    return "steps" if longest("guidance") == 1 and longest("steps") > 1 else "guidance"


def _fields(points: pd.DataFrame) -> list[str]:
    """The columns of the plan: all before `as_trained` but the network's name."""
    columns = list(points.columns)
    return [column for column in columns[: columns.index("as_trained")] if column != "model"]


def _ways(points: pd.DataFrame, along: str) -> list[str]:
    """The way of each point in words: its solver and steps, and what else differs between points."""
    told = [
        field
        for field in _fields(points)
        if field not in ("solver", "steps", along) and points[field].nunique(dropna=False) > 1
    ]
    return [_way(row, along, told) for _, row in points.iterrows()]


def _way(row: pd.Series, along: str, told: Sequence[str]) -> str:
    steps = "" if along == "steps" else f" {row['steps']}"
    name = "one step" if row["solver"] == "one_step" else f"{row['solver']}{steps}"
    return ", ".join([name, *(WORDS.get(field, "{}").format(row[field]) for field in told)])


def _colours(names: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    return {name: palette(place % palette.N) for place, name in enumerate(names)}


def _looks(named: pd.DataFrame, along: str, many: bool) -> dict[str, tuple[str, str]]:
    """Line and mark of each way: over guidance the mark says the steps, over steps it says the way."""
    first = named.drop_duplicates("way")
    marked = "steps" if along == "guidance" else "way"
    keys = sorted(first[marked].unique()) if along == "guidance" else list(first[marked])
    marks = {key: MARKERS[place % len(MARKERS)] if many else "o" for place, key in enumerate(keys)}
    rest = [field for field in _fields(first) if field not in ("steps", "guidance")]
    kinds = [tuple(row) for row in first[first["steps"] > 1][rest].drop_duplicates().to_numpy().tolist()]
    lines = {kind: LINES[place % len(LINES)] if many else "-" for place, kind in enumerate(kinds)}
    return {
        row["way"]: (
            lines.get(tuple(row[field] for field in rest), "--") if row["steps"] > 1 else "--",
            marks[row[marked]],
        )
        for row in first.to_dict("records")
    }


def _say(axes: Any, rows: pd.DataFrame, x: str, y: str, along: str, colour: Any) -> None:
    """The guidance scale, or the number of steps, beside each of the points."""
    for _, row in rows.iterrows():
        place = {"xytext": (4, 4), "textcoords": "offset points"}
        axes.annotate(f"{row[along]:g}", (row[x], row[y]), **place, fontsize=8, color=colour)


def _apart(colours: Mapping[str, Any], looks: Mapping[str, tuple[str, str]]) -> list[Any]:
    """A legend of networks by colour, and of ways of drawing by line and mark."""
    from matplotlib.lines import Line2D

    networks = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items()]
    marks: list[dict[str, Any]] = [{"ls": line, "marker": mark, "label": way} for way, (line, mark) in looks.items()]
    return networks + [Line2D([], [], color=GREY, mfc="white", **look) for look in marks]
