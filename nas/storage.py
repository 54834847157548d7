"""Where Optuna keeps a study: a journal file, or PostgreSQL by its URL. Both outlive whoever dies while writing.

The journal file is locked by the kernel, so a killed process holds nothing up, and a line it left half written is dropped
before the next is appended. For the database see nas.postgres.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

from nas.errors import InputError, brief
from nas.postgres import Database, DatabaseJournal

FORCED_EVERY_S = 1.0


def is_database(url: str | None) -> bool:
    """Whether a storage is a database, not a journal file."""
    return url is not None and "://" in url


def open_storage(url: str | None, journal: Path, run: str) -> JournalStorage:
    """The storage at `url`: a run's journal in a database, or a journal file, which is `journal` when nothing is given.

    Raises InputError when the URL is of another kind, its driver is missing, or nobody answers there.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if url is not None and is_database(url):
        return JournalStorage(DatabaseJournal(Database(url), run))
    path = Path(url) if url else journal
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
