"""Results as a table: one row per trial, units in the column names, an empty cell where there is no number.

Everything is computed from the files of a run directory: `trials/*/record.json`, `resolved.yaml`, `conditions.json`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from nas.analysis import reference_lines
from nas.analysis.fronts import Objectives, front
from nas.analysis.people import preference
from nas.disk import files
from nas.documents.document import Document
from nas.errors import InputError
from nas.runs.description import conditions, find, resolved
from nas.runs.records import STATES as STATES
from nas.runs.records import Record as Record
from nas.runs.records import read_all

COSTS = ("params", "macs", "macs_without_attention", "macs_padding_free", "activation_bytes")
TIMINGS = ("load_s", "train_s", "sample_s", "score_s", "save_s", "total_s")

TEXT = ("key", "state", "reason", "init")
PROXY_COSTS = tuple(f"proxy_{name}" for name in COSTS)
INTEGERS = ("trial", "seed", "repeat", "duplicate_of", "rung", "images_seen", *COSTS, *PROXY_COSTS)
_SPEEDS = (*TIMINGS, "wall_s", "passes", "images_per_s", "peak_memory_mib")


# --- reading a run directory -----------------------------------------------------------------------------------------


def records(run_dir: Path) -> list[Record]:
    """Every trial's record by trial number. A trial folder without a record is a trial that has not reported yet.

    InputError for a record that is damaged (nas.runs.records).
    """
    return list(read_all(run_dir).values())


def load(run_dir: Path) -> pd.DataFrame:
    """The run as a frame, one row per trial, with the columns of `frame`; `.attrs["conditions"]` says how it scored."""
    settings = resolved(run_dir)
    table = with_preference(frame(records(run_dir), conditions(run_dir), objectives(settings)), run_dir)
    table.attrs["reference"] = dict((settings.get("ablation") or {}).get("reference") or {})
    table.attrs["lines"] = scored_lines(run_dir)
    table.attrs["objectives"] = dict(objectives(settings))
    return table


def with_preference(table: pd.DataFrame, run_dir: Path) -> pd.DataFrame:
    """The frame with what people prefer as the last of its scores, where anybody judged; else as it is."""
    found = preference.column(run_dir)
    if not found:
        return table
    told = {column: dict(values) for column, values in table.attrs["conditions"].items()}
    place = list(table.columns).index(COSTS[0])
    table.insert(place, preference.COLUMN, table["trial"].map(found).astype("float64"))
    table.attrs["conditions"] = told | {preference.COLUMN: dict(preference.CONDITIONS)}
    return table


def states(table: pd.DataFrame) -> str:
    """How many trials ended in each way, as words."""
    counts = table["state"].value_counts()
    return ", ".join(f"{count} {str(state).replace('_', ' ')}" for state, count in counts.items())


def scored_lines(run_dir: Path) -> dict[str, dict[str, float]]:
    """The scores of what is no trial (`nas.analysis.reference_lines`), by name and column."""
    return {name: dict(line.scores) for name, line in reference_lines.read(run_dir).items()}


def load_finished(runs: Sequence[str | Path]) -> pd.DataFrame:
    """What `nas.load` returns: runs with at least one trial trained to the end each, as one frame."""
    if not runs:
        raise InputError("nas.load: expected at least one run directory, or a study's folder")
    tables = [_finished(Path(run)) for run in runs]
    if len(tables) == 1:
        return tables[0]
    for run, table in zip(runs, tables, strict=True):
        if not table.attrs["conditions"]:
            raise InputError(
                f"{run}: no conditions.json in it, so nobody knows whether its scores compare with another run's"
            )
    return concat(tables)


def _finished(path: Path) -> pd.DataFrame:
    if is_committed(path) and not (path / "resolved.yaml").exists():
        return load_committed(path)
    run_dir = find(path)
    table = load(run_dir)
    if not (table["state"] == "complete").any():
        raise InputError(f"{run_dir}: no trial was trained to the end yet")
    return table


def objectives(settings: Mapping[str, Any]) -> Objectives:
    """What the study minimises and maximises, by column, in the order of the study file."""
    search = settings.get("search") or settings.get("ablation") or {}
    goals = {str(column): "minimise" for column in search.get("minimise") or []}
    goals |= {str(column): "maximise" for column in search.get("maximise") or []}
    if not goals:
        raise InputError("resolved.yaml: search: names no objective, expected columns under `minimise` or `maximise`")
    return goals


def frame(
    trials: Sequence[Mapping[str, Any]], scored: Mapping[str, Mapping[str, Any]], goals: Objectives
) -> pd.DataFrame:
    """One row per trial, from records, metric conditions and objectives.

    Metrics are those of the last rung a trial reached. `*_s` are seconds: summed over the rungs, `wall_s` from start to
    end. `params`, `macs`, ... are at deploy scale, `proxy_*` at the scale that was trained. `arch.*` are the choices (a
    list as JSON text). An ablation has `cell` and the levels as `factor.*` instead.
    """
    rows = [_row(record) for record in trials]
    seen = list(dict.fromkeys(column for row in rows for column in row))
    axes = [column for column in seen if column == "cell" or column.startswith(("arch.", "factor."))]
    costs = list(dict.fromkeys([*COSTS, *(name for record in trials for name in record.get("cost") or {})]))
    own = (name for record in trials for name in record.get("proxy_cost") or {})  # a prior's is at this scale alone
    proxy_costs = [f"proxy_{name}" for name in dict.fromkeys([*costs, *own])]
    described = {*TEXT, *INTEGERS, *_SPEEDS, *axes, *costs, *proxy_costs}
    metrics = [column for column in dict.fromkeys([*scored, *goals, *seen]) if column not in described]
    columns = ["trial", "key", "state", "reason", "seed", "repeat", "duplicate_of", "init", "rung", "images_seen"]
    columns += ["on_front", *metrics, *costs, *proxy_costs, *_SPEEDS, *axes]
    table = pd.DataFrame(rows, columns=columns)
    for column in INTEGERS:
        table[column] = pd.array([_integer(value) for value in table[column]], dtype="Int64")
    for column in {*metrics, *costs, *proxy_costs, *_SPEEDS}.difference(INTEGERS):
        table[column] = pd.to_numeric(table[column]).astype("float64")
    for column in (*TEXT, *axes):
        table[column] = table[column].astype("object")
    table["on_front"] = front(table, goals)
    table.attrs["conditions"] = {column: dict(values) for column, values in scored.items()}
    return table


def curves(trials: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per trial and rung: trial, state, rung, images_seen, metrics, timings, images_per_s, peak_memory_mib."""
    rows = [
        {"trial": record["trial"], "state": record["state"], "rung": rung["rung"], "images_seen": rung["images_seen"]}
        | dict(rung.get("metrics") or {})
        | dict(rung.get("timings") or {})
        | {name: rung.get(name) for name in ("images_per_s", "peak_memory_mib")}
        for record in trials
        for rung in record.get("rungs") or []
    ]
    first = ["trial", "state", "rung", "images_seen"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*first, *(column for row in rows for column in row)])))


