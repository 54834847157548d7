"""Results as a table: one row per trial, units in the column names, an empty cell where there is no number.

Everything is computed from the files of a run directory: `trials/*/record.json`, `resolved.yaml`, `conditions.json`.
Wherever objectives are compared they are minimised: maximised columns enter with their sign turned.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from nas.errors import InputError
from nas.menu import nearest

Objectives = Mapping[str, str]  # column -> "minimise" or "maximise"
Record = dict[str, Any]

FORMAT = 1  # of a run directory; resolved.yaml says which, and a reader refuses what is newer than itself
STATES = ("complete", "stopped", "over_budget", "duplicate", "failed", "running")
COSTS = ("params", "macs", "macs_without_attention", "macs_padding_free", "activation_bytes")
TIMINGS = ("load_s", "train_s", "sample_s", "score_s", "save_s", "total_s")

TEXT = ("key", "state", "reason", "init")
_PROXY_COSTS = tuple(f"proxy_{name}" for name in COSTS)
INTEGERS = ("trial", "seed", "repeat", "duplicate_of", "rung", "images_seen", *COSTS, *_PROXY_COSTS)
_SPEEDS = (*TIMINGS, "wall_s", "images_per_s", "peak_memory_mib")


# --- reading a run directory -----------------------------------------------------------------------------------------


def resolved(run_dir: Path) -> dict[str, Any]:
    """The settings of a run as they were run. InputError for a directory without them, and for one of a newer format."""
    path = Path(run_dir) / "resolved.yaml"
    if not path.is_file():
        raise InputError(f"{run_dir}: not a run directory, expected the file resolved.yaml in it")
    settings = dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    written = (settings.get("provenance") or {}).get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise InputError(
            f"{run_dir}: written by a newer nas (format {written}, this one reads up to {FORMAT}): update nas"
        )
    return settings


def find(path: Path) -> Path:
    """The run directory at `path`: itself, or the latest run in a study's folder below runs/. InputError if there is none."""
    path = Path(path)
    runs = [path] if (path / "resolved.yaml").exists() else sorted(p.parent for p in path.glob("*/resolved.yaml"))
    if not runs:
        raise InputError(f"{path}: not a run directory (no resolved.yaml in it or in its subfolders)")
    return runs[-1]


