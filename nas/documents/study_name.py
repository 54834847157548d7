"""A study's name: one folder below runs/, on every file system, and never a path."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from nas.documents.document import Document
from nas.errors import shown

MOST_BYTES = 100  # file systems allow 255; the name is also part of others
INSIDE = " ._+-"


def checked(name: str) -> str:
    """The name. Raises ValueError when it cannot name one folder everywhere."""
    known = all(character in INSIDE or _kind(character) in "LMN" for character in name)
    if not name or not known or _kind(name[0]) not in "LN" or name[-1] in " ." or len(name.encode()) > MOST_BYTES:
        raise ValueError(
            f"expected the name of a folder: a letter or digit, then letters, digits, spaces and . _ + -, not ending in a space "
            f"or a dot, at most {MOST_BYTES} bytes; got {shown(name)}"
        )
    return name


def fits(name: str) -> bool:
    """Whether `checked` would take the name."""
    try:
        return bool(checked(name))
    except ValueError:
        return False


def of(path: Path) -> str:
    """The name of the study in a file, its folder's unless given. Raises InputError when there is no such file or name."""
    path = path / "study.yaml" if path.is_dir() else path
    document = Document.read(path)
    name = document.content.get("name", path.resolve().parent.name)
    try:
        return checked(str(name))
    except ValueError as error:
        raise document.error(("name",), str(error)) from None


def _kind(character: str) -> str:
    """The first letter of its Unicode category: L for letters of any script, M for their marks, N for digits."""
    return unicodedata.category(character)[0]
