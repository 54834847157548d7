"""The sections of a report in words: what the page sets out, as text and lists of text. The template escapes all of it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import yaml

from nas.analysis import ablation, certainty, findings, importance, learning, naming, reference_lines, results
from nas.analysis.findings import Run
from nas.analysis.naming import arrow, cell, label, measured, shown
from nas.numbers import amount, duration, number_of
from nas.report import details
from nas.report.chapters import losses
from nas.runs.pictures import Grid
from nas.weights import worlds

MOST_MEMBERS_DRAWN = 24  # columns of pictures; the others open on a click
MOST_ROWS = 300  # of a table of refused or stopped candidates
STRIP = 12  # pictures of the winner on the first screen


def contents(run: Run, album: dict[int, Grid], known: dict[str, Grid]) -> dict[str, Any]:
    """What the template sets out; `album` has the pictures of trials, `known` those of lines of reference."""
    table, provenance = run.table, run.settings.get("provenance") or {}
    return {
        "name": run.name,
        "question": run.settings.get("question") or "",
        "answer": _ablation_answer(run)
        if run.is_ablation
        else findings.answer(table, run.goals, run.budget, run.lines),
        "foreign": provenance.get(worlds.RECORDED) or "",
        "ablation": _ablation(run),
        "counts": findings.counts(table),
        "effort": _effort(run),
        "looks": len(run.looks),
        "knee": run.knee,
        "winner": _winner(run, album) if run.knee is not None else None,
        "goals": [(label(column), way) for column, way in run.goals.items()],
        "front": {"heads": [], "rows": [], "lines": [], "shared": []} if run.is_ablation else _front_table(run),
        "lines": _lines(run),
        "pictures": _pictures(run, album, known),
        "importance": None if run.is_ablation else _importance(run),
        "certainty": None if run.is_ablation else certainty.front_page(run.certainty, run.goals),
        "trust": None
        if run.is_ablation
        else certainty.proxy_page(run.settings, run.path.resolve().parent.parent / ".cache"),
        "stopped": _stopped(run),
        "refused": _reasons(table, "over_budget"),
        "failed": _reasons(table, "failed"),
        "refusals": [(naming.said(name), count) for name, count in findings.refusals(table, run.budget).items()],
        "components": _components(run),
        "losses": losses.told(run.settings, run.trials),
        "conditions": _conditions(table),
        "timings": _timings_table(run.curves),
        "trials": _trials_table(run),
        "provenance": [(name, provenance[name]) for name in ("started", "device", "commit") if provenance.get(name)],
        "versions": provenance.get("versions") or {},
        "settings": yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True),
        "path": str(run.path),
    }


def components(run: Run) -> pd.DataFrame:
    """`findings.components` of the trials that are shown, at the study's deploy scale."""
    deploy = run.settings.get("deploy") or {}
    if not {"image_size", "downsampling", "text_tokens"} <= set(deploy):
        return findings.components([], 1, 1)
    shown_trials = set(run.best["trial"].head(MOST_MEMBERS_DRAWN // 2)) | {run.knee}
    if run.is_ablation:  # factors other than the architecture leave the network as it is
        shown_trials = set(run.best.drop_duplicates("key")["trial"])
    records = [record for record in run.trials if record["trial"] in shown_trials]
    size = int(deploy["image_size"]) // int(deploy["downsampling"])
    return findings.components(records, size, int(deploy["text_tokens"]))


# --- the first screen ------------------------------------------------------------------------------------------------


def _winner(run: Run, album: dict[int, Grid]) -> dict[str, Any]:
    row = run.best[run.best["trial"] == run.knee].iloc[0]
    grid = album.get(int(row["trial"]))
    return {
        "rows": _winner_rows(run),
        "why": findings.why(run.table, run.goals),
        "choices": naming.choices(row),
        "captions": run.captions[: min(STRIP, len(run.captions), grid.rows * grid.columns)] if grid else [],
        "sure": _sure(run),
    }


def _winner_rows(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "label": label(row["column"]),
            "arrow": arrow(run.goals[row["column"]]),
            "value": shown(row["column"], row["knee"]),
            "best": shown(row["column"], row["best"]),
            "best_trial": row["best_trial"],
            "is_best": row["knee"] == row["best"],
            "position": round(100 * row["position"], 1),
            "beside": _beside(run, row["column"]),
        }
        for row in findings.winner(run.table, run.goals).to_dict("records")
    ]


def _beside(run: Run, column: str) -> str:
    """What the lines of reference score in a column, in a row of text."""
    scored = [(line, line.scores.get(column)) for line in run.lines.values()]
    return ", ".join(f"{line.label} {shown(column, value)}" for line, value in scored if value is not None)


def _sure(run: Run) -> str:
    """How sure the winner's place is, in a sentence."""
    mine = [one for one in run.certainty.contenders if one.trial == run.knee]
    if not run.certainty.degrees or not mine:
        return "Every network was trained once, so how sure its place is was not measured."
    return (
        f"With {number_of(mine[0].trials, 'training')} it is on the front with probability {mine[0].probability:.2f}."
    )


def _effort(run: Run) -> list[tuple[str, str]]:
    """What it cost to find the answer: a number and its name."""
    seconds = findings.elapsed_s(run.trials)
    spent = findings.compute(run.table)
    told = [] if seconds is None else [(duration(seconds), "from first start to last end")]
    if len(spent) and spent["seconds"].iloc[-1]:
        told.append((duration(float(spent["seconds"].iloc[-1])), "of workers, all together"))
    if run.looks:
        looked_s = sum(look["seconds"] for look in run.looks.values())
        told.append((number_of(len(run.looks), "slice"), f"looked at before training, {duration(looked_s)} of workers"))
    for known in run.earlier:
        told.append(
            (number_of(len(known["trials"]), "trial"), f"of {known['run']} that the search knew, none of them below")
        )
    images = int(run.curves.groupby("trial")["images_seen"].max().sum()) if len(run.curves) else 0
    told.append((f"{images:,}", "training images"))
    if len(spent) and spent["macs"].iloc[-1]:
        told.append((f"{amount(float(spent['macs'].iloc[-1]))}MACs", "of training"))
    return told


# --- ablations -------------------------------------------------------------------------------------------------------


def _ablation_answer(run: Run) -> str:
    done = run.table[run.table["state"] == "complete"]
    cells = number_of(done["cell"].nunique(), "cell") if len(done) else "no cell"
    trained = f"{cells}, {number_of(len(done), 'training')} to the end."
    found = ablation.answer({label(column): kinds for column, kinds in run.effects.items()})
    found = found or "There is nothing to compare yet."
    return f"{trained} {found} {learning.nothing_learnt(run.table, run.goals, run.lines)}".rstrip()


def _ablation(run: Run) -> dict[str, Any] | None:
    """The tables of an ablation for the page: per column its table of cells, then the effects; and the base's scores."""
    if not run.is_ablation:
        return None
    columns = [
        {
            "label": label(column) + arrow(run.goals[column]),
            "plot": f"cells-{place}",
            "tables": [(kind, _page_table(table)) for kind, table in kinds.items()],
        }
        for place, (column, kinds) in enumerate(run.effects.items())
    ]
    pooled = run.settings["ablation"].get("variance") == "pooled"
    return {"columns": columns, "base": _base_scores(run), "pooled": pooled}


def _page_table(table: pd.DataFrame) -> dict[str, Any]:
    text = ablation.readable(table)
    words = set(table.columns[: list(table.columns).index("n")]) | {"verdict"}
    heads = [(str(name), str(name).replace(" ", "_") not in words) for name in text]
    return {"heads": heads, "rows": text.to_numpy().tolist()}


def _base_scores(run: Run) -> list[tuple[str, str]]:
    """How the base model was drawn, and what it scored."""
    return [
        (
            ", ".join(f"{name} {cell(value)}" for name, value in found.sampling.items()),
            ", ".join(measured(column, value) for column, value in found.metrics.items()),
        )
        for found in reference_lines.base_scores(run.path) or []
    ]


# --- the front and its pictures --------------------------------------------------------------------------------------


def _front_table(run: Run) -> dict[str, Any]:
    """Objectives first, then the choices that differ, then the other scores and costs."""
    best = run.best
    different, shared = findings.axes_apart(best)
    others = [c for c in dict.fromkeys([*best.attrs.get("conditions", {}), "macs", "params"]) if c not in run.goals]
    others = [column for column in others if column in best]
    columns = [(column, True) for column in run.goals] + [(axis, False) for axis in different]
    columns += [(column, True) for column in others]
    heads = [
        (naming.breakable(label(column)) + arrow(run.goals.get(column, "")), True)
        if number
        else (column[5:].replace("_", " "), False)
        for column, number in columns
    ]
    rows = [
        (int(row["trial"]), [(shown(c, row[c]) if number else cell(row[c]), number) for c, number in columns])
        for _, row in best.iterrows()
    ]
    lines = [
        (line.label, [(shown(column, line[column]) if number else "", number) for column, number in columns])
        for line in run.lines.values()
    ]
    return {"heads": heads, "rows": rows, "lines": lines, "shared": [*shared.items()]}


def _lines(run: Run) -> dict[str, Any]:
    """The lines of reference as a table of their own: what each is, and what it scores."""
    columns = list(dict.fromkeys([*run.scores, *(column for line in run.lines.values() for column in line.scores)]))
    rows = [(line.label, line.told, [shown(column, line[column]) for column in columns]) for line in run.lines.values()]
    return {"heads": [label(column) + arrow(run.goals.get(column, "")) for column in columns], "rows": rows}


def _pictures(run: Run, album: dict[int, Grid], known: dict[str, Grid]) -> dict[str, Any]:
    """One column per line of reference and front member, one row per caption, and how many tiles there are to show."""
    columns, tiles = run.scores[:2], 0
    lines = {
        name: {"trial": name, "name": line.label, "notes": _notes(line.scores, columns), "grid": known[name]}
        for name, line in run.lines.items()
        if name in known
    }
    first = [lines.pop(name) for name in ("real", "autoencoded") if name in lines]
    drawn = []
    for _, row in run.best.head(MOST_MEMBERS_DRAWN).iterrows():
        trial = int(row["trial"])
        grid = album.get(trial)
        notes = _notes(row, columns)
        name = str(row["cell"]) if run.is_ablation else f"trial {trial}"
        drawn.append({"trial": trial, "name": name, "notes": notes, "grid": grid})
        tiles = max(tiles, grid.columns * grid.rows if grid else 0)
    captions = list(enumerate(run.captions[:tiles]))
    drawn = [*first, *drawn, *lines.values()] if drawn else []
    return {
        "known": bool(known),
        "members": drawn,
        "captions": captions,
        "left_out": max(0, len(run.best) - MOST_MEMBERS_DRAWN),
    }


def _notes(scores: Any, columns: list[str]) -> list[str]:
    """Scores in as few words as a column of pictures has room for."""
    found = [(column, shown(column, scores.get(column))) for column in columns]
    return [f"{label(column).split(' ')[0]} {text}" for column, text in found if text]


# --- what mattered, what was left on the way -------------------------------------------------------------------------


def _importance(run: Run) -> dict[str, Any]:
    """A row per choice, a cell per objective: bar, whether beyond chance, and the direction in words."""
    found = importance.of_decisions(run.table, run.curves, run.goals)
    columns = [column for column in run.goals if column in set(found["column"])]
    rows = []
    for axis, part in found.groupby("axis", sort=False):
        by_column = part.set_index("column").to_dict("index")
        rows.append((axis, [_importance_cell(str(c), by_column[c]) if c in by_column else None for c in columns]))
    return {"heads": [label(c) + arrow(run.goals[c]) for c in columns], "rows": rows}


def _importance_cell(column: str, found: dict[Any, Any]) -> dict[str, Any]:
    told = f"{found['best']} better than {found['worst']} by {shown(column, found['gain'])}"
    return {
        "share": round(100 * found["share"]),
        "beyond": bool(found["p"] < importance.CHANCE),
        "sure": importance.sureness(found["p"]),
        "told": told if found["gain"] else "no difference",
    }


def _stopped(run: Run) -> list[tuple[int, str, str, str]]:
    """Trial, where it was stopped, why, and its scores there."""
    told = []
    for _, row in run.table[run.table["state"] == "stopped"].head(MOST_ROWS).iterrows():
        where = "" if pd.isna(row["rung"]) else f"rung {row['rung']}, {int(row['images_seen']):,} images"
        scores = ", ".join(measured(column, row[column]) for column in run.scores if pd.notna(row[column]))
        told.append((int(row["trial"]), where, str(row["reason"] or ""), scores))
    return told


def _reasons(table: pd.DataFrame, state: str) -> list[tuple[int, str, str]]:
    rows = table[table["state"] == state].head(MOST_ROWS)
    return [
        (int(row["trial"]), str(row["reason"] or ""), ", ".join(map(" ".join, naming.choices(row))))
        for _, row in rows.iterrows()
    ]


# --- costs and conditions --------------------------------------------------------------------------------------------


def _components(run: Run) -> dict[str, Any] | None:
    """The winner (of an ablation: the first network) taken apart: component, parameters, multiply-adds, shares."""
    costs = components(run)
    if not len(costs):
        return None
    trial = run.knee if run.knee in set(costs["trial"]) else int(costs["trial"].iloc[0])
    part = costs[costs["trial"] == trial].sort_values("macs", ascending=False)
    rows = [
        [row["component"]] + [f"{shown(c, row[c])} ({row[c] / (part[c].sum() or 1):.0%})" for c in ("macs", "params")]
        for row in part.to_dict("records")
    ]
    return {"trial": trial, "heads": ["component", label("macs"), label("params")], "rows": rows}


def _conditions(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Column, unit with direction, and what it was measured with."""
    told = []
    for column, found in table.attrs.get("conditions", {}).items():
        way = "higher is better" if found.get("higher_is_better") else "lower is better"
        unit = ", ".join(part for part in (str(found.get("unit") or ""), way) if part)
        rest = {name: value for name, value in found.items() if name not in ("unit", "higher_is_better")}
        told.append((column, unit, ", ".join(f"{name} {cell(value)}" for name, value in rest.items() if cell(value))))
    return told


def _timings_table(curves: pd.DataFrame) -> dict[str, Any]:
    found = findings.timings(curves)
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
    rows = [
        (
            int(row["trial"]),
            details.state(run, row),
            str(row["reason"] or ""),
            [shown(column, row[column]) for column in columns],
        )
        for _, row in run.table.iterrows()
    ]
    lines = [
        (line.label, line.told, [shown(column, line[column]) for column in columns]) for line in run.lines.values()
    ]
    return {"heads": [label(column) for column in columns], "rows": rows, "lines": lines}


def _plain_number(column: Any, value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if column in ("rung", "trials", "images_seen", "peak_memory_mib") else f"{value:,.2f}"
