"""Starts the fork server that worker processes come from. Light, so that its imports overlap with reading the study."""

import multiprocessing
import os
from multiprocessing import forkserver

PRELOADED = ["nas.trial", "nas.backbones.unet.network", "nas.supernet"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def start() -> None:
    """One thread a process, no spinning barriers, and torch imported once for all workers."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
