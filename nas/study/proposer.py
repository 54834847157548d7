"""What a run is given to train: a proposer says what comes next, and whether a trial goes on.

A new kind of study is one class with these methods: nas.study.candidates and nas.study.cells are two. The run owns the directory,
the workers, the loop and the records; a proposer reads and writes trials through nas.study.trials alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial

from nas.networks.backbones import Backbone
from nas.runs.records import Record
from nas.study.trials import Trials
from nas.study.workload import Variant, Workload


@dataclass(frozen=True)
class Reference:
    """The network of the lines of reference."""

    variant: Variant
    trained: bool = False
    """Whether it gets a trial's training as well, beside being scored untrained."""


@dataclass(frozen=True)
class Look:
    """Networks that are to be scored cheaply as they are initialised; none of them is a trial (nas.trial.look)."""

    architectures: tuple[dict[str, Any], ...]
    """At deploy scale."""
    take: Callable[[Sequence[dict[str, Any]]], None]
    """Is given what was found of each, in this order."""
    images: int | None = None
    """Pictures of each; None: `search.pool.images`."""
    parent: int | None = None
    """The trial whose weights they have; None: as `training.init` says."""


class Proposer(Protocol):
    """Whatever decides what a run trains. One process calls it: `sampler` and `open` as a run is opened, `suggested`
    and `begin` for what the disk or the storage has lost, `workload` and `reference` once, then `ask` and `scored` in turns."""

    @property
    def like(self) -> Backbone | None:
        """The network whose initial weights all others share where names and shapes agree, if there is one."""

    def sampler(self, known: int) -> BaseSampler:
        """Optuna's sampler, for a run that has records of so many trials."""

    def suggested(self, record: Record) -> FixedTrial:
        """What was suggested to a trial, for a storage that has lost it. Raises KeyError, TypeError, ValueError or InputError
        for a record whose choices are none of this study's."""

    def open(self, trials: Trials) -> None:
        """Take over the trials of the run, those that were trained before among them."""

    def begin(self, asked: FrozenTrial) -> Record:
        """Decide anew on a trial whose record was damaged, and save it, begun or concluded. Raises ValueError or KeyError when
        Optuna does not know what it was."""

    def workload(self, workers: int) -> Workload:
        """What is left to be trained, with what so many workers time at once before the study starts."""

    def reference(self) -> Reference:
        """What the lines of reference are scored with."""

    def ask(self) -> Record | Look | None:
        """The next trial to train, with its record saved, or networks to look at; None when there is none until something that
        is under way has ended."""

    def scored(self, record: Record) -> str | None:
        """Take in a trial's new score: why it is trained no further, or None. At the last rung there is nothing to decide."""
