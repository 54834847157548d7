"""The README's map is true: every file it names exists, and every module of the package is on it."""

import re
from pathlib import Path

import typer

from nas.cli import app

ROOT = Path(__file__).parents[1]


def test_the_map_names_what_is_on_disk():
    text = (ROOT / "README.md").read_text()
    block = text[text.index("## Map of the code") : text.index("## Where a change goes")]
    named = set(re.findall(r"\b([a-z_0-9]+\.(?:py|html))\b", block))
    on_disk = {path.name for pattern in ("*.py", "*.html") for path in (ROOT / "nas").glob(pattern)} - {"__init__.py"}
    assert named == on_disk
    folders = {path.name for path in (ROOT / "nas").iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(re.findall(r"\b([a-z]+)/", block))


def test_the_commands_it_shows_exist():
    text = (ROOT / "README.md").read_text()
    verbs = set(re.findall(r"^    nas ([a-z-]+)", text, re.M))
    assert verbs and verbs <= set(typer.main.get_command(app).commands)
