"""One process in a folder at a time, or at a file."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from nas.errors import InputError

NAME = "lock"


def hold(folder: Path, told: str) -> TextIO:
    """Hold a folder until the handle is closed or the process ends, however it ends.

    Raises InputError, the folder and `told`, when another process holds it.
    """
    handle = (folder / NAME).open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise InputError(f"{folder}: {told}") from None
    return handle


@contextmanager
def waited_for(file: IO[Any]) -> Iterator[None]:
    """Hold an open file for a moment; processes that want the same one take turns."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def ended(host: str, pid: int) -> bool:
    """Whether a process is known to have ended: one of this machine. (This process is another one that has its number.)"""
    if host != platform.node():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return pid == os.getpid()
