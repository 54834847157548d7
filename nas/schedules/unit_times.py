"""What each unit of a network takes on this machine, by timing them while it draws."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nas.cost.units import Computed, Units
from nas.diffusion.caches.caching import replaced
from nas.disk import files
from nas.errors import InputError
from nas.schedules.drawing import Subject, Task

WARM, REPEATS = 1, 5  # drawings


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call of a network and of its units, without those inside each, for a batch of pictures."""

    units: Units
    own: NDArray[np.float64]
    """(units,)"""
    rest: float

    def of(self, computed: Computed) -> float:
        """A drawing, in milliseconds."""
        return float(computed.shape[0] * self.rest + (computed @ self.own).sum())

    def write(self, path: Path) -> None:
        with files.replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["unit", "ms"])
            table.writerows([["", self.rest], *zip(self.units.names, self.own.tolist(), strict=True)])

    @classmethod
    def read(cls, path: Path, units: Units) -> Self:
        """Raises InputError for the times of another network."""
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        if [row["unit"] for row in rows] != ["", *units.names]:
            raise InputError(f"{path}: not the times of this network's units; remove it to measure them")
        return cls(units, np.array([float(row["ms"]) for row in rows[1:]]), float(rows[0]["ms"]))


def measure(subject: Subject, task: Task) -> Times:
    """Medians over some uncached drawings, a call of the network at a time."""
    found = []
    for repeat in range(WARM + REPEATS):
        with _clocked(subject.network, subject.units) as own:
            began = time.perf_counter()
            list(subject.latents(task, subject.plan))
            whole = time.perf_counter() - began
        if repeat >= WARM:
            found.append([whole - sum(own), *own])
    middle = 1e3 * np.median(np.array(found), axis=0) / subject.plan.evaluations
    return Times(subject.units, middle[1:], float(middle[0]))


@contextmanager
def _clocked(network: nn.Module, units: Units) -> Iterator[list[float]]:
    """Seconds spent in each unit while inside, without those in units that it holds."""
    own, open_units = [0.0] * len(units), list[float]()

    def timed(place: int, compute: Callable[..., Any]) -> Callable[..., Any]:
        def output(*given: Any) -> Any:
            open_units.append(0.0)
            began = time.perf_counter()
            found = compute(*given)
            spent = time.perf_counter() - began
            own[place] += spent - open_units.pop()
            if open_units:
                open_units[-1] += spent
            return found

        return output

    with replaced(network, units, timed):
        yield own
