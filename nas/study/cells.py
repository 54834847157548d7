"""What an ablation trains: the cells of a design times its repeats.

Every (cell, repeat) is asked for with its levels, in the order of the design. Nothing is stopped early, nothing is refused. A
cell that failed is trained again when the same command is run again.
"""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FixedTrial, FrozenTrial, Trial

from nas.networks.backbones import Backbone
from nas.runs.records import Record
from nas.seeds import trial_seed
from nas.settings import design
from nas.settings.study import Study
from nas.study.proposer import Reference
from nas.study.trials import Trials, first_record
from nas.study.workload import Variant, Workload

MOST_TIMED = 8  # cells, before an ablation starts


class Cells:
    """The proposer of an ablation: every cell of its design, several times."""

    def __init__(self, study: Study):
        assert study.ablation is not None
        self._study, self._design = study, study.ablation
        self._cells = {cell.name: cell for cell in design.cells(self._design)}
        self._architectures = design.architectures(study)
        self._reference = design.reference_cell(self._design).name

    @property
    def like(self) -> Backbone | None:
        return self._architectures[self._reference]

    def sampler(self, known: int) -> BaseSampler:
        return RandomSampler(seed=0)  # asked for nothing: every trial comes with its parameters

    def suggested(self, record: Record) -> FixedTrial:
        fixed = FixedTrial(self._cells[record["cell"]].levels)
        self._suggest(fixed)
        fixed.set_user_attr("cell", record["cell"])
        fixed.set_user_attr("repeat", record["repeat"])
        return fixed

    def _suggest(self, trial: Trial | FixedTrial) -> None:
        for name, factor in self._design.factors.items():
            trial.suggest_categorical(name, factor.names)

    def open(self, trials: Trials) -> None:
        self._trials = trials
        running = [record for record in trials.records.values() if record["state"] == "running"]
        held = {(record["cell"], record["repeat"]) for record in running}
        self._queue = [pair for pair in self._left() if pair not in held]

    def begin(self, asked: FrozenTrial) -> Record:
        return self._begin(asked.number, asked.user_attrs["cell"], int(asked.user_attrs["repeat"]))

    def _begin(self, number: int, name: str, repeat: int) -> Record:
        """Write down a cell that is to be trained."""
        cell = self._cells[name]
        study = design.changed(self._study, cell.settings)
        record: Record = {
            **first_record(study, number, dict(cell.levels), self._architectures[name]),
            "cell": name,
            "repeat": repeat,
            "settings": cell.settings,
            "seed": cell_seed(self._study.seed, repeat),
        }
        self._trials.start(record)
        if (name, repeat) in self._queue:
            self._queue.remove((name, repeat))
        return record

    def workload(self, workers: int) -> Workload:
        """The cells that are left; they are timed themselves, evenly chosen among them where they are many."""
        left = [cell for cell, _ in self._left()]
        names = list(dict.fromkeys(left))
        step = max(1.0, len(names) / MOST_TIMED)
        timed = [names[int(place * step)] for place in range(min(len(names), MOST_TIMED))]
        places = {name: place for place, name in enumerate(timed)}
        return Workload([self._variant(name) for name in timed], [places.get(cell) for cell in left])

    def _left(self) -> list[tuple[str, int]]:
        return design.outstanding(self._design, self._trials.records.values())

    def _variant(self, name: str) -> Variant:
        return Variant(self._architectures[name], self._cells[name].settings)

    def reference(self) -> Reference:
        """The reference cell, which is trained anyway."""
        return Reference(self._variant(self._reference))

    def ask(self) -> Record | None:
        """The next cell to train; None when all were asked for."""
        if not self._queue:
            return None
        name, repeat = self._queue[0]
        asked = self._trials.ask(self._cells[name].levels, {"cell": name, "repeat": repeat})
        self._suggest(asked)
        return self._begin(asked.number, name, repeat)

    def scored(self, record: Record) -> None:
        """Every cell is trained to the end."""


def cell_seed(seed: int, repeat: int) -> int:
    """The seed of a repeat: the same in every cell, so that cells see the same batches, times and noise."""
    return trial_seed(seed, "ablation", repeat)
