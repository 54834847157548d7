"""What every trial has scored so far, in arrays: early stopping looks at all of them for every decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = Sequence[Sequence[float]] | NDArray[np.float64]  # (rungs so far, objectives), all to be minimised
Curves = NDArray[np.float64]  # (number of trials, rungs so far, number of objectives), all to be minimised
ROOM = 64  # trials there is room for at first


@dataclass(frozen=True)
class Peers:
    """The curves of some trials, as far as each got."""

    values: Curves
    """(trials, rungs, objectives); what lies beyond `reached` means nothing."""
    reached: NDArray[np.int64]
    """(trials,): how many rungs each was scored at."""

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Peers:
        """Curves of any lengths, with the same objectives."""
        reached = np.array([len(curve) for curve in curves], dtype=np.int64)
        objectives = max((len(curve[0]) for curve in curves if len(curve)), default=0)
        values = np.full((len(curves), int(reached.max(initial=0)), objectives), np.nan)
        for row, curve in zip(values, curves, strict=True):
            if len(curve):
                row[: len(curve)] = curve
        return cls(values, reached)

    def at(self, rungs: int) -> Curves:
        """(n, rungs, objectives): the first rungs of those that got at least so far."""
        return self.values[self.reached >= rungs, :rungs]


class Scoreboard:
    """The curves of all trials of a study; it grows with them."""

    def __init__(self, rungs: int, objectives: int):
        self._values = np.full((ROOM, rungs, objectives), np.nan)
        self._reached = np.zeros(ROOM, dtype=np.int64)
        self._rows: dict[int, int] = {}  # trial -> its row, in the order of their first scores

    def add(self, trial: int, point: Sequence[float]) -> None:
        """A trial was scored at its next rung: its objectives, all to be minimised."""
        row = self._rows.setdefault(trial, len(self._rows))
        if row == len(self._reached):
            self._values = np.concatenate([self._values, np.full_like(self._values, np.nan)])
            self._reached = np.concatenate([self._reached, np.zeros_like(self._reached)])
        self._values[row, self._reached[row]] = point
        self._reached[row] += 1

    def curve(self, trial: int) -> NDArray[np.float64]:
        """(rungs so far, objectives)"""
        row = self._rows[trial]
        return self._values[row, : self._reached[row]]

    def others(self, trial: int) -> Peers:
        """All trials but this one."""
        some = np.arange(len(self._rows)) != self._rows[trial]
        return Peers(self._values[: len(self._rows)][some], self._reached[: len(self._rows)][some])
