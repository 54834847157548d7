"""Recorded learning curves: a table with one row per architecture and rung, every architecture trained to the end.

A replay asks what a rule of early stopping, or a sampler, would have done with these architectures. The study file beside the
table says what its objectives are, which way is better, and from which space it was drawn. Where `truth.csv` lies beside it,
of the same architectures trained and scored with other seeds, rules and samplers see the table and are judged by the truth:
what was chosen because chance favoured it is worth no more than it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas import menu
from nas.analysis import results
from nas.disk import files
from nas.errors import InputError
from nas.runs import description
from nas.search.dominance import Points
from nas.search.peers import Curves
from nas.settings import study_file
from nas.settings.study import Study
from nas.space.search_space import Choices, SearchSpace

NAME, TRUTH = "curves.csv", "truth.csv"
FIRST = ("key", "trial", "rung", "fraction", "images_seen", "train_s", "other_s")


@dataclass(frozen=True)
class Table:
    """Curves of architectures that were all scored at the same rungs."""

    source: str
    keys: tuple[str, ...]
    rungs: tuple[float, ...]
    """Fractions of the training; the last is 1."""
    images: tuple[int, ...]
    """Images seen at each rung."""
    values: Curves
    """The objectives (architectures, rungs, objectives), all minimised."""
    train_s: NDArray[np.float64]
    """Seconds of training from the rung before to each rung (architectures, rungs)."""
    other_s: NDArray[np.float64]
    """Seconds of everything else at each rung: loading, drawing, scoring, saving."""
    choices: tuple[Choices, ...] | None = None
    """What each architecture chooses in its space; None if the table does not say."""
    truth: Points | None = None
    """The objectives at the end in another seed's training (architectures, objectives), all minimised; None if it has none."""

    @property
    def judged(self) -> Points:
        """The ends (architectures, objectives) by which what was found is judged: of the other seed where it is known."""
        return self.values[:, -1] if self.truth is None else self.truth

    left_out: int = 0
    """Architectures that the truth does not have."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def full_s(self) -> float:
        """Seconds of a training to the end with one scoring, there, in the mean."""
        return float((self.train_s.sum(1) + self.other_s[:, -1]).mean())

    def rows(self, which: Sequence[int]) -> Table:
        """The table of some of the architectures, in the order given."""
        chosen = None if self.choices is None else tuple(self.choices[i] for i in which)
        kept = list(which)
        values, train_s, other_s = self.values[kept], self.train_s[kept], self.other_s[kept]
        keys, truth = tuple(self.keys[i] for i in kept), None if self.truth is None else self.truth[kept]
        return replace(self, keys=keys, values=values, train_s=train_s, other_s=other_s, choices=chosen, truth=truth)

    def at(self, rungs: Sequence[float]) -> Table:
        """The table as if only these rungs had been scored. InputError for a rung that was not recorded."""
        places = [self._place(rung) for rung in rungs]
        ends = zip([0, *(place + 1 for place in places)], [place + 1 for place in places], strict=False)
        return replace(
            self,
            rungs=tuple(self.rungs[place] for place in places),
            images=tuple(self.images[place] for place in places),
            values=self.values[:, places],
            train_s=np.stack([self.train_s[:, start:end].sum(1) for start, end in ends], axis=1),
            other_s=self.other_s[:, places],
        )

    def _place(self, rung: float) -> int:
        for place, recorded in enumerate(self.rungs):
            if math.isclose(rung, recorded, abs_tol=1e-9):
                return place
        nearest = min(self.rungs, key=lambda recorded: abs(recorded - rung))
        offered = ", ".join(f"{recorded:g}" for recorded in self.rungs)
        raise InputError(f"{self.source}: rung {rung:g} was not recorded; the nearest is {nearest:g}, of {offered}")


# --- writing ---------------------------------------------------------------------------------------------------------


def record(run_dir: Path, folder: Path, name: str = NAME) -> Path:
    """Write the curve of each architecture's first complete trial to a table in `folder`. InputError when the run has none."""
    rungs = [float(fraction) for fraction in description.resolved(run_dir)["stopping"]["rungs"]]
    first: dict[str, results.Record] = {}  # repeats are left out
    for found in results.records(run_dir):
        if found["state"] == "complete":
            first.setdefault(found["key"], found)
    rows = [row for found in first.values() for row in _rows(found, rungs)]
    if not rows:
        raise InputError(f"{run_dir}: no trial was trained to the end yet, so there is no curve")
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    return path


def _rows(trial: Mapping[str, Any], rungs: Sequence[float]) -> list[dict[str, Any]]:
    choices = {f"arch.{axis}": str(choice) for axis, choice in trial["choices"].items()}
    rows = []
    for rung in trial["rungs"]:
        timings = rung["timings"]
        seconds = {"train_s": round(timings["train_s"], 3)}
        seconds["other_s"] = round(timings["total_s"] - timings["train_s"], 3)
        place = {"rung": rung["rung"], "fraction": rungs[rung["rung"]], "images_seen": rung["images_seen"]}
        scores = {name: float(f"{value:.7g}") for name, value in rung["metrics"].items()}
        rows.append(
            {"key": trial["key"], "trial": trial["trial"], **place, **seconds, **scores, **trial["cost"], **choices}
        )
    return rows


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> tuple[Table, Study]:
    """The table at `path` (curves.csv, or the folder that holds it) and the study beside it. Where there is a truth, of the
    architectures that it has too.

    Raises InputError naming the file, the column or architecture, and what was expected.
    """
    table, study = whole(path)
    truth = Path(table.source).with_name(TRUTH)
    return (_judged_by(table, truth, study.objectives) if truth.is_file() else table), study


