"""The report of a run: one HTML file that answers the study's question, readable offline.

Compute, then draw: functions here turn the frames of `nas.results` into what a section shows, `nas.figures` draws it,
`report.html` sets it out. Every caption, name and reason is escaped by the template.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from nas import ablation, certainty, figures, results
from nas.errors import InputError
from nas.results import COSTS, Objectives

Budget = Mapping[str, float]

MOST_MEMBERS_DRAWN = 24  # columns of pictures; the rest lies in the trial folders
MOST_AXES_DRAWN = 12
MOST_VALUES = 6  # numeric choices with more values than this are shown by quarters
TILE_SIZES = (64, 128, 256, 512, 32)  # px; a grid says which by where its white gaps are
GAP = 2  # px between tiles of samples.png


# --- what happened ---------------------------------------------------------------------------------------------------


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many trials ended in each state, how many were proposed, and the size of the front."""
    found = {state: int((table["state"] == state).sum()) for state in results.STATES}
    return {"proposed": len(table), **found, "front": int(table["on_front"].sum())}


def refusals(table: pd.DataFrame, budget: Budget) -> dict[str, int]:
    """Refused trials by the budgets they broke: {"macs": 3, "macs and params": 1}."""
    refused = table[table["state"] == "over_budget"]
    limits = [column for column in budget if column in table]
    broken = [" and ".join(c for c in limits if _exceeds(row[c], budget[c])) for _, row in refused.iterrows()]
    return {str(name): int(count) for name, count in pd.Series(broken, dtype=object).value_counts().items()}


def answer(table: pd.DataFrame, goals: Objectives, budget: Budget) -> str:
    """What came of the study, in plain numbers."""
    n = counts(table)
    told = {"duplicate": "seen before", "stopped": "stopped early", "failed": "failed", "running": "still running"}
    parts = [f"{n[state]} {words}" for state, words in told.items() if n[state]]
    if n["over_budget"]:
        why = ", ".join(f"{count} by {_said(name)}" for name, count in refusals(table, budget).items() if name)
        parts.insert(0, f"{n['over_budget']} refused before training as over budget" + (f" ({why})" if why else ""))
    parts.append(f"{n['complete']} fully trained")
    proposed = f"{_number_of(n['proposed'], 'architecture')} {'was' if n['proposed'] == 1 else 'were'} proposed"
    return f"{proposed}: {_listed(parts)}. {_front_in_words(table, goals)}"


