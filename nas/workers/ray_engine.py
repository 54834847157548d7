"""Trials on a Ray cluster: `nas run --engine ray`.

Each trial side by side is an actor that holds its share of CPUs and GPUs and leads one worker process of
nas.workers.local, so the
memory bound, the replacement of worn processes and SIGTERM are what they are on one machine. Ray decides where. An actor
that dies, with its node or alone, is a lost worker: its trial goes on elsewhere from its last rung's checkpoint, for which
every node must see the run directory under the same path.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import failures
from nas.errors import InputError, brief
from nas.workers import preload
from nas.workers.local import GRACE_S, Ended, Engine, Tag, Workers

if TYPE_CHECKING:
    from nas.settings.study import Study

LOOK_S = 5.0  # between looks at how large the cluster is
ANSWER_S = 10.0  # for a cluster to accept a connection
CLOSING_S = 0.5  # beyond GRACE_S, for an actor to say that its process has ended


def connect(address: str | None) -> str:
    """Join the cluster at host:port, or else the one this machine belongs to, or else start one here; says which it is.

    Raises InputError when Ray is not installed, or nobody answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray: needs ray; install nas[ray]") from None
    if address not in (None, "auto"):
        _reach(str(address))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: {brief(error)}") from None
    held = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return (
        f"Ray {ray.__version__} at {ray.get_runtime_context().gcs_address}: {nodes} node{'s' * (nodes > 1)}, "
        f"{held.get('CPU', 0):g} CPUs, {held.get('GPU', 0):g} GPUs"
    )


def _reach(address: str) -> None:
    """Ray itself tries a wrong address for a minute, and then ends the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise InputError(f"--address {address}: expected host:port of the cluster's head node, port 6379 as a rule")
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: nobody answers there: {brief(error)}") from None


class RayEngine:
    """An engine: as many actors as the study's `workers` says, or else as the cluster has room for."""

    def __init__(self, count: int, study: Study, cache: Path):
        """Raises InputError when no node has room for a trial, and `workers` does not say that there will be some."""
        import ray

        self._ray, self._study, self._cache = ray, study, cache.resolve()
        gpus = study.worker_gpus
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) >= 1)
        self._needs = {
            "CPU": study.worker_cpus or float(study.worker_threads),
            "GPU": gpus,
            "memory": int(study.worker_memory or 0),
        }
        self._idle: list[Any] = []
        self._busy: dict[Future[Any], tuple[Tag, Any]] = {}
        self._room, self._looked = 0, float("-inf")
        if not (self._study.workers or self._capacity()):
            needs = ", ".join(f"{need:g} {name}" for name, need in self._needs.items() if need)
            raise InputError(
                f"--engine ray: no node has room for a trial ({needs}); set worker_cpus and worker_gpus, or workers where "
                f"the cluster grows on demand"
            )

    @property
    def free(self) -> bool:
        return len(self._busy) < (self._study.workers or self._capacity())

    @property
    def busy(self) -> list[Tag]:
        return [tag for tag, _ in self._busy.values()]

    def _capacity(self) -> int:
        """Trials that all living nodes together have room for."""
        if time.monotonic() - self._looked > LOOK_S:
            living = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._room, self._looked = sum(_fitting(node, self._needs) for node in living), time.monotonic()
        return self._room

    def submit(self, tag: Tag, function: Callable[..., Any], *arguments: Any) -> None:
        actor = self._idle.pop() if self._idle else self._actor()
        self._busy[actor.compute.remote(tag, function, arguments).future()] = (tag, actor)

    def _actor(self) -> Any:
        made = self._ray.remote(num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"], max_concurrency=2)(Seat)
        return made.options(memory=self._needs["memory"] or None).remote(self._process(), Path.cwd())

    def _process(self) -> Callable[[], Engine]:
        """What an actor makes."""
        return partial(_process, self._study, self._cache)

    def finished(self, timeout_s: float) -> Ended:
        while self._idle:  # nothing to do for it now: its place is free for others, ours that wait for one among them
            self._ray.kill(self._idle.pop())
        wait(self._busy, timeout_s, FIRST_COMPLETED)
        return [self._taken(given) for given in list(self._busy) if given.done()]

    def _taken(self, given: Future[Any]) -> tuple[Tag, Future[Any]]:
        tag, actor = self._busy.pop(given)
        future: Future[Any] = Future()
        try:
            value, error = given.result()
        except self._ray.exceptions.RayError as death:
            self._ray.kill(actor)  # it may only be out of reach
            value, error = None, failures.Lost(_cause(death))
        else:
            self._idle.append(actor)
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
        return tag, future

    def stop(self) -> None:
        busy = [actor for _, actor in self._busy.values()]
        stopped = [actor.stop.remote() for actor in busy]
        if stopped:
            self._ray.wait(stopped, num_returns=len(stopped), timeout=GRACE_S + CLOSING_S)
        for actor in [*self._idle, *busy]:
            self._ray.kill(actor)


def _fitting(node: dict[str, float], needs: dict[str, float]) -> int:
    return int(min(node.get(name, 0.0) / need for name, need in needs.items() if need))


def _cause(death: BaseException) -> str:
    """Ray's last line: how it ended. Addresses and ids come before."""
    return brief(RuntimeError(str(death).strip().splitlines()[-1]))


def _process(study: Study, cache: Path) -> Engine:
    """In an actor: an engine of one process, which sees the GPU that Ray gave the actor."""
    preload.start()
    return Workers(1, study, cache, devices=[])


class Seat:
    """The actor: it has two threads, one that computes and one that can be told to stop."""

    def __init__(self, process: Callable[[], Engine], folder: Path):
        """`folder`: the coordinator's, which paths of the study are relative to."""
        self._make, self._folder = process, folder
        self._engine: Engine | None = None

    def compute(self, tag: Tag, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """The job's result and None, or None and its exception."""
        try:
            self._engine = self._engine or self._begin()
            self._engine.submit(tag, function, *arguments)
            while not (ended := self._engine.finished(1.0)):
                pass
            return ended[0][1].result(), None
        except Exception as error:
            return None, failures.sorted_out(error)

    def _begin(self) -> Engine:
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise failures.DiskTrouble(
                f"{platform.node()}: {self._folder}: {error.strerror}; every node of the Ray cluster must share it"
            ) from None
        return self._make()

    def stop(self) -> None:
        """Let the job save its checkpoint, for GRACE_S at most."""
        if self._engine is not None:
            self._engine.stop()
