"""Cheap looks at the architectures of a table of recorded curves, `looks.csv` beside it: what a replayed pool chooses by.

Of each architecture the objectives as a pool would see them before any training (nas.trial.look), and the seconds that took.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas import failures, menu
from nas.disk import files
from nas.errors import InputError
from nas.search.dominance import Points
from nas.settings.study import Study
from nas.space.search_space import SearchSpace
from nas.trial.bench import Bench
from nas.trial.look import scored
from nas.trust.replay import curves
from nas.trust.replay.curves import Table

NAME = "looks.csv"


def record(table: Table, about: Study, folder: Path, cache: Path) -> Path:
    """Look at every architecture of the table and write `folder`/looks.csv. InputError for a table without choices."""
    if table.choices is None or about.space is None:
        raise InputError(f"{table.source}: no columns arch.<axis>, so there is nothing to look at")
    if not about.training.sliced:
        raise InputError(f"--look: training.init is {about.training.init}, so there are no slices to look at")
    space, bench = SearchSpace.load(about.space), Bench(about, cache)
    bench.check_weights()
    bench.prepare()
    scored(bench, space.base.canonical().to_dict())  # what is done for the first time is slow
    rows = []
    for number, (key, choices) in enumerate(zip(table.keys, table.choices, strict=True), 1):
        member = space.architecture(choices)
        began = time.perf_counter()
        try:
            found = scored(bench, member.to_dict())
        except failures.Diverged as error:
            raise InputError(f"--look: architecture {key}: {error}") from None
        seconds = time.perf_counter() - began
        row = {**about.deploy.costs(member), **found}
        rows.append({"key": key, "seconds": round(seconds, 3), **{column: row[column] for column in about.objectives}})
        print(f"looked at {number} of {len(table)}: {seconds:.1f} s", flush=True)
    path = folder / NAME
    with files.replacing(path) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    return path


@dataclass(frozen=True)
class LookedAt:
    """Looks at the architectures of a table, in its order."""

    values: Points
    """The objectives (architectures, objectives), all to be minimised."""
    seconds: NDArray[np.float64]
    """What each look took (architectures,)."""


def read(path: Path, table: Table, about: Study) -> LookedAt:
    """The looks at a table's architectures.

    Raises InputError naming the file and what it lacks.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; `nas replay TABLE --look` makes it")
    frame = curves.read(path)
    for column in ("key", "seconds", *about.objectives):
        if column not in frame:
            raise InputError(f"{path}: no column {column!r}{menu.nearest(column, [str(c) for c in frame.columns])}")
    found = frame.drop_duplicates("key").set_index("key")
    if missing := [key for key in table.keys if key not in found.index]:
        raise InputError(f"{path}: no look at architecture {missing[0]}, which {table.source} has")
    signs = np.array([1.0 if way == "minimise" else -1.0 for way in about.objectives.values()])
    columns = [*about.objectives, "seconds"]
    numbers = found.loc[list(table.keys), columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(numbers).all():
        raise InputError(f"{path}: expected a finite number in every objective, and seconds, of every look")
    return LookedAt(numbers[:, :-1] * signs, numbers[:, -1])
