"""Every command, study file and program that README.md, docs/ and --help show is run, in a copy of the repository."""

import json
import os
import shutil
import subprocess
import sys

import docs_pages
import pytest

ROOT = docs_pages.ROOT
PAGES = docs_pages.pages()
BLOCKS = [block for page in PAGES for block in docs_pages.blocks(page)] + docs_pages.examples()
NOT_RUN = [block for block in BLOCKS if block.not_run]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository, in which nothing is shared but the shipped weights."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("nas", "search_spaces", "studies", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.gz"))
    for path in (ROOT / "nas" / "assets").rglob("*"):
        if path.suffix in (".safetensors", ".gz"):
            (folder / path.relative_to(ROOT)).symlink_to(path)
    for name in ("README.md", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def done(clone):
    """What became of each block: name -> how long it took and what went wrong."""
    environment = {**os.environ, "PYTHONPATH": f"{clone}{os.pathsep}{clone / 'tests'}", "WANDB_MODE": "offline"}
    driver = clone / "tests" / "docs_driver.py"
    ended = subprocess.run(
        [sys.executable, str(driver), str(clone)], env=environment, cwd=clone, capture_output=True, text=True
    )
    told = [json.loads(line) for line in (clone / "report.jsonl").read_text().splitlines()]
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert told[0]["block"] == "prepare" and not told[0]["error"], told[0]["error"]
    return {each["block"]: each for each in told}


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.not_run], ids=lambda block: block.name)
def test_what_a_page_shows_works(block, done):
    assert not done[block.name]["error"], f"{block.code}\n{done[block.name]['error']}"


def test_what_is_not_run_needs_what_no_test_has():
    assert all(any(need in block.not_run for need in docs_pages.MAY_NEED) for block in NOT_RUN), NOT_RUN
    assert len(NOT_RUN) < len(BLOCKS) / 10
