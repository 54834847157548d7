"""A journal in PostgreSQL: the lines that Optuna's journal file would hold, as rows of the table `nas_journal`.

One insert an operation, where Optuna's own tables take some 80 statements a trial. Rows of a run are numbered without gaps,
in the order they are committed, under a lock that falls with the transaction. Every row has a token of its own, so that a
write whose answer was lost, because the server restarted, is repeated without being carried out twice.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from optuna.storages.journal import BaseJournalBackend

from nas.documents import study_name
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
EXPECTED = "postgresql://user:password@host:port/database"
ENCODED = (
    "in a password write % as %25, / as %2F, @ as %40, # as %23, ? as %3F, a space as %20, or leave it to ~/.pgpass"
)
T = TypeVar("T")


class Database:
    """A connection that is made when needed, and anew when the server comes back."""

    def __init__(self, url: str):
        """Raises InputError when the URL is of another kind, the driver is missing, or nobody answers there."""
        self._connection = None
        self._address, parts = _read(url)
        self.shown = _spelled(parts)
        self._secrets = [str(value) for name, value in parts.items() if "password" in name and value]
        import psycopg

        try:
            with self._connected().transaction():
                self._connected().execute(LOCK, ("",))
                self._connected().execute(TABLE)
        except psycopg.Error as error:
            raise InputError(f"--storage {self.shown}: {self._said(error)}") from None

    _connection: Any

    def _connected(self) -> Any:
        import psycopg

        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._address, autocommit=True, connect_timeout=10)
        return self._connection

    def _said(self, error: Exception) -> str:
        """What the driver says, without a password."""
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return brief(ValueError(text))

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
                        f"--storage {self.shown}: no answer for {PATIENCE_S / 60:.0f} min ({self._said(error)}); "
                        f"nothing finished is lost, the same command goes on"
                    ) from None
                if not told:
                    log.warning("the database does not answer (%s); trying again", self._said(error))
                told = True
                self._drop()
            except BaseException:  # SIGTERM in the middle of a command: nothing else can be sent on that connection
                self._drop()
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def latest_run(self, study: str) -> str | None:
        """The name of a study's last run; None when there is none. Names are STUDY/TIME, in UTC."""
        runs = [run for run in self.runs(f"{study}/") if study_name.fits(run.removeprefix(f"{study}/"))]
        return runs[-1] if runs else None

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
    """The URL with user, host, port and database alone; nothing of one that cannot be read, which may be a password anywhere."""
    try:
        return _spelled(_read(url)[1])
    except InputError:
        return f"{_scheme(url) or 'postgresql'}://..."


def _scheme(url: str) -> str:
    found = re.match(r"([a-z+]+)://", url)
    return found[1] if found else ""


def _read(url: str) -> tuple[str, dict[str, Any]]:
    """A URL as libpq takes it, and what libpq reads in it. Raises InputError, with nothing of the URL but its scheme.

    A password with a `/` or an `@` in it cuts a URL into other pieces than was meant. Such a URL is refused, before a piece is
    shown, or looked up, as the name of a host or a database.
    """
    scheme = _scheme(url)
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise InputError(
            f"--storage {scheme + '://...' if scheme else ''}: expected {EXPECTED}, or the path of a journal file"
        )
    try:
        from psycopg import Error, conninfo
    except ImportError:
        raise InputError(f"--storage {scheme}://...: needs psycopg; install nas[postgres]") from None
    address = url.replace("postgresql+psycopg://", "postgresql://", 1)
    server, _, rest = address.partition("://")[2].partition("/")
    try:
        parts = conninfo.conninfo_to_dict(address)
        whole = server.count("@") < 2 and "@" not in rest and re.fullmatch(r"[0-9,]*", str(parts.get("port", "")))
    except Error:
        whole = None
    if not whole:
        raise InputError(f"--storage {scheme}://...: expected {EXPECTED}; {ENCODED}")
    return address, parts


def _spelled(parts: Mapping[str, Any]) -> str:
    user, host, port, database = (str(parts.get(name) or "") for name in ("user", "host", "port", "dbname"))
    return f"postgresql://{user}{'@' if user else ''}{host}{':' if port else ''}{port}/{database}"
