"""Starts the fork server that worker processes come from. Light, so that its imports overlap with reading the study."""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker

from nas import menu
from nas.disk import scratch

PRELOADED = [
    "nas.trial.rung",
    *(f"nas.networks.backbones.{family}.network" for family in menu.names("backbones")),
    "nas.weights.supernet",
]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # no spinning barriers
    "TOKENIZERS_PARALLELISM": "false",
    # glibc: keep what is freed. It would give large tensors back to the system at once, and each new one would be
    # zeroed page by page, a fifth of a trial's time.
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


def start() -> None:
    """The environment of all processes, a place for their temporary files, and torch imported once for all workers."""
    scratch.hold()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    multiprocessing.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # which would unblock SIGINT below
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT}
    )  # terminals and notebooks send Ctrl-C to all processes
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def started() -> Iterator[None]:
    """As `start`, for a block: afterwards this process, a notebook's for example, has its own environment again."""
    names = (*ENVIRONMENT, "TMPDIR")
    before, place = {name: os.environ.get(name) for name in names}, tempfile.tempdir
    start()
    try:
        yield
    finally:
        tempfile.tempdir = place
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
