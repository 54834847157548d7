"""The map of the code is true: every module is on it, in the order that import-linter proves. So are the README's commands."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import typer

from nas import menu
from nas.cli import app

ROOT = Path(__file__).parents[1]


def page():
    return (ROOT / "docs" / "how-it-is-built.md").read_text()


def layers():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    return [name.removeprefix("nas.") for layer in contract["layers"] for name in layer.split(" | ")]


def test_the_map_names_every_file_where_it_is():
    rows = dict(re.findall(r"^\| `([a-z_]+)/` \| (.*) \|$", page(), re.M))
    for package, told in rows.items():
        if "a menu" in told or package == "assets":
            continue
        inside = (ROOT / "nas" / package).iterdir()
        names = {path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
        named = set(re.findall(r"`([a-z_0-9]+)/?`", told))
        assert named - {"pages"} == names, package
    assert set(rows) == {path.parent.name for path in (ROOT / "nas").glob("*/__init__.py")} - {"commands"}


def test_a_package_can_be_seen_at_a_glance():
    """A menu has as many files as dishes; elsewhere at most twelve lie side by side."""
    menus = {*re.findall(r"^\| `([a-z_]+)/` \| a menu", page(), re.M), *menu.FOLDERS.values()}
    for package in (path.parent for path in (ROOT / "nas").rglob("__init__.py")):
        inside = package.relative_to(ROOT / "nas").as_posix()
        assert inside in menus or len(list(package.glob("*.py"))) <= 12, inside


def test_the_map_has_the_order_that_is_proved():
    column = re.findall(r"^\| (`[^|]*) \|", page(), re.M)
    order = [name for row in column for name in re.findall(r"`([a-z_]+)/?`", row)]
    assert order == [name for name in layers()]
    alone = {path.stem for path in (ROOT / "nas").glob("*.py")} - {"__init__"}
    assert alone | {path.parent.name for path in (ROOT / "nas").glob("*/__init__.py")} == set(layers())


def test_the_commands_it_shows_exist():
    text = (ROOT / "README.md").read_text()
    verbs = set(re.findall(r"^    nas ([a-z-]+)", text, re.M))
    assert verbs and verbs <= set(typer.main.get_command(app).commands)


def test_what_is_on_paper_needs_no_torch():
    """Sections, spaces and costs are read in a fraction of the time that torch takes to load."""
    code = (
        "import sys, nas.settings.study_file, nas.settings.design_check, nas.settings.plausible, nas.space.screen\n"
        "from nas.networks import backbones\n"
        "assert all(config.cost(64, 77).params for config in backbones.presets().values())\n"
        "assert not {'torch', 'optuna', 'diffusers', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