def conditions(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Each metric column's unit, direction and what it was measured with (extractor, images, ...); {} before any."""
    path = Path(run_dir) / "conditions.json"
    return _read_object(path) if path.is_file() else {}


def records(run_dir: Path) -> list[Record]:
    """Every trial's record by trial number. A trial folder without a record is a trial that has not reported yet."""
    found = [_read_object(path) for path in (Path(run_dir) / "trials").glob("*/record.json")]
    return sorted(found, key=lambda record: int(record["trial"]))


def load(run_dir: Path) -> pd.DataFrame:
    """The run as a frame, one row per trial, with the columns of `frame`; `.attrs["conditions"]` says how it scored."""
    settings = resolved(run_dir)
    table = frame(records(run_dir), conditions(run_dir), objectives(settings))
    table.attrs["reference"] = dict((settings.get("ablation") or {}).get("reference") or {})
    return table


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
    from nas import committed

    if committed.is_committed(path) and not (path / "resolved.yaml").exists():
        return committed.load(path)
    run_dir = find(path)
    table = load(run_dir)
    if not (table["state"] == "complete").any():
        raise InputError(f"{run_dir}: no trial was trained to the end yet")
    table.attrs["objectives"] = dict(objectives(resolved(run_dir)))
    return table


def objectives(settings: Mapping[str, Any]) -> Objectives:
    """What the study minimises and maximises, by column, in the order of the study file."""
    search = settings.get("search") or settings.get("ablation") or {}
    goals = {str(column): "minimise" for column in search.get("minimise") or []}
    goals |= {str(column): "maximise" for column in search.get("maximise") or []}
    if not goals:
        raise InputError("resolved.yaml: search: names no objective, expected columns under `minimise` or `maximise`")
    return goals


def frame(trials: Sequence[Record], scored: Mapping[str, Mapping[str, Any]], goals: Objectives) -> pd.DataFrame:
    """One row per trial, from records, metric conditions and objectives.

    Metrics are those of the last rung a trial reached. `*_s` are seconds: summed over the rungs, `wall_s` from start to
    end. `params`, `macs`, ... are at deploy scale, `proxy_*` at the scale that was trained. `arch.*` are the choices (a
    list as JSON text). An ablation has `cell` and the levels as `factor.*` instead.
    """
    rows = [_row(record) for record in trials]
    seen = list(dict.fromkeys(column for row in rows for column in row))
    axes = [column for column in seen if column == "cell" or column.startswith(("arch.", "factor."))]
    costs = list(dict.fromkeys([*COSTS, *(name for record in trials for name in record.get("cost") or {})]))
    proxy_costs = [f"proxy_{name}" for name in costs]
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


def curves(trials: Iterable[Record]) -> pd.DataFrame:
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

    Runs that measured a metric under different conditions are refused: InputError, naming the condition.
    """
    together: dict[str, dict[str, Any]] = {}
    for table in frames:
        for column, found in table.attrs.get("conditions", {}).items():
            _require_same(column, together.setdefault(column, found), found)
    joined = pd.concat([table.assign(run=number) for number, table in enumerate(frames)], ignore_index=True)
    joined.attrs = {"conditions": together}
    return joined


def write_csv(run_dir: Path) -> Path:
    """Write `results.csv` (the frame of `load`) into the run directory; readers never see half a file."""
    path = Path(run_dir) / "results.csv"
    partial = path.with_suffix(".csv.partial")
    load(run_dir).to_csv(partial, index=False)
    partial.replace(path)
    return path


# --- fronts ----------------------------------------------------------------------------------------------------------


def minimised(table: pd.DataFrame, goals: Objectives) -> np.ndarray:
    """The objectives as a float64 array (trials, objectives) in which smaller is better everywhere; missing is NaN."""
    unknown = [column for column in goals if column not in table]
    if unknown:
        raise InputError(f"results: unknown objective {unknown[0]!r}{nearest(unknown[0], _scores_and_costs(table))}")
    columns = [table[column].astype("Float64").to_numpy(dtype=float, na_value=math.nan) for column in goals]
    return np.asarray(np.stack(columns, axis=1) * _signs(goals))


def pooled(table: pd.DataFrame, goals: Objectives) -> np.ndarray:
    """As `minimised`, but an architecture trained to the end more than once has the mean over its repeats, in the row of
    the first; its other rows are NaN."""
    values = minimised(table, goals)
    complete = np.flatnonzero((table["state"] == "complete").to_numpy(dtype=bool))
    for _, rows in pd.Series(complete).groupby(table["key"].to_numpy()[complete], sort=False):
        values[rows.iloc[0]] = values[rows].mean(axis=0)
        values[rows.iloc[1:]] = math.nan
    return values


def front(table: pd.DataFrame, goals: Objectives) -> pd.Series:
    """Which complete architectures no other one dominates (as good everywhere, better somewhere). Exact ties both stay.

    An architecture with repeats counts with their mean, and its first trial stands for it. A complete trial with a missing
    objective is not on the front. Boolean, aligned with the frame.
    """
    values = pooled(table, goals)
    eligible = (table["state"] == "complete").to_numpy(dtype=bool) & np.isfinite(values).all(axis=1)
    members = np.zeros(len(table), dtype=bool)
    members[eligible] = nondominated(values[eligible])
    return pd.Series(members, index=table.index, name="on_front")


def measurements(table: pd.DataFrame, goals: Objectives) -> dict[str, np.ndarray]:
    """Every architecture's complete trials as an array (repeats, objectives), all minimised: what `nas.racing` reads."""
    values = minimised(table, goals)
    usable = (table["state"] == "complete").to_numpy(dtype=bool) & np.isfinite(values).all(axis=1)
    rows = pd.Series(np.flatnonzero(usable))
    keys = table["key"].to_numpy()[usable]
    return {str(key): values[part.to_numpy()] for key, part in rows.groupby(keys, sort=False)}


def nondominated(points: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Boolean mask (n,) of the points (n, objectives), all minimised, that no other point dominates."""
    values = np.asarray(points, dtype=float)
    keep = np.ones(len(values), dtype=bool)
    for index, point in enumerate(values):
        keep[index] = not ((values <= point).all(axis=1) & (values < point).any(axis=1)).any()
    return keep


def reference_point(table: pd.DataFrame, goals: Objectives) -> dict[str, float]:
    """A corner for the hypervolume, per column: the worst complete trial, moved out by a tenth of their range.

    The tenth is an assumption; it lets the ends of the front count. {} without a complete trial.
    """
    values = minimised(table[table["state"] == "complete"], goals)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return {}
    worst, best = values.max(axis=0), values.min(axis=0)
    margin = 0.1 * np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1.0))
    corner = (worst + margin) * _signs(goals)
    return {column: float(value) for column, value in zip(goals, corner, strict=True)}


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """The volume that points (n, objectives), all minimised, dominate up to the reference (objectives,). Exact.

    The sum of slices between consecutive values of the first objective, each an area of one objective less (While,
    Hingston, Barone and Huband 2006, "HSO"). Points beyond the reference add nothing.
    """
    corner = np.asarray(reference, dtype=float)
    inside = np.asarray(points, dtype=float).reshape(-1, len(corner))
    return _volume(inside[(inside < corner).all(axis=1)], corner)


def hypervolume_history(
    table: pd.DataFrame, goals: Objectives, reference: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The front's hypervolume after each trial, in trial order: trial, images_trained (cumulative), hypervolume.

    The hypervolume's unit is the product of the objectives' units. The reference is in the columns' own units and
    defaults to `reference_point`; give one to compare runs.
    """
    ordered = table.sort_values("trial")
    images = ordered["images_seen"].fillna(0).cumsum()
    given = reference_point(table, goals) if reference is None else reference
    volumes = np.zeros(len(ordered))
    if given:
        values = minimised(ordered, goals)
        values[(ordered["state"] != "complete").to_numpy(dtype=bool)] = math.nan
        volumes = _growing_volume(values, _signs(goals) * np.array([given[column] for column in goals]))
    history = {"trial": ordered["trial"].to_numpy(), "images_trained": images.to_numpy(), "hypervolume": volumes}
    return pd.DataFrame(history).astype({"trial": "int64", "images_trained": "int64"})


def knee(table: pd.DataFrame, goals: Objectives) -> int:
    """The front's knee: the member farthest below the plane through its extremes, objectives scaled to [0, 1].

    With two objectives that is the line through the two ends (Das 1999). With more, it is the plane that meets every
    axis alike, so the knee has the smallest sum of scaled objectives. The earlier trial wins a tie. The scale comes
    from the ends of the front, so look at those too.
    """
    on_front = front(table, goals)
    members = table[on_front]
    if not len(members):
        raise InputError("results: no trial was trained to the end, so there is no front to pick from")
    order = np.argsort(members["trial"].to_numpy(dtype=int), kind="stable")
    members, values = members.iloc[order], pooled(table, goals)[on_front.to_numpy()][order]
    low, high = values.min(axis=0), values.max(axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    return int(members["trial"].iloc[int(np.argmin(scaled.sum(axis=1).round(12)))])


def pick(table: pd.DataFrame, goals: Objectives, how: str) -> int:
    """The trial number that `knee`, `best:<column>` or `trial:<number>` names; InputError with the nearest otherwise.

    `best:fid` finds `fid_efficientnet_lite0` if no other column begins so. `trial:` takes any trial that was trained.
    """
    kind, _, name = how.partition(":")
    if how == "knee":
        return knee(table, goals)
    if kind == "best":
        return _best(table, goals, name)
    if kind == "trial":
        return _numbered(table, name)
    ways = ["knee", *(f"best:{column}" for column in goals), "trial:<number>"]
    raise InputError(f"pick: {how!r} is not a way to pick a trial{nearest(how, ways)}")


# --- the parts -------------------------------------------------------------------------------------------------------


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _row(record: Record) -> dict[str, Any]:
    rungs = record.get("rungs") or []
    last = rungs[-1] if rungs else {}
    memory = [rung["peak_memory_mib"] for rung in rungs if rung.get("peak_memory_mib") is not None]
    row = {name: record.get(name) for name in (*TEXT, "trial", "seed", "repeat", "duplicate_of")}
    row |= {name: last.get(name) for name in ("rung", "images_seen", "images_per_s")} | dict(last.get("metrics") or {})
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


def _scores_and_costs(table: pd.DataFrame) -> list[str]:
    """The columns a person can name as an objective or ask the best of: metrics and costs at deploy scale."""
    columns = list(table.columns)
    return columns[columns.index("on_front") + 1 : columns.index(_PROXY_COSTS[0])]


def _signs(goals: Objectives) -> np.ndarray:
    return np.array([1.0 if direction == "minimise" else -1.0 for direction in goals.values()])


def _volume(members: np.ndarray, corner: np.ndarray) -> float:
    """Hypervolume of points inside the corner, which may dominate one another."""
    if not len(members):
        return 0.0
    ordered = members[np.argsort(members[:, 0], kind="stable")]
    if len(corner) == 1:
        return float(corner[0] - ordered[0, 0])
    depths = np.diff(ordered[:, 0], append=corner[0])
    if len(corner) == 2:
        return float(depths @ (corner[1] - np.minimum.accumulate(ordered[:, 1])))
    slices = [_volume(ordered[: i + 1, 1:], corner[1:]) if depth else 0.0 for i, depth in enumerate(depths)]
    return float(depths @ np.array(slices))


def _added(point: np.ndarray, others: np.ndarray, corner: np.ndarray) -> float:
    """What a point dominates that the others do not."""
    return float(np.prod(corner - point)) - _volume(np.maximum(others, point), corner)


def _growing_volume(values: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Hypervolume after each point of (n, objectives), in order; NaN and points beyond the corner add nothing."""
    volumes, total, members = np.zeros(len(values)), 0.0, np.empty((0, len(corner)))
    for index, point in enumerate(values):
        if (point < corner).all() and not (members <= point).all(axis=1).any():
            total += _added(point, members, corner)
            members = np.vstack([members[~(point <= members).all(axis=1)], point])
        volumes[index] = total
    return volumes


def _best(table: pd.DataFrame, goals: Objectives, name: str) -> int:
    column = _column(name, _scores_and_costs(table))
    complete = table[(table["state"] == "complete") & table[column].notna()]
    if not len(complete):
        raise InputError(f"pick: best:{name}: no trial that was trained to the end has a value for {column}")
    off_front = ~front(table, goals)[complete.index]
    ranked = complete.assign(_value=complete[column].astype(float), _off_front=off_front)
    rising = [not _higher_is_better(table, goals, column), True, True]
    return int(ranked.sort_values(["_value", "_off_front", "trial"], ascending=rising)["trial"].iloc[0])


def _column(name: str, columns: list[str]) -> str:
    begun = [column for column in columns if column.startswith(f"{name}_")]
    if name in columns:
        return name
    if len(begun) == 1:
        return begun[0]
    raise InputError(f"pick: best:{name}: no such column{nearest(name, columns)}")


def _higher_is_better(table: pd.DataFrame, goals: Objectives, column: str) -> bool:
    if column in goals:
        return goals[column] == "maximise"
    return bool(table.attrs.get("conditions", {}).get(column, {}).get("higher_is_better", False))


def _numbered(table: pd.DataFrame, name: str) -> int:
    numbers = [str(number) for number in table["trial"]]
    if name not in numbers:
        expected = f"expected a number from {numbers[0]} to {numbers[-1]}" if numbers else "the run has no trials yet"
        raise InputError(f"pick: trial:{name}: no such trial, {expected}")
    row = table.iloc[numbers.index(name)]
    if pd.isna(row["rung"]):
        raise InputError(f"pick: trial:{name} was never trained ({row['state']}: {row['reason']})")
    return int(name)
