"""Files that somebody else made: regular ones only, no more of them than expected, JSON and text without surprises."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from nas.errors import shown

PICTURE = 2**28  # bytes, at most, of an encoded picture
TEXT = 2**24  # of a caption's file, or letters of a line
TABLE = 2**30  # of a file with all captions of a set


def opened(path: Path) -> BinaryIO:
    """The file at `path`. Raises OSError if there is none, or if it is a device, a pipe or a folder, which may have no end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return path.open("rb")
    except ValueError:
        raise OSError(errno.EINVAL, "not a name that a file can have") from None


def contents(path: Path, most: int) -> bytes:
    """The whole file at `path`. Raises OSError as `opened` does, and if it holds more than `most` bytes."""
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes")
    return content


def parsed(text: str | bytes) -> Any:
    """What a JSON text says; a byte order mark before it is no matter. Raises ValueError, also for what is nested too deep."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deep") from None


def writable(text: str) -> str:
    """The text itself. Raises ValueError if it holds NUL or a lone surrogate, which files and libraries stumble over."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a lone surrogate in {shown(text)}") from None
    if "\0" in text:
        raise ValueError(f"NUL in {shown(text)}")
    return text
