"""A journal in PostgreSQL: the lines that Optuna's journal file would hold, as rows of the table `nas_journal`.

One insert an operation, where Optuna's own tables take some 80 statements a trial. Rows of a run are numbered without gaps,
in the order they are committed, under a lock that falls with the transaction. Every row has a token of its own, so that a
write whose answer was lost, because the server restarted, is repeated without being carried out twice.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from optuna.storages.journal import BaseJournalBackend

from nas.errors import InputError, brief

log = logging.getLogger(__name__)

PATIENCE_S = 600.0  # a database that stays away longer is given up; everything finished is kept
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
TABLE = """
    CREATE TABLE IF NOT EXISTS nas_journal (
        run text, number bigint, token text NOT NULL, entry text NOT NULL, PRIMARY KEY (run, number), UNIQUE (run, token)
    )
"""
LOCK = "SELECT pg_advisory_xact_lock(hashtext('nas_journal'), hashtext(%s))"
APPEND = """
    INSERT INTO nas_journal SELECT %(run)s, coalesce(max(number) + 1, 0), %(token)s, %(entry)s
    FROM nas_journal WHERE run = %(run)s ON CONFLICT (run, token) DO NOTHING
"""
READ = "SELECT entry FROM nas_journal WHERE run = %s AND number >= %s ORDER BY number"
RUNS = "SELECT DISTINCT run FROM nas_journal WHERE starts_with(run, %s) ORDER BY run"
T = TypeVar("T")


class Database:
    """A connection that is made when needed, and anew when the server comes back."""

    def __init__(self, url: str):
        """Raises InputError when the URL is of another kind, the driver is missing, or nobody answers there."""
        self._url, self._connection = url, None
        scheme = urlsplit(url).scheme
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
            raise InputError(f"--storage {shown(url)}: expected postgresql://user@host/database, or a journal file")
        self._address = url.replace("postgresql+psycopg://", "postgresql://", 1)
        try:
            import psycopg
        except ImportError:
            raise InputError(f"--storage {shown(url)}: needs psycopg; install nas[postgres]") from None
        try:
            with self._connected().transaction():
                self._connected().execute(LOCK, ("",))
                self._connected().execute(TABLE)
        except psycopg.Error as error:
            raise InputError(f"--storage {shown(url)}: {brief(error)}") from None

    _connection: Any

    def _connected(self) -> Any:
        import psycopg

        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._address, autocommit=True, connect_timeout=10)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def patiently(self, work: Callable[[Any], T]) -> T:
        """`work(connection)` in a transaction, repeated with growing pauses while the server is away."""
        import psycopg

        until, pause, told = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S, False
        while True:
            try:
                with self._connected().transaction():
                    return work(self._connected())
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if time.monotonic() > until:
                    raise InputError(
                        f"--storage {shown(self._url)}: no answer for {PATIENCE_S / 60:.0f} min ({brief(error)}); "
                        f"nothing finished is lost, the same command goes on"
                    ) from None
                if not told:
                    log.warning("the database does not answer (%s); trying again", brief(error))
                told = True
                self._drop()
            except BaseException:  # SIGTERM in the middle of a command: nothing else can be sent on that connection
                self._drop()
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def runs(self, prefix: str) -> list[str]:
        """Names of the runs that begin so, in order."""
        return self.patiently(lambda connection: [run for (run,) in connection.execute(RUNS, (prefix,)).fetchall()])


class DatabaseJournal(BaseJournalBackend):
    """The journal of one run."""

    def __init__(self, database: Database, run: str):
        self._database, self._run = database, run

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        rows = self._database.patiently(
            lambda connection: connection.execute(READ, (self._run, log_number_from)).fetchall()
        )
        return [json.loads(entry) for (entry,) in rows]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        rows = [{"run": self._run, "token": uuid.uuid4().hex, "entry": json.dumps(entry)} for entry in logs]

        def append(connection: Any) -> None:
            with connection.pipeline():
                connection.execute(LOCK, (self._run,))
                for row in rows:
                    connection.execute(APPEND, row)

        self._database.patiently(append)


def shown(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))
