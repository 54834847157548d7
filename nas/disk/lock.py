"""One process in a folder at a time."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import TextIO

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
