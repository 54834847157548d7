import json
import socket
import sys
import time
import warnings

import optuna
import pytest
import synthetic_run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from served import asked, running

from nas.errors import InputError
from nas.report.live import dashboard


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


@pytest.fixture
def port(journal):
    pytest.importorskip("optuna_dashboard")
    with running(dashboard.server(journal[0], 0)) as found:
        yield found


def test_it_serves_what_another_process_adds(journal, port):
    _, study = journal
    (summary,) = fetched(port, "/api/studies")["study_summaries"]
    trials = f"/api/studies/{summary['study_id']}?after=0"
    assert len(fetched(port, trials)["trials"]) == 3
    add(study, -0.2)
    end = time.monotonic() + 30  # the dashboard looks at the journal again every few seconds
    while len(fetched(port, trials)["trials"]) < 4:
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/api/studies/0"), ("POST", "/api/studies/0/rename"), ("PUT", "/api/studies/0/note"), ("POST", "/no")],
)
def test_what_would_write_is_refused_with_the_reason(journal, port, method, path):
    before = (journal[0] / "journal.log").read_bytes()
    status, _, content = asked(port, method, path, b"{}", **{"Content-Type": "application/json"})
    assert status == 403 and json.loads(content) == {"reason": dashboard.NO_WRITING}
    assert (journal[0] / "journal.log").read_bytes() == before
    assert len(fetched(port, "/api/studies")["study_summaries"]) == 1


@pytest.mark.parametrize("path", ["/", "/dashboard", "/api/studies", "/csv/0", "/static/bundle.js"])
def test_a_page_that_comes_by_another_name_is_told_nothing(port, path):
    status, _, content = asked(port, path=path, Host=f"evil.example:{port}")
    assert (status, content) == (403, b"expected a request to this machine")


def fetched(port, path):
    status, _, content = asked(port, path=path)
    assert status == 200
    return json.loads(content)


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
