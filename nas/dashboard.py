"""optuna-dashboard on a run's journal: live, on this machine only, and unable to change the study it shows."""

from __future__ import annotations

import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from nas import results
from nas.errors import InputError

HOST = "127.0.0.1"
PREFIX = "constraints:"  # how Optuna 5 stores a named constraint; the dashboard 0.21 reads only the old `constraints`


class ReadOnly(JournalFileBackend):
    """A journal that may be read while a study writes it. A button of the dashboard that would write gets an error."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise PermissionError("the dashboard only shows this study; its journal is written by nas run")


class Shown(JournalStorage):
    """The journal with every trial's constraints where the dashboard looks for them: refused candidates are grey."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [_with_constraints(trial) for trial in super().get_all_trials(study_id, True, states)]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return _with_constraints(super().get_trial(trial_id))


def storage(run_dir: Path) -> JournalStorage:
    """The run's journal, read-only. InputError when it has none."""
    journal = run_dir / "journal.log"
    if not journal.is_file():
        raise InputError(
            f"{run_dir}: has no journal.log, which the dashboard reads; nas watch and nas report need none"
        )
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return Shown(ReadOnly(str(journal)))


def serve(path: Path, port: int = 8080) -> None:
    """Serve until interrupted. InputError without the package, without a journal, or when the port is taken."""
    try:
        import optuna_dashboard
    except ImportError:
        raise InputError("dashboard: optuna-dashboard is not installed; pip install 'nas[dashboard]'") from None
    run_dir = results.find(path)
    results.resolved(run_dir)
    shown = storage(run_dir)
    print(f"http://{HOST}:{port}/  shows {run_dir}; Ctrl-C ends it")
    try:
        optuna_dashboard.run_server(shown, host=HOST, port=port)
    except OSError as error:
        raise InputError(
            f"dashboard: cannot listen on {HOST}:{port}: {error.strerror}; choose another with --port"
        ) from None


def _with_constraints(trial: FrozenTrial) -> FrozenTrial:
    named = [value for key, value in sorted(trial.system_attrs.items()) if key.startswith(PREFIX)]
    if named and "constraints" not in trial.system_attrs:
        trial.system_attrs["constraints"] = named
    return trial
