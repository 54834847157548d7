"""The journal file and the database: torn lines, power failures, servers that restart, URLs that lead nowhere."""

import socket
import threading

import optuna
import pytest

from nas.errors import InputError
from nas.runs.storage import postgres
from nas.runs.storage.journal import is_database, open_storage
from nas.runs.storage.postgres import Database, DatabaseJournal

optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(url, path, run="s"):
    return optuna.create_study(storage=open_storage(url, path, run), study_name=run, load_if_exists=True)


def told(study, count):
    for _ in range(count):
        asked = study.ask()
        study.tell(asked, asked.suggest_float("x", 0, 1))


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_dropped_and_writing_goes_on(tmp_path, cut):
    path = tmp_path / "journal.log"
    told(open_study(None, path), 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = open_study(None, path)
    told(again, 2)
    lines = path.read_bytes().splitlines()
    assert whole.splitlines()[:-1] == lines[: len(whole.splitlines()) - 1]
    assert len(open_study(None, path).trials) == 5


def test_a_journal_of_one_torn_line_is_empty(tmp_path):
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"op_code": 0, "worker')
    told(open_study(None, path), 1)
    assert len(open_study(None, path).trials) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///x.db", ["sqlite://...", "postgresql://"]),
        ("postgresql://me:secret@127.0.0.1:1/x", ["--storage postgresql://me@127.0.0.1:1/x: "]),
        ("/no/such/folder/journal.log", ["/no/such/folder", "journal"]),
    ],
)
def test_a_storage_that_cannot_be_is_one_line_without_the_password(url, words, tmp_path):
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="no driver: install nas[postgres]")
    with pytest.raises(InputError) as error:
        open_storage(url, tmp_path / "journal.log", "s")
    assert all(word in str(error.value) for word in words) and "secret" not in str(error.value)
    assert "\n" not in str(error.value)


SECRETS = [
    "postgresql://me:s3cret/x@127.0.0.1:1/db",
    "postgresql://me:x/s3cret@127.0.0.1:1/db",
    "postgresql://me:12/s3cret@127.0.0.1:1/db?user=x@127.0.0.1",
    "postgresql://me:s3cret#x@127.0.0.1:1/db",
    "postgresql://me:#s3cret@127.0.0.1:1/db",
    "postgresql://me:s3cret?x@127.0.0.1:1/db",
    "postgresql://me:x@s3cret@127.0.0.1:1/db",
    "postgresql://me:s3cret%zz@127.0.0.1:1/db",
    "postgresql://me:s3%63ret%@127.0.0.1:1/db",
    "postgresql://me:s3cret x@127.0.0.1:1/db",
    "postgresql://me:s3cret/db",
    "postgresql://me:s3cret@127.0.0.1:port/db",
    "postgresql://me@127.0.0.1:1/db?password=s3cret",
    "postgresql://127.0.0.1:1/db?user=me&password=s3%63ret&connect_timeout=1",
    "postgresql://127.0.0.1:1/db?sslpassword=s3cret",
    "postgresql://127.0.0.1:1/db?passwort=s3cret",
    "postgresql+psycopg://me:s3cret@127.0.0.1:1/db",
    "postgresql+asyncpg://me:s3cret@127.0.0.1:1/db",
    "mysql://me:s3cret@127.0.0.1/db",
    "postgresql:/me:s3cret@127.0.0.1/db",
    "postgres:me:s3cret@127.0.0.1",
    "me:s3cret@127.0.0.1",
    "me:s3cret/x@127.0.0.1:1/db",
    "host=127.0.0.1 port=1 dbname=db user=me password=s3cret",
    "password = 's3cret' host = 127.0.0.1",
]


@pytest.mark.parametrize("url", SECRETS)
def test_no_spelling_of_a_password_is_told_or_made_a_files_name(url, tmp_path, monkeypatch, caplog):
    """Nor looked up as the name of a host: `s3cret` stands in for one."""
    pytest.importorskip("psycopg", reason="no driver: install nas[postgres]")
    asked, real = [], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or real(host, *rest, **more)
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        open_storage(url, tmp_path / "journal.log", "s")
    assert "\n" not in str(error.value) and "postgresql://" in str(error.value)
    for said in (str(error.value), caplog.text, postgres.shown(url), *map(str, asked)):
        assert "s3cret" not in said
    assert not list(tmp_path.iterdir()) and is_database(url)