def winner(table: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """The knee against the best of the front, one row per objective: column, knee, best, best_trial."""
    members = table[table["on_front"]]
    knee = members[members["trial"] == results.knee(table, goals)].iloc[0]
    rows = []
    for column, way in goals.items():
        best = members.sort_values([column, "trial"], ascending=[way == "minimise", True]).iloc[0]
        rows.append({"column": column, "knee": knee[column], "best": best[column], "best_trial": int(best["trial"])})
    return pd.DataFrame(rows)


def elapsed_s(trials: Sequence[results.Record]) -> float | None:
    """Seconds from the first start to the last end; None before any trial ended."""
    started = [pd.Timestamp(record["started"]) for record in trials if record.get("started")]
    finished = [pd.Timestamp(record["finished"]) for record in trials if record.get("finished")]
    return (max(finished) - min(started)).total_seconds() if started and finished else None


# --- the front -------------------------------------------------------------------------------------------------------


def pareto(table: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """What the front plots show, one row per trained trial: trial, state, on_front, knee, hover, scores and costs."""
    columns = list(dict.fromkeys([*goals, "macs", "params"]))
    points = table.loc[table["state"].isin(["complete", "stopped"]), ["trial", "state", "on_front", *columns]].copy()
    points["knee"] = points["trial"] == (results.knee(table, goals) if table["on_front"].any() else -1)
    points["hover"] = [_hover(row) for _, row in table.loc[points.index].iterrows()]
    return points


def members(table: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """The front in reading order: cheapest first when an objective is a cost, else best first."""
    cheap = [column for column in goals if column in COSTS]
    column = cheap[0] if cheap else next(iter(goals))
    return table[table["on_front"]].sort_values([column, "trial"], ascending=[goals[column] == "minimise", True])


def axes_apart(rows: pd.DataFrame) -> tuple[list[str], dict[str, Any]]:
    """The choices in which these trials differ (column names), and those they share (axis -> value)."""
    axes = [column for column in rows if str(column).startswith("arch.")]
    different = [str(axis) for axis in axes if rows[axis].astype(str).nunique() > 1]
    shared = {str(axis)[5:]: rows[axis].iloc[0] for axis in axes if axis not in different and len(rows)}
    return different, {axis: value for axis, value in shared.items() if _cell(value)}


def hypervolume(table: pd.DataFrame, goals: Objectives) -> pd.DataFrame:
    """`results.hypervolume_history` with `share`: the part of the box between the best and worst values it fills."""
    history = results.hypervolume_history(table, goals)
    reference = results.reference_point(table, goals)
    if not reference:
        return history.assign(share=0.0)
    complete = results.minimised(table[table["state"] == "complete"], goals)
    signs = np.array([1.0 if way == "minimise" else -1.0 for way in goals.values()])
    box = np.prod(signs * np.array(list(reference.values())) - np.nanmin(complete, axis=0))
    return history.assign(share=history["hypervolume"] / float(box))


# --- what mattered ---------------------------------------------------------------------------------------------------


def scores_by_choice(table: pd.DataFrame, curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """axis, value (text), trial, score: every trained trial at the first rung, where all saw the same images.

    Later rungs hold only survivors, which would flatter choices that are stopped early. Numeric choices with many
    values are grouped by quarters.
    """
    if column not in curves or not len(curves):
        return pd.DataFrame(columns=["axis", "value", "order", "trial", "score"])
    first = curves[(curves["rung"] == curves["rung"].min()) & curves[column].notna()]
    scores = first.set_index("trial")[column].astype(float)
    trained = table[table["trial"].isin(scores.index)]
    parts = []
    for axis in (str(name) for name in table if str(name).startswith("arch.")):
        values = _grouped(trained[axis].dropna())
        if values.nunique() < 2:
            continue
        numbers = trained.loc[values.index, "trial"].astype(int)
        part = {"axis": axis[5:], "value": values.astype(str), "order": values.map(_rank), "trial": numbers}
        parts.append(pd.DataFrame(part).assign(score=scores.reindex(numbers).to_numpy()))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["axis", "value", "trial", "score"])


def effects(points: pd.DataFrame) -> pd.DataFrame:
    """Mean score by choice, axes with the largest share first: axis, value, n, mean, share.

    `share` is the part of the scores' variance that the axis explains beyond what as many random groups would (adjusted
    R squared, at least 0). It is a description: a sampler that learns does not vary one axis at a time.
    """
    if not len(points):
        return pd.DataFrame(columns=["axis", "value", "n", "mean", "share"])
    shares = {axis: _explained(part) for axis, part in points.groupby("axis", sort=False)}
    grouped = points.groupby(["axis", "value"], sort=False)
    found = grouped.agg(n=("score", "size"), mean=("score", "mean"), order=("order", "first")).reset_index()
    found["share"] = found["axis"].map(shares)
    ordered = found.sort_values(["share", "axis", "order"], ascending=[False, True, True])
    return ordered.drop(columns="order").reset_index(drop=True)


def timings(curves: pd.DataFrame) -> pd.DataFrame:
    """Per rung: rung, trials, images_seen, mean seconds of each phase, median images_per_s, largest peak_memory_mib."""
    if not len(curves):
        return pd.DataFrame(columns=["rung", "trials"])
    phases = {name: (name, "mean") for name in results.TIMINGS if name in curves}
    rest = {"images_per_s": ("images_per_s", "median"), "peak_memory_mib": ("peak_memory_mib", "max")}
    named = {"trials": ("trial", "size"), "images_seen": ("images_seen", "max"), **phases, **rest}
    numeric = curves.astype({name: float for name, _ in rest.values()})
    return numeric.groupby("rung").agg(**named).reset_index()


# --- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A samples.png as tiles: its geometry in pixels, and the picture as a data URL (WebP, an eighth of the PNG)."""

    tile: int
    border: int
    columns: int
    rows: int
    width: int
    height: int
    url: str

    def corner(self, index: int) -> tuple[int, int]:
        """Left and top of a tile, counted row by row."""
        row, column = divmod(index, self.columns)
        return self.border + column * (self.tile + GAP), self.border + row * (self.tile + GAP)


def read_grid(path: Path) -> Grid | None:
    """The tiles of a samples.png, found by its white gaps; None if there is no file or no such grid in it."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    white = np.asarray(image).min(axis=2) == 255
    for tile in TILE_SIZES:
        for border in (GAP, 0):
            if _is_grid(white.all(axis=0), tile, border) and _is_grid(white.all(axis=1), tile, border):
                shape = [(size - 2 * border + GAP) // (tile + GAP) for size in image.size]
                return Grid(tile, border, shape[0], shape[1], *image.size, _data_url(image))
    return None


def _guidance(path: Path) -> str | None:
    """The picture that `nas sweep-guidance` left, as a data URL; None if there is none."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as opened:
        return _data_url(opened.convert("RGB"))


def _is_grid(white: np.ndarray, tile: int, border: int) -> bool:
    """Whether a side of the picture (one mark per pixel line that is all white) divides into tiles with white gaps."""
    inner = white[border : len(white) - border]
    fits = len(inner) >= tile and (len(inner) + GAP) % (tile + GAP) == 0
    gaps = np.arange(len(inner)) % (tile + GAP) >= tile
    return fits and bool(inner[gaps].all()) and bool(white[:border].all())


def _data_url(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# --- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Everything a report is made from, read once."""

    path: Path
    settings: dict[str, Any]
    trials: list[results.Record]
    captions: list[str]
    goals: Objectives
    table: pd.DataFrame
    curves: pd.DataFrame

    @classmethod
    def read(cls, run_dir: Path) -> Run:
        path, settings, trials = Path(run_dir), results.resolved(run_dir), results.records(run_dir)
        goals = results.objectives(settings)
        table = results.frame(trials, results.conditions(path), goals)
        captions = path / "captions.json"
        drawn = json.loads(captions.read_text(encoding="utf-8")) if captions.is_file() else []
        return cls(path, settings, trials, drawn, goals, table, results.curves(trials))

    @property
    def is_ablation(self) -> bool:
        return bool(self.settings.get("ablation"))

    @cached_property
    def effects(self) -> dict[str, dict[str, pd.DataFrame]]:
        """The tables of an ablation by column and kind; {} for a search, and while there is nothing to compare."""
        try:
            return ablation.of_run(self.path) if self.is_ablation else {}
        except InputError:
            return {}

    @property
    def budget(self) -> dict[str, float]:
        return {name: float(limit) for name, limit in (self.settings.get("budget") or {}).items() if name in self.table}

    @property
    def scores(self) -> list[str]:
        """The objectives that were measured, not counted."""
        return [column for column in self.goals if column not in COSTS]


def write(run_dir: Path) -> Path:
    """Write `results.csv` and `report.html` into the run directory; returns the page's path."""
    results.write_csv(run_dir)
    page = Path(run_dir) / "report.html"
    partial = page.with_suffix(".html.partial")
    partial.write_text(render(Run.read(run_dir)), encoding="utf-8")
    partial.replace(page)
    return page


def front_png(run_dir: Path, path: Path) -> Path:
    """Draw the front as a picture for a README (150 dots an inch, one panel per pair of objectives, at most three)."""
    run = Run.read(run_dir)
    figures.save_front(pareto(run.table, run.goals), figures.pairs(run.goals), run.budget, path)
    return path


def render(run: Run) -> str:
    """The page as text, with the plot library inside."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    drawn = _figures(run)
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(template).render(
        **_contents(run),
        plots={section: [name for name in drawn if name.split("-")[0] == section] for section in _sections(drawn)},
        heights={name: figure.layout.height for name, figure in drawn.items()},
        figures=Markup("{" + ",".join(f'"{name}":{figure.to_json()}' for name, figure in drawn.items()) + "}"),
        plotly=Markup(get_plotlyjs()),
    )


def _figures(run: Run) -> dict[str, Any]:
    """Every figure of the page by name; the part before the dash is its section."""
    return {**(_cell_figures(run) if run.is_ablation else _search_figures(run)), **_curve_figures(run)}


def _cell_figures(run: Run) -> dict[str, Any]:
    return {
        f"cells-{place}": figures.draw_cells(kinds["cells"], run.table, column)
        for place, (column, kinds) in enumerate(run.effects.items())
    }


def _search_figures(run: Run) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    points = pareto(run.table, run.goals)
    if len(points):
        for place, (x, y) in enumerate(figures.pairs(run.goals)):
            drawn[f"front-{place}"] = figures.draw_pareto(points, x, y, run.budget).update_layout(showlegend=False)
    for place, column in enumerate(run.scores):
        by_choice = scores_by_choice(run.table, run.curves, column)
        found = effects(by_choice)
        axes = list(dict.fromkeys(found["axis"]))[:MOST_AXES_DRAWN]
        if axes:
            kept = by_choice[by_choice["axis"].isin(axes)], found[found["axis"].isin(axes)]
            drawn[f"effects-{place}"] = figures.draw_effects(*kept, column)
    for place, (column, limit) in enumerate(run.budget.items()):
        proposed = run.table[run.table[column].notna()]
        if len(proposed):
            drawn[f"budget-{place}"] = figures.draw_proposed(proposed, column, limit)
    if run.table["on_front"].any():
        drawn["hypervolume-0"] = figures.draw_hypervolume(hypervolume(run.table, run.goals))
    return drawn


def _curve_figures(run: Run) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    chosen = run.table["state"] == "complete" if run.is_ablation else run.table["on_front"]
    columns = [column for column in dict.fromkeys([*run.scores, "denoising_loss"]) if column in run.curves]
    for place, column in enumerate(columns if len(run.curves) else []):
        curves = figures.draw_curves(run.curves, column, run.table.loc[chosen, "trial"].astype(int))
        drawn[f"curves-{place}"] = curves.update_layout(showlegend=False)
    return drawn


def _sections(drawn: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*(name.split("-")[0] for name in drawn), *_ALL_SECTIONS]))


_ALL_SECTIONS = ("cells", "front", "effects", "curves", "budget", "hypervolume")


def _contents(run: Run) -> dict[str, Any]:
    """What the template sets out, as text and lists of text."""
    table, goals = run.table, run.goals
    best = _first_of_cells(table) if run.is_ablation else members(table, goals)
    knee = results.knee(table, goals) if len(best) and not run.is_ablation else None
    provenance = run.settings.get("provenance") or {}
    return {
        "name": run.settings.get("name") or run.path.name,
        "question": run.settings.get("question") or "",
        "answer": _ablation_answer(run) if run.is_ablation else answer(table, goals, run.budget),
        "ablation": _ablation(run),
        "counts": counts(table),
        "effort": _effort(run),
        "knee": knee,
        "winner": _winner_rows(table, goals) if knee is not None else [],
        "winner_choices": _choices(best[best["trial"] == knee].iloc[0]) if knee is not None else [],
        "goals": [(figures.label(column), way) for column, way in goals.items()],
        "colours": {"front": figures.FRONT, "knee": figures.KNEE, "rest": figures.GREY, "stopped": figures.PALE},
        "front": {"heads": [], "rows": [], "shared": []} if run.is_ablation else _front_table(best, run),
        "pictures": _pictures(best, run),
        "guidance": _guidance(run.path / "guidance.png"),
        "certainty": None
        if run.is_ablation
        else certainty.front_page(run.table, run.goals, certainty.confidence(run.settings)),
        "trust": None
        if run.is_ablation
        else certainty.proxy_page(run.settings, run.path.resolve().parent.parent / ".cache"),
        "failed": _reasons(table, "failed"),
        "refusals": [(_said(name), count) for name, count in refusals(table, run.budget).items()],
        "conditions": _conditions(table),
        "timings": _timings_table(run.curves),
        "trials": _trials_table(run),
        "provenance": [(name, provenance[name]) for name in ("started", "device", "commit") if provenance.get(name)],
        "versions": provenance.get("versions") or {},
        "settings": yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True),
        "path": str(run.path),
    }


def _first_of_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The first complete repeat of every cell: what the pictures show."""
    return table[table["state"] == "complete"].sort_values("repeat", kind="stable").drop_duplicates("cell")


def _ablation_answer(run: Run) -> str:
    done = run.table[run.table["state"] == "complete"]
    trained = f"{done['cell'].nunique()} cells, {_number_of(len(done), 'training')} to the end."
    return f"{trained} {ablation.answer(run.effects) or 'There is nothing to compare yet.'}"


def _ablation(run: Run) -> dict[str, Any] | None:
    """The tables of an ablation for the page: per column its table of cells, then the effects; and the base's scores."""
    if not run.is_ablation:
        return None
    columns = [
        {
            "label": figures.label(column) + _arrow(run.goals[column]),
            "plot": f"cells-{place}",
            "tables": [(kind, _page_table(table)) for kind, table in kinds.items()],
        }
        for place, (column, kinds) in enumerate(run.effects.items())
    ]
    return {
        "columns": columns,
        "base": _base_scores(run),
        "pooled": run.settings["ablation"].get("variance") == "pooled",
    }


def _page_table(table: pd.DataFrame) -> dict[str, Any]:
    text = ablation.readable(table)
    words = set(table.columns[: list(table.columns).index("n")]) | {"verdict"}
    heads = [(str(name), str(name).replace(" ", "_") not in words) for name in text]
    return {"heads": heads, "rows": text.to_numpy().tolist()}


def _base_scores(run: Run) -> list[tuple[str, str]]:
    """How the base model was drawn, and what it scored."""
    path = run.path / "base.json"
    scored = json.loads(path.read_text(encoding="utf-8"))["scores"] if path.is_file() else []
    return [
        (
            ", ".join(f"{name} {_cell(value)}" for name, value in found["sampling"].items()),
            ", ".join(figures.measured(column, value) for column, value in found["metrics"].items()),
        )
        for found in scored
    ]


def _effort(run: Run) -> str:
    seconds = elapsed_s(run.trials)
    images = int(run.curves.groupby("trial")["images_seen"].max().sum()) if len(run.curves) else 0
    took = f"{_duration(seconds)} from first start to last end, " if seconds is not None else ""
    return f"{took}{images:,} training images over {_number_of(run.curves['trial'].nunique(), 'trained network')}"


def _winner_rows(table: pd.DataFrame, goals: Objectives) -> list[dict[str, Any]]:
    return [
        {
            "label": figures.label(row["column"]),
            "arrow": _arrow(goals[row["column"]]),
            "value": figures.shown(row["column"], row["knee"]),
            "best": figures.shown(row["column"], row["best"]),
            "best_trial": row["best_trial"],
            "is_best": row["knee"] == row["best"],
        }
        for row in winner(table, goals).to_dict("records")
    ]


def _choices(row: pd.Series) -> list[tuple[str, str]]:
    kinds = ("arch.", "factor.")
    cells = [(str(n).partition(".")[2], _cell(value)) for n, value in row.items() if str(n).startswith(kinds)]
    return [(axis, value) for axis, value in cells if value]


def _front_table(best: pd.DataFrame, run: Run) -> dict[str, Any]:
    """Choices that differ first, then objectives, then the other scores and costs."""
    different, shared = axes_apart(best)
    others = [*best.attrs.get("conditions", {}), "macs", "params"]
    numbers = [column for column in dict.fromkeys([*run.goals, *others]) if column in best]
    heads = [
        *(axis[5:].replace("_", " ") for axis in different),
        *(figures.label(c) + _arrow(run.goals.get(c, "")) for c in numbers),
    ]
    rows = []
    for _, row in best.iterrows():
        choices = [(_cell(row[axis]), False) for axis in different]
        rows.append((int(row["trial"]), choices + [(figures.shown(column, row[column]), True) for column in numbers]))
    kinds = [False] * len(different) + [True] * len(numbers)
    return {"heads": list(zip(heads, kinds, strict=True)), "rows": rows, "shared": [*shared.items()]}


def _pictures(best: pd.DataFrame, run: Run) -> dict[str, Any]:
    """One column per front member, one row per caption, and how many tiles there are to show."""
    drawn, columns, tiles = [], run.scores[:2], 0
    for _, row in best.head(MOST_MEMBERS_DRAWN).iterrows():
        trial = int(row["trial"])
        grid = read_grid(run.path / "trials" / f"{trial:04d}" / "samples.png")
        notes = [f"{figures.label(column).split(' ')[0]} {figures.shown(column, row[column])}" for column in columns]
        name = str(row["cell"]) if run.is_ablation else f"trial {trial}"
        drawn.append({"trial": trial, "name": name, "notes": notes, "grid": grid})
        tiles = max(tiles, grid.columns * grid.rows if grid else 0)
    captions = list(enumerate(run.captions[:tiles]))
    return {"members": drawn, "captions": captions, "left_out": max(0, len(best) - MOST_MEMBERS_DRAWN)}


def _reasons(table: pd.DataFrame, state: str) -> list[tuple[int, str, str]]:
    rows = table[table["state"] == state]
    return [
        (int(row["trial"]), str(row["reason"] or ""), ", ".join(map(" ".join, _choices(row))))
        for _, row in rows.iterrows()
    ]


def _conditions(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Column, unit with direction, and what it was measured with."""
    told = []
    for column, found in table.attrs.get("conditions", {}).items():
        direction = "higher is better" if found.get("higher_is_better") else "lower is better"
        unit = ", ".join(part for part in (str(found.get("unit") or ""), direction) if part)
        rest = {name: value for name, value in found.items() if name not in ("unit", "higher_is_better")}
        told.append((column, unit, ", ".join(f"{name} {_cell(value)}" for name, value in rest.items())))
    return told


def _timings_table(curves: pd.DataFrame) -> dict[str, Any]:
    found = timings(curves)
    heads = [str(column).replace("_", " ").replace(" per s", "/s").replace(" mib", " (MiB)") for column in found]
    rows = [[_plain_number(column, value) for column, value in row.items()] for _, row in found.iterrows()]
    phases = [name for name in results.TIMINGS if name in curves and name != "total_s"]
    totals = {name: float(curves[name].sum()) for name in phases}
    whole = sum(totals.values()) or 1.0
    shares = [
        (name.removesuffix("_s"), f"{seconds:,.0f} s", f"{seconds / whole:.0%}") for name, seconds in totals.items()
    ]
    return {"heads": heads, "rows": rows, "shares": shares}


def _trials_table(run: Run) -> dict[str, Any]:
    columns = [column for column in dict.fromkeys([*run.goals, "params", "macs"]) if column in run.table]
    rows = []
    for _, row in run.table.iterrows():
        cells = [figures.shown(column, row[column]) for column in columns]
        state = "front" if row["on_front"] and not run.is_ablation else str(row["state"]).replace("_", " ")
        rows.append((int(row["trial"]), state, str(row["reason"] or ""), cells))
    return {"heads": [figures.label(column) for column in columns], "rows": rows}


# --- words and small sums --------------------------------------------------------------------------------------------


def _front_in_words(table: pd.DataFrame, goals: Objectives) -> str:
    best = table[table["on_front"]]
    if not len(best):
        return "No trial was trained to the end, so there is no front and no winner."
    knee = results.knee(table, goals)
    row = best[best["trial"] == knee].iloc[0]
    scores = _listed([figures.measured(column, row[column]) for column in goals])
    if len(best) == 1:
        return f"Trial {knee} is as good as any in every objective: {scores}."
    return f"Of the fully trained, {len(best)} form the front; its knee is trial {knee}: {scores}."


def _hover(row: pd.Series) -> str:
    seen = "" if pd.isna(row["images_seen"]) else f", {int(row['images_seen']):,} images"
    state = "stopped early" if row["state"] == "stopped" else "front" if row["on_front"] else "fully trained"
    return f"<b>trial {row['trial']}</b> ({state}{seen})<br>{figures.architecture(row)}"


def _explained(part: pd.DataFrame) -> float:
    groups = part.groupby("value")["score"]
    count, kinds = len(part), groups.ngroups
    total = float(((part["score"] - part["score"].mean()) ** 2).sum())
    within = float(((part["score"] - groups.transform("mean")) ** 2).sum())
    if count <= kinds or total == 0.0:
        return 0.0
    return max(0.0, 1.0 - (within / (count - kinds)) / (total / (count - 1)))


def _grouped(values: pd.Series) -> pd.Series:
    """Choices as they are; many numbers by quarters."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any() or numbers.nunique() <= MOST_VALUES:
        return values
    return pd.qcut(numbers.astype(float), 4, duplicates="drop", precision=2).astype(str)


def _rank(value: Any) -> float:
    """Numbers sort by size, text keeps the order in which it was met."""
    try:
        return float(str(value).lstrip("(").split(",")[0])
    except ValueError:
        return 0.0


def _exceeds(value: Any, limit: float) -> bool:
    return bool(pd.notna(value)) and float(value) > limit


def _said(broken: str) -> str:
    words = {"macs": "MACs", "params": "parameters"}
    return " and ".join(words.get(name, name.replace("_", " ")) for name in broken.split(" and "))


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _number_of(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _arrow(way: str) -> str:
    return {"minimise": "\u00a0↓", "maximise": "\u00a0↑"}.get(way, "")


def _cell(value: Any) -> str:
    if not isinstance(value, str | list | dict | tuple) and pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain_number(column: Any, value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if column in ("rung", "trials", "images_seen", "peak_memory_mib") else f"{value:,.2f}"
