"""Where Optuna keeps a study: a journal file, or PostgreSQL by its URL. Both outlive whoever dies while writing.

The journal is locked by the kernel, so a killed process holds nothing up, and a line it left half written is dropped
before the next is appended. The database may restart: every call is repeated, with growing pauses, until it is back.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

from nas.errors import InputError, brief

log = logging.getLogger(__name__)

DRIVER = "postgresql+psycopg"
PATIENCE_S = 600.0  # a database that stays away longer is given up; everything finished is kept
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
FORCED_EVERY_S = 1.0
REPEATED = (  # what of RDBStorage the study loop and Optuna's cache in front of it call
    "create_new_study", "get_study_id_from_name", "get_study_name_from_id", "get_study_directions", "get_all_studies",
    "set_study_user_attr", "set_study_system_attr", "get_study_user_attrs", "get_study_system_attrs",
    "create_new_trial", "_create_new_trial", "set_trial_param", "_check_and_set_param_distribution",
    "set_trial_state_values", "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr",
    "get_trial", "get_all_trials", "_get_trials", "get_n_trials", "get_trial_id_from_study_id_trial_number",
    "get_trial_number_from_id",
)  # fmt: skip


def is_database(url: str | None) -> bool:
    """Whether a storage is a database, not a journal file."""
    return url is not None and "://" in url


def open_storage(url: str | None, journal: Path) -> BaseStorage:
    """The storage at `url`: a database, or the path of a journal file, which is `journal` when nothing is given.

    Raises InputError when the URL is of another kind, its driver is missing, or nobody answers there.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if url is not None and is_database(url):
        return _database(url)
    return _journal(Path(url) if url else journal)


# --- the journal -----------------------------------------------------------------------------------------------------


def _journal(path: Path) -> JournalStorage:
    try:
        return JournalStorage(Journal(str(path), KernelLock(path)))
    except OSError as error:
        raise InputError(f"--storage {path}: {error.strerror}; expected a journal file or postgresql://...") from None
    except ValueError as error:  # not JSON
        raise InputError(f"--storage {path}: not a journal of Optuna: {brief(error)}") from None


class Journal(JournalFileBackend):
    """Optuna's journal file, forced to the disk once a second instead of at each of some 15 lines a trial.

    A process that dies loses nothing. A machine that loses power may lose the last second: see nas.ledger.
    """

    _lock: BaseJournalFileLock
    _forced = 0.0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs)
        with get_lock_file(self._lock), open(self._file_path, "ab") as file:
            file.write(lines.encode("utf-8"))
            file.flush()
            if time.monotonic() - self._forced > FORCED_EVERY_S:
                os.fsync(file.fileno())
                self._forced = time.monotonic()


class KernelLock(BaseJournalFileLock):
    """A lock on the journal itself. The kernel drops it with the process, so nobody waits for the dead.

    Whoever takes it finds whole lines: a last one without its end was written by a process that died, and is cut off.
    """

    def __init__(self, journal: Path):
        self._journal, self._handle = journal, None

    _handle: BinaryIO | None

    def acquire(self) -> bool:
        self._handle = self._journal.open("r+b")
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        drop_torn_line(self._handle)
        return True

    def release(self) -> None:
        assert self._handle is not None
        self._handle.close()


def drop_torn_line(file: BinaryIO) -> None:
    """Cut off what follows the last line's end."""
    end = position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - 4096)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        file.truncate(position)


# --- the database ----------------------------------------------------------------------------------------------------


def _database(url: str) -> RDBStorage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, ProgrammingError, SQLAlchemyError

    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(f"--storage {url}: expected postgresql://user:password@host:port/database") from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername not in ("postgresql", DRIVER):
        raise InputError(f"--storage {shown}: expected postgresql://... or the path of a journal file")
    address = parsed.set(drivername=DRIVER).render_as_string(hide_password=False)
    for attempt in range(5):
        try:
            return PatientDatabase(address, engine_kwargs={"pool_pre_ping": True, "pool_size": 1})
        except ImportError:
            raise InputError(f"--storage {shown}: needs psycopg; install nas[postgres]") from None
        except (IntegrityError, ProgrammingError) as error:  # another process makes the tables at this moment
            if attempt == 4:
                raise InputError(f"--storage {shown}: {brief(error)}") from None
            time.sleep(0.5)
        except (SQLAlchemyError, NoSuchModuleError, RuntimeError) as error:
            raise InputError(f"--storage {shown}: {brief(getattr(error, 'orig', None) or error)}") from None
    raise AssertionError("the last attempt returns or raises")


def is_away(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, says that the database cannot be reached at this moment."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    while error is not None:
        if isinstance(error, OperationalError | InterfaceError):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False


def _repeated(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called again while the database is away, for PATIENCE_S at most."""

    @functools.wraps(method)
    def call(self: PatientDatabase, *arguments: Any, **named: Any) -> Any:
        until, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        failed = False
        while True:
            try:
                return method(self, *arguments, **named)
            except UpdateFinishedTrialError:
                if failed and method.__name__ == "set_trial_state_values":
                    return True  # the first call was carried out, only its answer was lost
                raise
            except Exception as error:
                if not is_away(error) or time.monotonic() > until:
                    raise
                if not failed:
                    log.warning("the database does not answer (%s); trying again", brief(error))
                failed = True
            self.scoped_session.remove()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    return call


class PatientDatabase(RDBStorage):
    """Optuna's database storage, whose calls wait for a server that restarts.

    A trial that is created twice, because the answer to the first call was lost, has no record: see nas.ledger.
    """


for _name in REPEATED:
    if hasattr(RDBStorage, _name):
        setattr(PatientDatabase, _name, _repeated(getattr(RDBStorage, _name)))