def test_what_is_shown_of_an_address():
    pytest.importorskip("psycopg", reason="no driver: install nas[postgres]")
    for url, shown in {
        "postgresql://me%40team:s3cret@host:5432/db?application_name=x": "postgresql://me@team@host:5432/db",
        "postgresql+psycopg://me:p%2Fs%23%40@[::1]/db": "postgresql://me@::1/db",
        "postgresql:///db?host=/run/postgresql&user=me": "postgresql://me@/run/postgresql/db",
        "postgres://host": "postgresql://host/",
    }.items():
        assert postgres.shown(url) == shown


@pytest.mark.parametrize("path", ["journal.log", "runs/a=b/journal.log", "user/x@y", "C:journal", "/tmp/host/port.log"])
def test_paths_are_paths(path):
    assert not is_database(path)


def test_a_password_with_every_sign_reaches_the_server(database_server):
    """Encoded as the refusal says; the server takes any, and what it answers of a database that is not there is told."""
    address = database_server.url.replace("nas@", "nas:%25%2F%40%23%3F%20s3cret@")
    told(open_study(address, None, "encoded"), 1)
    with pytest.raises(InputError) as error:
        open_storage(address.replace("/postgres", "/nothing"), None, "s")
    assert 'database "nothing" does not exist' in str(error.value) and "s3cret" not in str(error.value)
    assert str(error.value).startswith(f"--storage {database_server.url.replace('/postgres', '/nothing')}: ")


def test_the_last_run_of_a_study_is_one_folder(database_server):
    for name in (
        "mine/2026-10-25_01-30-00",
        "mine/2026-10-25_01-31-00",
        "mine/../../escaped",
        "mine/z/y",
        "mine.2/2027",
    ):
        DatabaseJournal(Database(database_server.url), name).append_logs([{"a": 1}])
    assert Database(database_server.url).latest_run("mine") == "mine/2026-10-25_01-31-00"
    assert Database(database_server.url).latest_run("min") is None


def test_a_database_that_restarts_is_waited_for(database_server, monkeypatch):
    study = open_study(database_server.url, None, "restart")
    told(study, 2)
    database_server.stop()
    starting = threading.Timer(1.0, database_server.start)
    starting.start()
    told(study, 2)
    starting.join()
    assert len(open_study(database_server.url, None, "restart").trials) == 4
    monkeypatch.setattr(postgres, "PATIENCE_S", 0.5)
    database_server.stop()
    try:
        with pytest.raises(InputError, match="no answer"):
            told(study, 1)
    finally:
        database_server.start()


def test_writers_side_by_side_leave_no_gap_and_runs_stay_apart(database_server):
    def write(name):
        journal = DatabaseJournal(Database(database_server.url), "many")
        for number in range(20):
            journal.append_logs([{"who": name, "number": number}])

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(DatabaseJournal(Database(database_server.url), "many").read_logs(0))
    assert sorted((row["who"], row["number"]) for row in found) == [(w, n) for w in range(4) for n in range(20)]
    for name in range(4):
        assert [row["number"] for row in found if row["who"] == name] == list(range(20))
    assert list(DatabaseJournal(Database(database_server.url), "other").read_logs(0)) == []
    assert "many" in Database(database_server.url).runs("ma") and Database(database_server.url).runs("%") == []


def test_a_write_whose_answer_was_lost_counts_once(database_server):
    database = Database(database_server.url)
    journal = DatabaseJournal(database, "once")
    real, calls = database.patiently, []

    def twice(work):
        calls.append(real(work))
        return real(work)  # as after a connection that broke between the commit and its answer

    database.patiently = twice
    journal.append_logs([{"a": 1}, {"a": 2}])
    database.patiently = real
    assert calls and [row["a"] for row in journal.read_logs(0)] == [1, 2]
