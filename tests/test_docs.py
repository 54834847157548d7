"""Every command, study file and program that README.md, docs/ and --help show is run, in a copy of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import converted
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
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.gz")
        )
    for path in (ROOT / "nas" / "assets").rglob("*"):
        if path.suffix in (".safetensors", ".gz"):
            (folder / path.relative_to(ROOT)).symlink_to(path)
    for name in ("README.md", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def done(clone, tmp_path_factory):
    """What became of each block: name -> how long it took and what went wrong."""
    environment = {**os.environ, "PYTHONPATH": f"{clone}{os.pathsep}{clone / 'tests'}", "WANDB_MODE": "offline"}
    driver = clone / "tests" / "docs_driver.py"
    ended = subprocess.run(
        [sys.executable, str(driver), str(clone), str(converted.folder(tmp_path_factory))],
        env=environment, cwd=clone, capture_output=True, text=True,
    )  # fmt: skip
    told = [json.loads(line) for line in (clone / "report.jsonl").read_text().splitlines()]
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {each["block"]: each for each in told}
    assert not found["prepare"]["error"], found["prepare"]["error"]
    return found


@pytest.mark.docs
@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.not_run], ids=lambda block: block.name)
def test_what_a_page_shows_works(block, done):
    assert not done[block.name]["error"], f"{block.code}\n{done[block.name]['error']}"


def test_no_file_is_written_by_two_pages():
    titles = [block.title for block in BLOCKS if block.title]
    assert len(titles) == len(set(titles))


def settings_classes():
    """Every class behind the keys of a study file, and behind those of the files it names."""
    from nas import menu
    from nas.settings.study import Study

    pending = [Study]
    pending += [
        menu.pick(f, name).Settings
        for f in ("datasets", "autoencoders", "objectives", "metrics", "priors")
        for name in menu.names(f)
    ]
    found = {}
    for model in pending:
        found |= {model.__name__: model.model_json_schema(), **model.model_json_schema().get("$defs", {})}
    return found


def test_every_key_of_a_study_file_is_explained():
    """By its own docstring, or by that of the section it holds."""
    schemas = settings_classes()
    assert len(schemas) > 15
    for name, schema in schemas.items():
        for key, value in schema.get("properties", {}).items():
            held = [schemas[v["$ref"].rpartition("/")[2]] for v in [value, *value.get("anyOf", [])] if "$ref" in v]
            assert (name, key) == ("Entry", "name") or any(each.get("description") for each in [value, *held]), (
                name,
                key,
            )


@pytest.mark.docs
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="no mkdocs: make docs installs it")
    pytest.importorskip("mkdocstrings", reason="no mkdocstrings: make docs installs it")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]
    keys = (site / "reference" / "study-file.html").read_text()
    assert all(
        word in keys
        for word in ("images_seen", "width_divisor", "zero_terminal_snr", "skip_corrupt", "ffn_ratio", "mid_blocks")
    )
    assert "nas sweep" in (site / "reference" / "cli.html").read_text()
    assert "macs_without_attention" in (site / "reference" / "results-columns.html").read_text()
    assert "hypervolume_history" in (site / "reference" / "api.html").read_text()
    assert (site / "studies" / "quickstart" / "front.png").exists()
    assert not [path for path in site.rglob("*.html") if "<!-- generated:" in path.read_text()]
    fetched = [
        path
        for path in site.rglob("*.html")
        if re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)', path.read_text())
    ]
    assert not fetched


def test_what_is_not_run_needs_what_no_test_has():
    assert all(any(need in block.not_run for need in docs_pages.MAY_NEED) for block in NOT_RUN), NOT_RUN
    assert len(NOT_RUN) < len(BLOCKS) / 10


def test_no_example_writes_into_a_committed_table():
    """Which may be another device's, and refuse."""
    committed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "studies").rglob("*") if path.is_file()}
    commands = [line for block in BLOCKS if block.language in ("sh", "") for line in block.commands]
    assert any("--csv" in line for line in commands)
    assert not [line for line in commands if committed & set(shlex.split(line, comments=True)[2:]) and "--csv" in line]
