"""What is known of every trial, kept twice: the records on disk, and Optuna's trials in the storage.

A record is written first, then Optuna is told, so that whatever was interrupted between the two is put right when the run
is opened again. In a database each record is also kept beside its trial: the run then goes on from another machine,
whose run directory lacks it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial

from nas.cost.budget import constraints
from nas.errors import InputError, brief
from nas.runs import records
from nas.runs.directory import RunDirectory, describe
from nas.runs.earlier import Finished
from nas.runs.records import Damaged, Record
from nas.runs.storage.journal import open_storage
from nas.runs.storage.postgres import Database
from nas.search import samplers
from nas.settings.study import Study

STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "over_budget": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def bring_back(name: str, url: str, root: Path) -> None:
    """Make the directory of a study's latest run in a database anew where this machine lacks it, so that it goes on here."""
    run = Database(url).latest_run(name)
    if run is None or (root / run).exists():
        return
    known = optuna.load_study(study_name=run, storage=open_storage(url, Path(), run)).user_attrs
    if "settings" in known and not known.get("ended"):
        directory = RunDirectory(root / run)
        directory.path.mkdir(parents=True)
        describe(directory, known["settings"])


class Ledger:
    """The records of one run and its Optuna study. One process writes it, the coordinator.

    `optuna` is in memory, so that asking costs no round trips; a trial goes to `stored` whole, with its first record, and
    once more when it is told. What was asked for and not yet written down is asked for again.

    Trials of earlier runs come first in memory, and only there, so that the sampler knows them.
    """

    def __init__(self, study: Study, directory: RunDirectory, storage: BaseStorage, name: str, mirrored: bool):
        """`mirrored`: records are kept in the storage as well."""
        self.objectives, self.directory, self.storage, self.name = study.objectives, directory, storage, name
        self.mirrored, self._rungs, self._budget = mirrored, len(study.stopping.rungs), study.budget
        self.records, self.damaged = records.sorted_out(directory.path)
        self._ids: list[int] = []  # of stored trials, by number
        self._before = 0  # trials of earlier runs

    def open(
        self, sampler: BaseSampler, suggested: Callable[[Any], FixedTrial], earlier: Sequence[Finished] = ()
    ) -> optuna.Study:
        """The Optuna study, made if it is not there; records that only the storage has are written to disk.

        `suggested` raises for a record whose choices are none of this study's; such a one is damaged, too. The sampler knows the
        `earlier` trials, which are none of this run.
        """
        minimise, maximise = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
        ways = [minimise if way == "minimise" else maximise for way in self.objectives.values()]
        self.stored = optuna.create_study(
            storage=self.storage, study_name=self.name, load_if_exists=True, directions=ways
        )
        self.optuna = optuna.create_study(storage=InMemoryStorage(), sampler=sampler, directions=ways)
        self._before = len(earlier)
        for trial in earlier:
            self.optuna.add_trial(self._complete(trial, suggested(trial)))
        for number, record in list(self.records.items()):
            if (error := self._misfit(record, suggested)) is not None:
                self.damaged[number] = error
                del self.records[number]
        for known in self.stored.get_trials(deepcopy=False):
            self._ids.append(known._trial_id)
            self.optuna.add_trial(known)
            self._mirror(known, suggested)
        self.in_order()
        return self.optuna

    def _complete(self, trial: Finished, suggested: FixedTrial) -> FrozenTrial:
        """A finished trial as Optuna's."""
        row = {**trial["cost"], **trial["metrics"]}
        return create_trial(
            values=[row[column] for column in self.objectives],
            params=suggested.params,
            distributions=suggested.distributions,
            system_attrs=dict(samplers.FIRST_GENERATION),
            constraints=constraints(trial["cost"], self._budget),
        )

    def number(self, asked: Trial) -> int:
        """The number of one of Optuna's trials in this run."""
        return asked.number - self._before

    def _mirror(self, known: FrozenTrial, suggested: Callable[[Record], object]) -> None:
        """Take over the record that the storage has of a trial, unless that is damaged."""
        try:
            record = records.checked(known.user_attrs["record"], known.number)
        except (KeyError, Damaged):
            return
        if record != self.records.get(known.number) and self._misfit(record, suggested) is None:
            self.records[known.number] = record
            self.damaged.pop(known.number, None)
            self.directory.write_record(record)

    def _misfit(self, record: Record, suggested: Callable[[Record], object]) -> Damaged | None:
        """Why a record cannot be one of this study."""
        for place, rung in enumerate(record["rungs"]):
            missing = self.objectives.keys() - {*record["cost"], *rung["metrics"]}
            if missing:
                return Damaged(f"rungs.{place}.metrics: no {min(missing)}, which is an objective")
        if record["state"] == "running" and len(record["rungs"]) >= self._rungs:
            return Damaged(f"rungs: {len(record['rungs'])}, but the trial is still running")
        try:
            suggested(record)
        except (KeyError, TypeError, ValueError, InputError) as error:
            return Damaged(f"choices: none of this study: {brief(error)}")
        return None

    def save(self, record: Record) -> None:
        """Write a record, and with its first one the trial."""
        number = record["trial"]
        self.records[number] = record
        self.directory.write_record(record)
        if number == len(self._ids):
            frozen = self._asked(number)
            self._store(frozen, {**frozen.user_attrs, **({"record": record} if self.mirrored else {})})
        elif self.mirrored and not self._asked(number).state.is_finished():
            self.storage.set_trial_user_attr(self._ids[number], "record", record)

    def tell(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Tell Optuna a trial's outcome (its own or its twin's). What it was told before its record was damaged stays."""
        if self._asked(number).state.is_finished():
            return
        state = STATES[outcome["state"]]
        row = {**outcome["cost"], **(outcome["rungs"][-1]["metrics"] if outcome["rungs"] else {})}
        values = [row[column] for column in self.objectives] if state == TrialState.COMPLETE else None
        self.optuna.tell(self._before + number, values, state)
        self.storage.set_trial_state_values(self._ids[number], state, values)

    def forget(self, number: int) -> None:
        """Give up a trial without a record: nothing was computed for it."""
        self.optuna.tell(self._before + number, state=TrialState.FAIL)
        self.storage.set_trial_state_values(self._ids[number], TrialState.FAIL)

    def in_order(self) -> None:
        """Records by number again, after some came later than others."""
        self.records = dict(sorted(self.records.items()))

    def lost(self) -> list[int]:
        """Numbers of the trials that have records, but that the storage does not know, and of gaps between them."""
        return list(range(len(self._ids), max(self.records, default=-1) + 1))

    def put_back(self, suggested: FixedTrial | None, constraints: Mapping[str, float]) -> None:
        """Add the next trial to the storage again, as running; without suggestions as one that was never anything."""
        self.optuna.add_trial(
            create_trial(
                state=TrialState.FAIL if suggested is None else TrialState.RUNNING,
                params=suggested.params if suggested else {},
                distributions=suggested.distributions if suggested else {},
                user_attrs=suggested.user_attrs if suggested else {},
            )
        )
        frozen = self._asked(len(self._ids))
        for name, value in constraints.items():
            Trial(self.optuna, frozen._trial_id).set_constraint(name, value)
        frozen = self._asked(len(self._ids))
        self._store(frozen, frozen.user_attrs)

    def asked(self, number: int) -> FrozenTrial | None:
        """Optuna's own trial of this number; None when its storage has lost it."""
        if number >= len(self._ids):
            return None
        found = copy.copy(self._asked(number))
        found.number = number
        return found

    def running(self) -> list[int]:
        """Numbers of the trials Optuna still waits for."""
        waiting = self.optuna.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return [told.number - self._before for told in waiting]

    def _asked(self, number: int) -> FrozenTrial:
        """Optuna's own trial of this number, as it is now. (Asking for all of them copies a list of all of them.)"""
        storage = self.optuna._storage
        place = self._before + number
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, place))

    def _store(self, frozen: FrozenTrial, attributes: dict[str, Any]) -> None:
        template = copy.copy(frozen)
        template.user_attrs = attributes
        self._ids.append(self.storage.create_new_trial(self.stored._study_id, template))
