"""`nas worker`: compute trials for a run that a coordinator (`nas run`) leads from another process or machine.

Settings come from the storage, so the worker trains exactly what the coordinator asks for. Results travel through the
storage as well; checkpoints, weights and pictures lie below `--root`. When that folder is shared, a trial goes on
anywhere from its last checkpoint; when not, a trial that changes machines is trained again from its start.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from nas import interruption
from nas.documents import study_name
from nas.documents.document import Document
from nas.errors import InputError
from nas.joined import POLL_S, encoded_error, letter_boxes
from nas.runs import description
from nas.runs.journal import is_database, open_storage
from nas.runs.lease import BEAT_S, KEY, died_here
from nas.runs.postgres import Database, shown
from nas.settings.study import Study
from nas.workers.local import Engine, Workers, default_count

SETTINGS, ENDED = "settings", "ended"  # attributes of the run's Optuna study
WAIT_S = 600.0  # for a run to begin
ABSENT_S = 1800.0  # without a coordinator, before a worker leaves
Say = Callable[[str], None]


def work(path: Path, url: str | None, root: Path, count: int | None, say: Say, engine: Any = None) -> None:
    """Join the latest run of a study, wait for one if there is none, and compute until it ends.

    `engine(count, study, cache)` makes what computes; this machine's processes unless given. Raises InputError when no
    run begins within WAIT_S, and when the run needs files that only its coordinator has.
    """
    run, storage = find(study_name.of(path), url, root, say)
    told = run.user_attrs[SETTINGS]
    study: Study = Document(f"{run.study_name} in the storage", told).validate(Study, told)
    makes_base = study.base is not None and study.base.checkpoint is None
    if makes_base and not below(root, run.user_attrs["directory"]).exists():
        raise InputError(
            f"--root {root}: the base model of {run.study_name} is not there; expected the run's own --root"
        )
    boxes = letter_boxes(storage, run.study_name)
    count = count or default_count()
    say(f"joined {run.study_name} with {count} worker{'s' * (count > 1)}")
    make = engine or Workers
    crew = Crew(boxes, root, make(count, study, root / ".cache"), count)
    try:
        said = serve(crew, run)
    finally:
        crew.leave()
    say(said)


def find(name: str, url: str | None, root: Path, say: Say) -> tuple[optuna.Study, BaseStorage]:
    """The run to join: the study's latest that is not over. Raises InputError when none begins within WAIT_S."""
    until, told = time.monotonic() + WAIT_S, False
    while True:
        found = _latest(name, url, root)
        if found is not None and SETTINGS in found[0].user_attrs and not found[0].user_attrs.get(ENDED):
            return found
        if time.monotonic() > until:
            where = shown(url) if url and is_database(url) else url or root / name
            raise InputError(f"no run of {name} began in {where} within {WAIT_S:.0f} s; start one with nas run")
        if not told:
            say(f"waiting for nas run to begin {name}")
        told = True
        time.sleep(POLL_S)


def _latest(name: str, url: str | None, root: Path) -> tuple[optuna.Study, BaseStorage] | None:
    if url is not None and is_database(url):
        run = Database(url).latest_run(name)
        journal = Path()
    else:
        latest = description.latest(root / name)
        journal = Path(url) if url else latest / "journal.log" if latest else Path()
        run = name if journal.is_file() else None
    if run is None:
        return None
    storage = open_storage(url, journal, run)
    if run not in {study.study_name for study in storage.get_all_studies()}:
        return None
    return optuna.load_study(study_name=run, storage=storage), storage


def serve(crew: Crew, run: optuna.Study) -> str:
    """Compute until the study has ended; the line that says why it is over."""
    coordinator, heard, look = None, time.monotonic(), 0.0
    while True:
        crew.turn()
        if time.monotonic() < look:
            continue
        look = time.monotonic() + BEAT_S
        attributes = run.user_attrs
        if attributes.get(ENDED):
            return f"{run.study_name} has ended"
        now = attributes.get(KEY)
        if now != coordinator and not (now and (now["released"] or died_here(now))):
            coordinator, heard = now, time.monotonic()
        if not crew.busy and time.monotonic() - heard > ABSENT_S:
            return f"no coordinator for {ABSENT_S / 60:.0f} min; leaving"


def below(root: Path, folder: str) -> Path:
    """A folder that the storage names. Raises InputError for one that is not below the root."""
    path = root / folder
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{folder}: the storage names a folder that is not below --root {root}")
    return path


class Crew:
    """The letter boxes of one process, and the engine that computes what comes in."""

    def __init__(self, boxes: optuna.Study, root: Path, engine: Engine, count: int):
        self._root, self._engine = root, engine
        self._boxes = [Box(boxes) for _ in range(count)]

    @property
    def busy(self) -> bool:
        return bool(self._engine.busy)

    def turn(self) -> None:
        """Look for jobs, give signs of life, hand in what is done; takes about POLL_S."""
        began = time.monotonic()
        for index, box in enumerate(self._boxes):
            job = box.look()
            if job is not None:
                self._engine.submit((index, 0), *self._decoded(job))
        for (index, _), future in self._engine.finished(POLL_S) if self._engine.busy else []:
            self._boxes[index].hand_in(future)
        if not self._engine.busy:
            time.sleep(max(0.0, began + POLL_S - time.monotonic()))

    def _decoded(self, job: dict[str, Any]) -> tuple[Any, Any]:
        from nas.trial import rung

        calls = {"run_rung": rung.run_rung}
        folder = below(self._root, job["job"]["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        return calls[job["call"]], rung.Job(**{**job["job"], "folder": folder})

    def leave(self) -> None:
        """Save checkpoints, give back what is not done, and sign off."""
        self._engine.stop()
        for box in self._boxes:
            box.leave()


class Box:
    """One letter box: a running trial of the workers' study."""

    def __init__(self, boxes: optuna.Study):
        self._study, self._storage = boxes, boxes._storage
        self._job: dict[str, Any] | None = None
        self._join()

    def _join(self) -> None:
        asked = self._study.ask()
        self._id, self._number, self._done, self._beat, self._next = asked._trial_id, asked.number, "", 0, 0.0
        self._write("name", f"{platform.node()}:{os.getpid()}")

    def look(self) -> dict[str, Any] | None:
        """A job that came, if this box has none; gives a sign of life when it is time."""
        try:
            if time.monotonic() >= self._next:
                self._beat, self._next = self._beat + 1, time.monotonic() + BEAT_S
                self._storage.set_trial_user_attr(self._id, "beat", self._beat)
            if self._job is not None:
                return None
            job = self._storage.get_trial(self._id).user_attrs.get("job")
        except UpdateFinishedTrialError:  # taken for dead; what is being computed will be refused
            self._join()
            return None
        if job is None or job["id"] == self._done:
            return None
        self._job = job
        return self._job

    def hand_in(self, future: Future[Any]) -> None:
        """Write what the job gave."""
        assert self._job is not None
        error = future.exception()
        outcome = {"value": future.result()} if error is None else encoded_error(error)
        self._done, self._job = self._job["id"], None
        self._write("result", {"id": self._done, **outcome})

    def leave(self) -> None:
        """Sign off; a job that is not done goes back."""
        if self._job is not None:
            self._write("result", {"id": self._job["id"], **encoded_error(interruption.Interrupted("the worker left"))})
        with suppress(UpdateFinishedTrialError, ValueError):  # taken for dead already
            self._study.tell(self._number, 0.0, TrialState.COMPLETE)

    def _write(self, key: str, value: Any) -> None:
        try:
            self._storage.set_trial_user_attr(self._id, key, value)
        except UpdateFinishedTrialError:
            self._join()
