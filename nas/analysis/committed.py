"""A study as it is committed: results.csv beside study.yaml, with conditions.json and reference_lines.json of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from nas.analysis import results
from nas.documents.document import Document
from nas.errors import InputError
from nas.runs import description


def is_committed(folder: Path) -> bool:
    """Whether the folder holds a study and its results, and no run."""
    return all((Path(folder) / name).is_file() for name in ("study.yaml", "results.csv"))


def load(folder: Path) -> pd.DataFrame:
    """The frame that `results.load` gave when results.csv was written; `.attrs` as `nas.load` has them.

    `on_front` is as it was written. InputError for a results.csv that holds something else than trials.
    """
    folder = Path(folder)
    path = folder / "results.csv"
    table = pd.read_csv(path, dtype={"key": object, "reason": object}, float_precision="round_trip")
    missing = [name for name in ("trial", "key", "state", "on_front") if name not in table]
    if missing:
        raise InputError(
            f"{path}: not a table of trials (no column {missing[0]!r}): a script of this study wrote it; use pandas.read_csv"
        )
    study = settings(folder)
    for name in table:
        table[name] = _typed(table[name])
    table.attrs["conditions"] = description.conditions(folder)
    table.attrs["reference"] = dict((study.get("ablation") or {}).get("reference") or {})
    table.attrs["lines"] = results.scored_lines(folder)
    table.attrs["objectives"] = dict(results.objectives(study))
    return table


def settings(folder: Path) -> dict[str, Any]:
    """The study file as it is written, without defaults; objectives and budgets can be read from it."""
    return Document.read(Path(folder) / "study.yaml").content


def _typed(column: pd.Series) -> pd.Series:
    """As `results.frame` has it: whole numbers as Int64, other numbers as float64, choices and text as objects.

    A CSV does not tell whether a choice of 4.0 was 4; whole ones come back as int.
    """
    name = str(column.name)
    if name in results.INTEGERS:
        return column.astype("Int64")
    if name.startswith(("arch.", "factor.")) or name == "cell":
        return pd.Series([_choice(value) for value in column], index=column.index, name=name, dtype="object")
    if name in results.TEXT:
        return column.astype("object").where(column.notna(), "" if name == "reason" else None)
    return column if name == "on_front" else column.astype("float64")


def _choice(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.item() if hasattr(value, "item") else value
