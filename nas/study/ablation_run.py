"""An ablation as a run: the cells of a design times its repeats.

Optuna's journal is the queue: every (cell, repeat) is enqueued with its levels, and asked for in the order of the design.
Nothing is stopped early, nothing is refused. A cell that failed is enqueued again when the same command is run again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from nas.networks.backbones import Backbone
from nas.report.progress import Progress
from nas.runs.directory import RunDirectory
from nas.runs.records import Record
from nas.seeds import trial_seed
from nas.settings import design
from nas.settings.study import Study
from nas.study.run import Conditions, MakeEngine, Run
from nas.trial.pace import Pace
from nas.trial.rung import Job

MOST_TIMED = 8  # cells, before an ablation starts


class CellRun(Run):
    """One ablation in one run directory."""

    def __init__(
        self,
        study: Study,
        directory: RunDirectory,
        progress: Progress,
        url: str | None = None,
        engine: MakeEngine | None = None,
    ):
        assert study.ablation is not None
        self.design = study.ablation
        self.cells = {cell.name: cell for cell in design.cells(self.design)}
        self.variants = {name: design.changed(study, cell.settings) for name, cell in self.cells.items()}
        self.architectures = design.architectures(study)
        self.reference_cell = design.reference_cell(self.design).name
        super().__init__(study, directory, progress, url, engine)

    def sampler(self) -> BaseSampler:
        return RandomSampler(seed=0)  # asked for nothing: every trial comes with its parameters

    def resume(self) -> None:
        super().resume()
        self._enqueue()

    def _enqueue(self) -> None:
        """Put every (cell, repeat) in line that is neither trained, nor running, nor waiting."""
        waiting = self.optuna.get_trials(deepcopy=False, states=[TrialState.WAITING])
        held = {(asked.user_attrs["cell"], asked.user_attrs["repeat"]) for asked in waiting}
        held |= {(record["cell"], record["repeat"]) for record in self._running()}
        for cell, repeat in design.outstanding(self.design, self.records.values()):
            if (cell, repeat) not in held:
                self.optuna.enqueue_trial(self.cells[cell].levels, {"cell": cell, "repeat": repeat})

    def _running(self) -> list[Record]:
        return [record for record in self.records.values() if record["state"] == "running"]

    def suggested(self, record: Record) -> FixedTrial:
        fixed = FixedTrial(self.cells[record["cell"]].levels)
        for name, factor in self.design.factors.items():
            fixed.suggest_categorical(name, factor.names)
        fixed.set_user_attr("cell", record["cell"])
        fixed.set_user_attr("repeat", record["repeat"])
        return fixed

    def reference(self) -> tuple[dict[str, Any], Backbone, bool]:
        """The reference cell, which is trained anyway."""
        return self.cells[self.reference_cell].settings, self.architectures[self.reference_cell], False

    def typical(self, count: int) -> list[tuple[dict[str, Any], Backbone]]:
        """The cells that are left, evenly chosen among them where they are many."""
        names = self._timed()
        return [(self.cells[name].settings, self.architectures[name]) for name in names]

    def outstanding(self, paces: Sequence[Pace | None]) -> list[float]:
        found = {name: each for name, each in zip(self._timed(), paces, strict=True) if each is not None}
        left = [cell for cell, _ in self._left()]
        known = [found[cell].trial_s(self.variants[cell]) for cell in left if cell in found]
        return [found[cell].trial_s(self.variants[cell]) if cell in found else sum(known) / len(known) for cell in left]

    def _left(self) -> list[tuple[str, int]]:
        return design.outstanding(self.design, self.records.values())

    def _timed(self) -> list[str]:
        names = list(dict.fromkeys(cell for cell, _ in self._left()))
        step = max(1.0, len(names) / MOST_TIMED)
        return [names[int(place * step)] for place in range(min(len(names), MOST_TIMED))]

    def ask(self) -> tuple[int, int] | None:
        """The next cell to train, as (trial, rung 0); None when all were asked for."""
        if not self.optuna.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            return None
        asked = self.optuna.ask()
        for name, factor in self.design.factors.items():
            asked.suggest_categorical(name, factor.names)
        self._begin(asked.number, asked.user_attrs["cell"], asked.user_attrs["repeat"])
        return asked.number, 0

    def begun(self, asked: FrozenTrial) -> Record:
        return self._begin(asked.number, asked.user_attrs["cell"], asked.user_attrs["repeat"])

    def _begin(self, number: int, name: str, repeat: int) -> Record:
        """Write down a cell that is to be trained."""
        cell, config = self.cells[name], self.architectures[name]
        record: Record = {
            **self.new_record(number, dict(cell.levels), config, self.study.deploy.costs(config)),
            "cell": name,
            "repeat": int(repeat),
            "settings": cell.settings,
            "init": self.variants[name].training.init,
            "seed": cell_seed(self.study.seed, int(repeat)),
        }
        self.start(record)
        return record

    def job(self, number: int, rung: int) -> Job:
        record = self.records[number]
        variant = self.variants[record["cell"]]
        return dataclasses.replace(
            super().job(number, rung),
            images_seen=round(variant.stopping.rungs[rung] * variant.training.images_seen),
            settings=self.cells[record["cell"]].settings,
            like=self.architectures[self.reference_cell].to_dict(),
        )

    def why_stopped(self, record: Record) -> None:
        return None

    def conditions(self, conditions: Conditions) -> Conditions:
        return conditions_of(design.varied(self.design), conditions)


def conditions_of(varied: Sequence[str], conditions: Conditions) -> Conditions:
    """What each score depends on, by column, where the fields of the sampling plan that some factor sets are the cell's."""
    told = {path.removeprefix("sampling."): "as the cell says" for path in varied if path.startswith("sampling.")}
    drawn = {column: {**found, **told} for column, found in conditions.items() if "images" in found}
    return {**conditions, **drawn}


def cell_seed(seed: int, repeat: int) -> int:
    """The seed of a repeat: the same in every cell, so that cells see the same batches, times and noise."""
    return trial_seed(seed, "ablation", repeat)
