"""Where Optuna keeps a study: a journal file, or PostgreSQL by its URL. Both outlive whoever dies while writing.

The journal file is locked by the kernel, so a killed process holds nothing up, and a line it left half written is dropped
before the next is appended. For the database see nas.runs.storage.postgres.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

from nas.errors import InputError, brief
from nas.runs.storage.postgres import EXPECTED, Database, DatabaseJournal

FORCED_EVERY_S = 1.0
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError)  # of lines that are no log
NO_FILE = re.compile(  # a URL, user:password@host, or libpq's key=value: no file is given a name that holds a password
    r".*://|postgres(ql)?(\+\w+)?:|[^/\s]+:.*@|(.*\s)?(host|hostaddr|port|dbname|user|password|passfile|service)\s*=",
    re.DOTALL,
)


def is_database(url: str | None) -> bool:
    """Whether a storage is a database, not a journal file."""
    return url is not None and NO_FILE.match(url) is not None


def open_storage(url: str | None, journal: Path, run: str) -> JournalStorage:
    """The storage at `url`: a run's journal in a database, or a journal file, which is `journal` when nothing is given.

    Raises InputError when the URL is of another kind, its driver is missing, nobody answers there, or the journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if url is not None and is_database(url):
        return JournalStorage(DatabaseJournal(Database(url), run))
    path = Path(url) if url else journal
    with readable(path):
        return JournalStorage(Journal(path))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever reading a journal raises as one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a journal file or {EXPECTED}") from None
    except DAMAGED as error:
        raise InputError(
            f"{path}: not a journal of Optuna ({type(error).__name__}: {brief(error)}); move the file somewhere else: nas run "
            f"makes the journal of a run again from its records, and nothing is lost"
        ) from None


class Journal(JournalFileBackend):
    """Optuna's journal file, forced to the disk once a second instead of at each of some 15 lines a trial.

    A process that dies loses nothing. A machine that loses power may lose the last second: see nas.runs.ledger.
    """

    _lock: BaseJournalFileLock
    _forced = 0.0

    def __init__(self, path: Path):
        super().__init__(str(path), KernelLock(path))
        with get_lock_file(self._lock):
            pass  # now it ends with a whole line

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
    """Cut off what follows the end of the last line that holds anything: half a line, or blank ones."""
    end, size = file.seek(0, os.SEEK_END), 4096
    while True:
        start = max(0, end - size)
        file.seek(start)
        tail = file.read(end - start)
        whole = tail[: tail.rfind(b"\n") + 1]
        if whole.strip() or not start:
            break
        size *= 16
    kept = start + whole.find(b"\n", len(whole.rstrip())) + 1 if whole.strip() else 0
    if kept < end:
        file.truncate(kept)
