"""What every test gets: one thread that sleeps when idle, no window system, no network logging; and a made-up run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest  # noqa: E402
import synthetic_run  # noqa: E402


@pytest.fixture
def run_dir(tmp_path):
    """A finished run of 24 trials in every state, private to the test."""
    return synthetic_run.write(tmp_path / "synthetic" / "2025-03-01")
