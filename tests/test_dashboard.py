import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings

import optuna
import pytest
import synthetic_run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas import dashboard
from nas.errors import InputError


@pytest.fixture
def journal(run_dir):
    """A run's journal as a study writes it: three trials, one over budget; and the study to go on with."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(run_dir / "journal.log"))), study_name="s"
    )
    for over in (-0.5, 0.25, -0.1):
        add(study, over)
    return run_dir, study


def add(study, over):
    asked = study.ask()
    asked.set_constraint("macs", over)
    asked.set_constraint("params", -1.0)
    study.tell(asked, 1.0)


def test_refused_candidates_are_where_the_dashboard_looks(journal):
    run_dir, study = journal
    shown = optuna.load_study(study_name="s", storage=dashboard.storage(run_dir))
    assert [max(trial.system_attrs["constraints"]) > 0 for trial in shown.trials] == [False, True, False]
    before = (run_dir / "journal.log").read_bytes()
    with pytest.raises(PermissionError, match="only shows this study"):
        shown.set_user_attr("a", 1)
    assert (run_dir / "journal.log").read_bytes() == before


def test_it_serves_what_another_process_adds(journal):
    pytest.importorskip("optuna_dashboard")
    run_dir, study = journal
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threading.Thread(target=dashboard.serve, args=(run_dir, port), daemon=True).start()
    address = f"http://127.0.0.1:{port}/api/studies"
    assert len(fetched(address)["study_summaries"]) == 1
    number = fetched(address)["study_summaries"][0]["study_id"]
    assert len(fetched(f"{address}/{number}?after=0")["trials"]) == 3
    add(study, -0.2)
    end = time.monotonic() + 30  # the dashboard looks at the journal again every few seconds
    while len(fetched(f"{address}/{number}?after=0")["trials"]) < 4:
        assert time.monotonic() < end
        time.sleep(0.5)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(f"{address}/{number}", method="DELETE"), timeout=30)
    assert len(fetched(address)["study_summaries"]) == 1


def fetched(address):
    for _ in range(100):
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(f"{address} never answered")


def test_bad_input(journal, tmp_path, monkeypatch):
    run_dir, _ = journal
    with pytest.raises(InputError, match="not a run directory"):
        dashboard.serve(tmp_path)
    with pytest.raises(InputError, match="has no journal.log"):
        dashboard.serve(synthetic_run.write(tmp_path / "other", trials=0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot listen on 127.0.0.1"):
            dashboard.serve(run_dir, taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(InputError, match=r"pip install 'nas\[dashboard\]'"):
        dashboard.serve(run_dir)
