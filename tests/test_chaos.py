"""kill -9 of workers and the coordinator, at random, on both storages: nothing is lost, counted twice or changed."""

import json
import os
import random
import signal
import time
from contextlib import suppress

import free_study
import optuna
import psutil
import pytest
import rich._emoji_codes

from nas.runs.storage.journal import open_storage
from nas.search import dominance
from nas.settings import study_file
from nas.space.search_space import SearchSpace

TRIALS, WORKERS, KILLS = 18, 3, 6


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(free_study.STUDY.format(trials=TRIALS, workers=WORKERS))
    return path


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What a coordinator imports, once for all that are forked from here."""
    assert rich._emoji_codes
    space = SearchSpace.load("mobilediffusion")
    space.architecture(space.sample(random.Random(0))).cost(64, 77)


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    """What one worker finds, without any accident."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert ended(free_study.forked(free_study.coordinate, study, root), 120) == 0
    return records(root)


def records(root):
    found = [json.loads(path.read_text()) for path in root.glob("free/*/trials/*/record.json")]
    return {record["trial"]: record for record in found}


def ended(pid, timeout_s):
    """The exit code of a child; None if it is still running after the time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def lived(pid, rng):
    """Let a coordinator live for a random time, from its start (one time in six) or from when it has workers."""
    code = None
    patient = rng.random() > 1 / 6
    while patient and code is None and not workers_of(pid):
        code = ended(pid, 0.1)
    return ended(pid, rng.uniform(0.0, 2.0)) if code is None else code


def workers_of(coordinator):
    """Worker processes are children of the fork server, which is a child of the coordinator."""
    try:
        servers = psutil.Process(coordinator).children()
        return [worker for server in servers for worker in server.children()]
    except psutil.NoSuchProcess:
        return []


def front(found, study):
    frame_of = study_file.load(study).objectives
    complete = [record for record in found.values() if record["state"] == "complete"]
    rows = [{**record["cost"], **record["rungs"][-1]["metrics"]} for record in complete]
    members = dominance.nondominated([[row[column] for column in frame_of] for row in rows])
    return {
        (record["key"], row["fid_efficientnet_lite0"])
        for record, row, on in zip(complete, rows, members, strict=True)
        if on
    }


def trained(found):
    return [record for record in found.values() if record["state"] not in ("over_budget", "duplicate")]


@pytest.mark.parametrize("kind", ["journal", "postgres"])
def test_random_kills_change_nothing(kind, study, undisturbed, tmp_path, monkeypatch, request):
    url = request.getfixturevalue("database_server").url if kind == "postgres" else None
    monkeypatch.setenv(free_study.SECONDS, "0.2")
    rng, deaths, until = random.Random(1), {"worker": 0, "coordinator": 0}, time.monotonic() + 300
    pid = free_study.forked(free_study.coordinate, study, tmp_path, url)
    try:
        while (code := lived(pid, rng) if sum(deaths.values()) < KILLS else ended(pid, 200)) != 0:
            assert code in (None, -signal.SIGKILL) and time.monotonic() < until, (code, deaths)
            if code is not None:
                pid = free_study.forked(free_study.coordinate, study, tmp_path, url)
                continue
            workers = workers_of(pid)
            if workers and deaths["worker"] <= deaths["coordinator"]:  # in turn, so that a fast machine sees both
                rng.choice(workers).kill()
                deaths["worker"] += 1
            else:
                os.kill(pid, signal.SIGKILL)
                deaths["coordinator"] += 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    assert deaths["worker"] and deaths["coordinator"], deaths
    found = records(tmp_path)
    assert len(trained(found)) == TRIALS
    assert all(r["state"] == "complete" or (r["state"] == "failed" and r["reason"]) for r in trained(found))
    assert {r["key"]: r["seed"] for r in trained(found)} == {r["key"]: r["seed"] for r in trained(undisturbed)}
    assert front(found, study) == front(undisturbed, study)
    (run,) = (tmp_path / "free").iterdir()
    name = f"free/{run.name}" if url else "free"
    told = optuna.load_study(study_name=name, storage=open_storage(url, run / "journal.log", name)).get_trials()
    assert all(each.state.is_finished() for each in told)
    assert {each.number for each in told if each.state == optuna.trial.TrialState.COMPLETE} == {
        number for number, record in found.items() if record["state"] in ("complete", "duplicate")
    }
