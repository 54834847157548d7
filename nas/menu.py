"""A folder is a menu: the name in the YAML is the name of the file (or package) in it."""

import difflib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from nas.errors import InputError, shown

FOLDERS = {  # of the menus that do not lie directly in nas/
    "backbones": "networks/backbones",
    "decoders": "networks/decoders",
    "autoencoders": "networks/autoencoders",
    "exporters": "deploy/exporters",
}
LONGEST = 100  # characters of a word that are compared with the valid ones


def names(menu: str) -> list[str]:
    """What the menu offers, sorted: one name per file or package in its folder."""
    folder = Path(__file__).parent / FOLDERS.get(menu, menu)
    return sorted(entry.name for entry in pkgutil.iter_modules([str(folder)]))


def pick(menu: str, name: str) -> ModuleType:
    """The module behind a name; an unknown name is an InputError that lists what exists."""
    offered = names(menu)
    if name not in offered:
        raise InputError(f"{menu}: unknown name {shown(name)}{nearest(name, offered)}")
    return importlib.import_module(f"nas.{FOLDERS.get(menu, menu).replace('/', '.')}.{name}")


def nearest(word: str, valid: list[str]) -> str:
    """The end of an error line: the closest valid word if one is close, and all of them."""
    close = difflib.get_close_matches(word[:LONGEST], valid, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} expected one of: {', '.join(valid)}"
