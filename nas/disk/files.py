"""Files this program writes for itself and reads again: replaced at once, and on the disk before anything builds on them."""

from __future__ import annotations

import csv
import glob
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nas.disk import lock
from nas.documents import yaml_text
from nas.documents.document import Document
from nas.errors import InputError, brief

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place in the end, forced to the disk; after an exception it is gone.

    Whoever reads finds the old file or the new one, and processes that write the same file do not disturb each other. What a
    killed one left goes with the next write. Raises OSError.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}"):
        if _abandoned(left.name.removeprefix(path.name)):
            left.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        _force(partial)
        partial.replace(path)
        _force(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Raises OSError."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """A mapping has a line for each key; json.dumps with `indent` is the slow encoder, in Python. Raises OSError."""
    if isinstance(value, Mapping):
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
        return write_text(path, f"{{\n{lines}\n}}")
    write_text(path, json.dumps(value))


def write_yaml(path: Path, value: Any) -> None:
    """Raises OSError."""
    write_text(path, yaml_text.written(value))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All columns of all rows; a cell without a value is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path) -> Any:
    """Raises InputError when the content is not JSON, and OSError."""
    text = path.read_bytes()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {'empty' if not text else brief(error)}, expected JSON") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError when the file holds anything else, and OSError."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping. Raises InputError when the file is not there, cannot be read or holds anything else."""
    return Document.read(path).content


def _abandoned(suffix: str) -> bool:
    """Whether the process of this machine that wrote to such a file is gone."""
    host, _, pid = suffix.removeprefix(".").removesuffix(PARTIAL).rpartition(".")
    return pid.isdigit() and lock.ended(host, int(pid))


def _force(path: Path) -> None:
    """To the disk: a file's content, or what a folder holds."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
