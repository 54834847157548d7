"""optuna-dashboard on a run's journal: live, on this machine only, and unable to change the study it shows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from nas import loopback
from nas.errors import InputError
from nas.runs import description
from nas.runs.storage.journal import readable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from waitress.server import BaseWSGIServer

THREADS = 4
NO_WRITING = "the dashboard only shows this study; its journal is written by nas run"
PREFIX = "constraints:"  # how Optuna 5 stores a named constraint; the dashboard 0.21 reads only the old `constraints`


class ReadOnly(JournalFileBackend):
    """A journal that may be read while a study writes it, and cannot be written."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise PermissionError(NO_WRITING)


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
    with readable(journal):
        return Shown(ReadOnly(str(journal)))


def serve(path: Path, port: int = 8080) -> None:
    """Serve until interrupted. InputError without the package, without a journal, or when the port is taken."""
    run_dir = description.find(path)
    made = server(run_dir, port)
    print(f"http://{loopback.HOST}:{made.effective_port}/  shows {run_dir}; Ctrl-C ends it", flush=True)
    loopback.run(made)


def server(run_dir: Path, port: int) -> BaseWSGIServer:
    """The dashboard of a run, listening but not yet running. InputError as `serve`."""
    try:
        import optuna_dashboard
    except ImportError:
        raise InputError("dashboard: optuna-dashboard is not installed; pip install 'nas[dashboard]'") from None
    description.resolved(run_dir)
    return loopback.server("dashboard", showing(optuna_dashboard.wsgi(storage(run_dir))), port, THREADS)


def showing(application: WSGIApplication) -> WSGIApplication:
    """The dashboard for those who look: whatever would write gets 403 and the reason, as its buttons show one."""

    def checked(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start)
        return loopback.answer(start, "403 Forbidden", "application/json", json.dumps({"reason": NO_WRITING}).encode())

    return checked


def _with_constraints(trial: FrozenTrial) -> FrozenTrial:
    named = [value for key, value in sorted(trial.system_attrs.items()) if key.startswith(PREFIX)]
    if named and "constraints" not in trial.system_attrs:
        trial.system_attrs["constraints"] = named
    return trial
