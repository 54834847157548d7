"""Trials on a real Ray cluster of two node processes of one CPU: records, places, deaths of nodes, SIGTERM, wrong input."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import free_study
import pytest
from worker_jobs import die, save_when_told

from nas import failures, interruption
from nas.errors import InputError
from nas.settings import study_file
from nas.workers import ray_engine

pytest.importorskip("ray", reason="needs nas[ray]")
SECONDS, TRIALS = 0.3, 5


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; what runs on them sleeps SECONDS a rung."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(free_study.SECONDS, str(SECONDS))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))  # what nodes import
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 unless given: tests beside these would leave it no time
        size = {"num_cpus": 1, "object_store_memory": 80_000_000}
        made = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        made.more = lambda: made.add_node(**size)
        made.spare = [made.more()]
        yield made
        made.shutdown()


@pytest.fixture
def connected(cluster):
    import ray

    yield ray_engine.connect(cluster.address)
    ray.shutdown()


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(free_study.STUDY.format(trials=TRIALS, workers=3))  # more than there are CPUs: one waits
    return path


def records(root):
    found = [json.loads(path.read_text()) for path in root.glob("free/*/trials/*/record.json")]
    return {record["key"]: record for record in found}


def told(found):
    """What must not depend on who computed."""
    return {
        key: (record["state"], record.get("seed"), [rung["metrics"] for rung in record["rungs"]])
        for key, record in found.items()
    }


def at_once(found):
    """The most rungs that were ever computed at the same time."""
    spans = [rung["span"] for record in found.values() for rung in record["rungs"]]
    return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


def engine(tmp_path, make=free_study.FreeRay, **changed):
    defaults = {"workers": None, "worker_cpus": None, "worker_gpus": None, "worker_threads": 1, "worker_memory": None}
    return make(1, SimpleNamespace(**{**defaults, **changed}), tmp_path / ".cache")


class Jobs(free_study.FreeRay):
    """Computes what it is given."""

    def submit(self, tag, function, *arguments):
        ray_engine.RayEngine.submit(self, tag, function, *arguments)


def ended(one):
    until = time.monotonic() + 30
    while not (found := one.finished(1.0)):
        assert time.monotonic() < until
    return found


def test_a_study_comes_out_as_on_one_machine_whatever_dies(cluster, connected, study, tmp_path):
    assert "2 nodes, 2 CPUs, 0 GPUs" in connected

    class Dying(free_study.FreeRay):
        """A node is killed while trials run on all of them, and another joins."""

        def finished(self, timeout_s):
            ended = super().finished(timeout_s)
            if cluster.spare and any(number >= 0 for (number, _), _ in ended):
                cluster.remove_node(cluster.spare.pop(), allow_graceful=False)
                cluster.more()
                cluster.spare.clear()
            lost.extend(tag for tag, future in ended if isinstance(future.exception(), failures.Lost))
            return ended

    lost = []
    free_study.coordinate(study, tmp_path / "ray", make=Dying)
    free_study.coordinate(study, tmp_path / "here", make=free_study.FreeWorkers)
    found = records(tmp_path / "ray")
    assert lost
    assert told(found) == told(records(tmp_path / "here"))
    assert at_once(found) <= 2  # how many overlap below that depends on how soon a loaded machine starts another actor


def test_sigterm_leaves_and_the_same_command_goes_on(database_server, connected, study, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    begun = []

    class Told(free_study.FreeRay):
        def finished(self, timeout_s):
            if self.busy[0][0] >= 0 and not begun:
                begun.append(time.monotonic())
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return super().finished(timeout_s)

    try:
        interruption.install_in_coordinator()
        with pytest.raises(interruption.Terminated):
            free_study.coordinate(study, tmp_path, database_server.url, Told)
        assert time.monotonic() - begun[0] < 10
        assert any(record["state"] == "running" for record in records(tmp_path).values())
        free_study.coordinate(study, tmp_path, database_server.url, free_study.FreeRay)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sum(record["state"] == "complete" for record in records(tmp_path).values()) == TRIALS


def test_jobs_are_told_to_save_and_deaths_are_said(connected, tmp_path):
    one = engine(tmp_path, Jobs)
    assert one.free and one.busy == []
    one.submit((0, 0), die)
    one.submit((1, 0), save_when_told, tmp_path / "saved")
    ((tag, future),) = ended(one)
    assert tag == (0, 0) and isinstance(future.exception(), failures.Lost)
    assert "signal 9" in str(future.exception())
    while not (tmp_path / "saved.begun").exists():
        time.sleep(0.05)
    one.stop()
    assert (tmp_path / "saved").exists()


def test_a_folder_that_a_node_lacks_stops_the_study(connected, tmp_path, monkeypatch):
    (tmp_path / "only here").mkdir()
    monkeypatch.chdir(tmp_path / "only here")
    one = engine(tmp_path, Jobs)
    (tmp_path / "only here").rename(tmp_path / "moved")
    monkeypatch.setattr(ray_engine.Path, "cwd", lambda: tmp_path / "only here")
    one.submit((0, 0), time.time)
    ((_, future),) = ended(one)
    assert isinstance(future.exception(), failures.DiskTrouble) and "only here" in str(future.exception())
    one.stop()


def test_as_many_trials_as_there_is_room_for(connected, tmp_path):
    import ray

    with pytest.raises(InputError, match="no node has room for a trial .1 CPU, 1 GPU"):
        engine(tmp_path, worker_gpus=1)
    for two in ({"worker_cpus": 2}, {"worker_threads": 2}):
        with pytest.raises(InputError, match="2 CPU"):
            engine(tmp_path, **two)
    assert engine(tmp_path, worker_cpus=2, workers=1).free  # the cluster may grow
    half = engine(tmp_path, worker_cpus=0.5)
    assert half._capacity() == 2 * ray.cluster_resources()["CPU"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "nobody answers there"),
        ("127.0.0.1", "expected host:port"),
        ("ray://127.0.0.1:10001", "expected host:port"),
        ("127.0.0.1:99999", "nobody answers there"),
    ],
)
def test_a_wrong_address_is_one_line(address, words):
    with pytest.raises(InputError, match=words) as caught:
        ray_engine.connect(address)
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"install nas\[ray\]"):
        ray_engine.connect(None)


def test_a_trial_takes_one_gpu_at_most(study):
    with pytest.raises(InputError, match="worker_gpus"):
        study_file.load(study, ["worker_gpus=2"])
