"""The journal file and the database: torn lines, power failures, servers that restart, URLs that lead nowhere."""

import threading

import optuna
import pytest

from nas import postgres
from nas.errors import InputError
from nas.postgres import Database, DatabaseJournal
from nas.storage import open_storage

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
        ("sqlite:///x.db", ["sqlite:///x.db", "postgresql://"]),
        ("postgresql://me:secret@127.0.0.1:1/x", ["me:***@127.0.0.1"]),
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