def whole(path: Path) -> tuple[Table, Study]:
    """The table and the study without any truth. Raises InputError as `load`."""
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; `nas replay FOLDER --record RUN` makes it from a run")
    study = study_file.load(path.parent)
    space = SearchSpace.load(study.space) if study.space is not None else None
    return from_frame(read(path), study.objectives, str(path), space), study


def read(path: Path) -> pd.DataFrame:
    """A table of architectures. InputError for what is none."""
    try:
        return pd.read_csv(path, dtype={"key": str}, keep_default_na=True)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise InputError(
            f"{path}: {error}; expected a table with commas and a line of columns".replace("\n", " ")
        ) from None


def _judged_by(table: Table, path: Path, objectives: Mapping[str, str]) -> Table:
    """The architectures of a table that another one has too, with its ends as the truth."""
    other = from_frame(read(path), objectives, str(path))
    if other.images[-1] != table.images[-1]:
        raise InputError(
            f"{path}: its trainings end after {other.images[-1]:,} images, those of {table.source} after {table.images[-1]:,}"
        )
    place = {key: index for index, key in enumerate(other.keys)}
    kept = [index for index, key in enumerate(table.keys) if key in place]
    if not kept:
        raise InputError(f"{path}: none of its architectures is in {table.source}; expected those of the same study")
    shared = table.rows(kept)
    truth = other.values[[place[key] for key in shared.keys], -1]
    if np.array_equal(truth, shared.values[:, -1]):
        raise InputError(f"{path}: every score is that of {table.source}; expected trainings with other seeds")
    return replace(shared, truth=truth, left_out=len(table) - len(kept))


def from_frame(
    frame: pd.DataFrame, objectives: Mapping[str, str], source: str, space: SearchSpace | None = None
) -> Table:
    """A frame with the columns of FIRST, the objectives, and `arch.<axis>` where samplers are to be replayed."""
    for column in (*FIRST, *objectives):
        if column not in frame:
            raise InputError(f"{source}: no column {column!r}{menu.nearest(column, [str(c) for c in frame.columns])}")
    rungs = tuple(float(fraction) for fraction in sorted(frame["fraction"].unique()))
    if not rungs or rungs[-1] != 1:
        raise InputError(
            f"{source}: no architecture was trained to the end: the rungs are {list(rungs)}, expected 1 as last"
        )
    parts = {str(key): part.sort_values("fraction") for key, part in frame.groupby("key", sort=False)}
    for key, part in parts.items():
        _check(source, key, part, rungs, tuple(objectives))
    signs = np.array([1.0 if way == "minimise" else -1.0 for way in objectives.values()])
    return Table(
        source=source,
        keys=tuple(parts),
        rungs=rungs,
        images=tuple(int(count) for count in next(iter(parts.values()))["images_seen"]),
        values=np.stack([part[list(objectives)].to_numpy(dtype=float) for part in parts.values()]) * signs,
        train_s=np.stack([part["train_s"].to_numpy(dtype=float) for part in parts.values()]),
        other_s=np.stack([part["other_s"].to_numpy(dtype=float) for part in parts.values()]),
        choices=_choices(parts, space),
    )


def _check(source: str, key: str, part: pd.DataFrame, rungs: tuple[float, ...], objectives: tuple[str, ...]) -> None:
    """Whether an architecture has one row for each rung, and a number in each objective."""
    found = tuple(float(fraction) for fraction in part["fraction"])
    if found != rungs:
        lacking = sorted(set(rungs) - set(found))
        told = f"lacks rung {lacking[0]:g}" if lacking else "has a rung twice"
        raise InputError(
            f"{source}: architecture {key} {told}, expected one row for each of {', '.join(f'{r:g}' for r in rungs)}"
        )
    for column in (*objectives, "train_s", "other_s"):
        if not np.isfinite(pd.to_numeric(part[column], errors="coerce")).all():
            raise InputError(f"{source}: architecture {key}: {column}: expected a finite number at every rung")


def _choices(parts: Mapping[str, pd.DataFrame], space: SearchSpace | None) -> tuple[Choices, ...] | None:
    """Each architecture's choices of its active axes, as the space spells them."""
    first = next(iter(parts.values()))
    if space is None or not any(str(column).startswith("arch.") for column in first):
        return None
    found = []
    for part in parts.values():
        row, choices = part.iloc[0], Choices()
        for axis in space.axes:
            if axis.active(choices):
                choices[axis.name] = _choice(axis.choices, row.get(f"arch.{axis.name}"), axis.name)
        found.append(choices)
    return tuple(found)


def _choice(offered: Sequence[Any], told: Any, axis: str) -> Any:
    for choice in offered:
        if str(choice) == str(told) or (isinstance(told, float) and told == choice):
            return choice
    raise InputError(f"arch.{axis}: {told!r} is not one of its choices: {', '.join(map(str, offered))}")
