"""What every test gets: one thread that sleeps when idle, no window system, no network logging, the same random numbers
whatever ran before it; and a made-up run."""

import os
import random
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest  # noqa: E402
import synthetic_run  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


_HEAVY = (
    "supernet quantise cost dit export screen backbones deploy_training report ablation chaos ray survival run "
    "supernet_run families joint notebooks study guidance tracking results"
)
HEAVY = _HEAVY.split()  # files of much work, the most first: begun last, one would keep a single worker busy at the end


def pytest_collection_modifyitems(items):
    """The order in which pytest-xdist hands out files, without its own, which is by their number of tests."""
    rank = {f"test_{name}": number for number, name in enumerate(HEAVY)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a seed of its own does not depend on the tests before it, nor what it prints on a width."""
    random.seed(0)
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_runtest_setup():
    """A study is checked with a few of its candidates, not with thousands; a budget that nothing meets shows on these too."""
    if check := sys.modules.get("nas.trial.checks.check"):
        check.PROBES = 50


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    return synthetic_run.write(tmp_path_factory.mktemp("made") / "2025-03-01")


@pytest.fixture
def run_dir(made_run, tmp_path):
    """A finished run of 24 trials in every state, private to the test."""
    return shutil.copytree(made_run, tmp_path / "synthetic" / "2025-03-01", copy_function=shutil.copy)


@pytest.fixture(scope="session")
def made_page(made_run, tmp_path_factory):
    """Where the report of that run lies. Not to be changed, nor the run in its folder."""
    from nas.report import page

    return page.write(shutil.copytree(made_run, tmp_path_factory.mktemp("page") / "synthetic" / "2025-03-01"))


@pytest.fixture(scope="session")
def long_run(tmp_path_factory):
    """A run of 200 trials and its report. Not to be changed."""
    from nas.report import page

    run_dir = synthetic_run.write(tmp_path_factory.mktemp("long") / "study" / "run", trials=200)
    return run_dir, page.write(run_dir)


@pytest.fixture(scope="module")
def database_server():
    """A PostgreSQL server of the test's own, on loopback; skips where none is installed."""
    from postgres_server import Cluster, binaries

    if binaries() is None:
        pytest.skip("no PostgreSQL server here: install Debian's postgresql")
    pytest.importorskip("psycopg", reason="no driver: install nas[postgres]")
    with Cluster() as cluster:
        yield cluster