def concat(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several runs as one frame, with a column `run` (0, 1, ...).

    Runs that measured a metric under different conditions are refused: InputError, naming the condition. What people prefer is
    left out, for its scores compare the trials of one run.
    """
    together: dict[str, dict[str, Any]] = {}
    for table in frames:
        for column, found in table.attrs.get("conditions", {}).items():
            if column != preference.COLUMN:
                _require_same(column, together.setdefault(column, found), found)
    frames = [table.drop(columns=preference.COLUMN, errors="ignore") for table in frames]
    joined = pd.concat([table.assign(run=number) for number, table in enumerate(frames)], ignore_index=True)
    joined.attrs = {"conditions": together}
    return joined


def write_csv(run_dir: Path) -> Path:
    """Write `results.csv` (the frame of `load`) into the run directory; readers never see half a file."""
    path = Path(run_dir) / "results.csv"
    with files.replacing(path) as partial:
        load(run_dir).to_csv(partial, index=False)
    return path


# --- the parts -------------------------------------------------------------------------------------------------------


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    rungs = record.get("rungs") or []
    last = rungs[-1] if rungs else {}
    memory = [rung["peak_memory_mib"] for rung in rungs if rung.get("peak_memory_mib") is not None]
    row = {name: record.get(name) for name in (*TEXT, "trial", "seed", "repeat", "duplicate_of")}
    row |= {name: last.get(name) for name in ("rung", "images_seen", "passes", "images_per_s")} | dict(
        last.get("metrics") or {}
    )
    row |= dict(record.get("cost") or {})
    row |= {f"proxy_{name}": value for name, value in (record.get("proxy_cost") or {}).items()}
    row |= {name: _total([(rung.get("timings") or {}).get(name) for rung in rungs]) for name in TIMINGS}
    row |= {"peak_memory_mib": max(memory, default=None)}
    row |= {"wall_s": _seconds_between(record.get("started"), record.get("finished"))}
    kind = "factor" if "cell" in record else "arch"
    row |= {"cell": record["cell"]} if "cell" in record else {}
    return row | {f"{kind}.{axis}": _plain(value) for axis, value in (record.get("choices") or {}).items()}


def _total(seconds: Sequence[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return sum(known) if known else None


def _seconds_between(started: str | None, finished: str | None) -> float | None:
    if not started or not finished:
        return None
    return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _integer(value: Any) -> int | None:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if missing else int(value)


def _require_same(column: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for condition in sorted({*first, *other}):
        if first.get(condition) != other.get(condition):
            values = f"{first.get(condition)!r} and {other.get(condition)!r}"
            raise InputError(f"results: {column} cannot be compared between these runs: {condition} is {values}")


def is_committed(folder: Path) -> bool:
    """Whether the folder holds a study and its results, and no run."""
    return all((Path(folder) / name).is_file() for name in ("study.yaml", "results.csv"))


def load_committed(folder: Path) -> pd.DataFrame:
    """A study as it is committed, results.csv beside study.yaml: the frame that `load` gave when that was written; `.attrs`
    as `nas.load` has them.

    `on_front` is as it was written. InputError for a results.csv that holds something else than trials.
    """
    folder = Path(folder)
    path = folder / "results.csv"
    table = pd.read_csv(path, dtype={"key": object, "reason": object})
    missing = [name for name in ("trial", "key", "state", "on_front") if name not in table]
    if missing:
        raise InputError(
            f"{path}: not a table of trials (no column {missing[0]!r}): a script of this study wrote it; use pandas.read_csv"
        )
    study = settings(folder)
    for name in table:
        table[name] = _typed(table[name])
    judged = {preference.COLUMN: dict(preference.CONDITIONS)} if preference.COLUMN in table else {}
    table.attrs["conditions"] = conditions(folder) | judged
    table.attrs["reference"] = dict((study.get("ablation") or {}).get("reference") or {})
    table.attrs["lines"] = scored_lines(folder)
    table.attrs["objectives"] = dict(objectives(study))
    return table


def settings(folder: Path) -> dict[str, Any]:
    """The study file as it is written, without defaults; objectives and budgets can be read from it."""
    return Document.read(Path(folder) / "study.yaml").content


def _typed(column: pd.Series) -> pd.Series:
    """As `results.frame` has it: whole numbers as Int64, other numbers as float64, choices and text as objects.

    A CSV does not tell whether a choice of 4.0 was 4; whole ones come back as int.
    """
    name = str(column.name)
    if name in INTEGERS:
        return column.astype("Int64")
    if name.startswith(("arch.", "factor.")) or name == "cell":
        return pd.Series([_choice(value) for value in column], index=column.index, name=name, dtype="object")
    if name in TEXT:
        return column.astype("object").where(column.notna(), "" if name == "reason" else None)
    return column if name == "on_front" else column.astype("float64")


def _choice(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.item() if hasattr(value, "item") else value
