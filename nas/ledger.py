"""What is known of every trial, kept twice: the records on disk, and Optuna's trials in the storage.

A record is written first, then Optuna is told, so that whatever was interrupted between the two is put right when the run
is opened again. In a database each record is also kept beside its trial: the run then goes on from another machine,
whose run directory lacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FixedTrial, Trial, TrialState, create_trial

from nas.rundir import RunDirectory
from nas.settings import Study

Record = dict[str, Any]
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "over_budget": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def bring_back(name: str, storage: BaseStorage, root: Path) -> None:
    """Make the directory of a study's latest run in a database anew where this machine lacks it, so that it goes on here."""
    runs = [found for found in storage.get_all_studies() if found.study_name.startswith(f"{name}/")]
    latest = max((found for found in runs if "settings" in found.user_attrs), key=_name, default=None)
    if latest is None or latest.user_attrs.get("ended") or (root / latest.study_name).exists():
        return
    directory = RunDirectory(root / latest.study_name)
    directory.path.mkdir(parents=True)
    directory.write_yaml("resolved.yaml", latest.user_attrs["settings"])


def _name(found: FrozenStudy) -> str:
    return found.study_name


class Ledger:
    """The records of one run and its Optuna study. One process writes it, the coordinator."""

    def __init__(self, study: Study, directory: RunDirectory, storage: BaseStorage, name: str, mirrored: bool):
        """`mirrored`: records are kept in the storage as well."""
        self.objectives, self.directory, self.storage, self.name = study.objectives, directory, storage, name
        self.mirrored = mirrored
        self.records: dict[int, Record] = directory.records()

    def open(self, sampler: BaseSampler) -> optuna.Study:
        """The Optuna study, made if it is not there; records that only the storage has are written to disk."""
        ways = ["minimize" if way == "minimise" else "maximize" for way in self.objectives.values()]
        self.optuna = optuna.create_study(
            storage=self.storage, study_name=self.name, load_if_exists=True, sampler=sampler, directions=ways
        )
        if self.mirrored:
            for told in self.optuna.get_trials(deepcopy=False):
                record = told.user_attrs.get("record")
                if record is not None and record != self.records.get(told.number):
                    self.records[told.number] = record
                    self.directory.write_record(record)
        return self.optuna

    def save(self, record: Record) -> None:
        """Write a record. Of a trial that Optuna was told of, the storage's copy is final."""
        self.records[record["trial"]] = record
        self.directory.write_record(record)
        if self.mirrored:
            self.storage.set_trial_user_attr(self._id(record["trial"]), "record", record)

    def tell(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Tell Optuna a trial's outcome (its own or its twin's)."""
        state = STATES[outcome["state"]]
        row = {**outcome["cost"], **(outcome["rungs"][-1]["metrics"] if outcome["rungs"] else {})}
        values = [row[column] for column in self.objectives] if state == TrialState.COMPLETE else None
        self.optuna.tell(number, values, state)

    def forget(self, number: int) -> None:
        """Give up a trial without a record: nothing was computed for it."""
        self.records.pop(number, None)
        self.optuna.tell(number, state=TrialState.FAIL)

    def lost(self) -> range:
        """Numbers of the trials that have records, but that Optuna's storage does not know."""
        return range(len(self.optuna.get_trials(deepcopy=False)), max(self.records, default=-1) + 1)

    def put_back(self, suggested: FixedTrial | None) -> None:
        """Add the next trial to the storage again, as running; without suggestions as one that was never anything."""
        if suggested is None:
            return self.optuna.add_trial(create_trial(state=TrialState.FAIL))
        self.optuna.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=suggested.params,
                distributions=suggested.distributions,
                user_attrs=suggested.user_attrs,
            )
        )

    def running(self) -> list[int]:
        """Numbers of the trials Optuna still waits for."""
        return [told.number for told in self.optuna.get_trials(deepcopy=False, states=[TrialState.RUNNING])]

    def asked(self, number: int) -> Trial:
        """A trial that was asked for by a process that is gone; what was suggested to it stays."""
        return Trial(self.optuna, self._id(number))

    def waiting(self) -> bool:
        """Whether something is in line already."""
        return bool(self.optuna.get_trials(deepcopy=False, states=[TrialState.WAITING]))

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number)
