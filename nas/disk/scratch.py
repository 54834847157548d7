"""The temporary files of this process and of those it starts, in one folder that goes with it however it ends.

multiprocessing and W&B make folders among the system's temporary files, and leave them there when they are killed. Here they are
made in a folder that this process holds by a lock. The kernel drops the lock with the process, and the next one that
begins removes the folders that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import BinaryIO

from nas.disk.lock import NAME

PREFIX = "nas-"
LAST = -200  # multiprocessing removes its own folder at -100

_held: tuple[int, Path, BinaryIO] | None = None


def hold() -> Path:
    """This process's folder, made once; from then on the place of its temporary files, and of its children's."""
    global _held
    if _held is None or _held[0] != os.getpid():
        _sweep(Path(tempfile.gettempdir()))
        _held = (os.getpid(), *_made())
        util.Finalize(None, shutil.rmtree, (_held[1],), {"ignore_errors": True}, exitpriority=LAST)
    tempfile.tempdir = os.environ["TMPDIR"] = str(_held[1])
    return _held[1]


def _made() -> tuple[Path, BinaryIO]:
    """A new folder and its lock. Another process may have taken it for one that nobody holds: then the next."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        handle = (folder / NAME).open("wb")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if (folder / NAME).exists():
            return folder, handle
        handle.close()


def _sweep(among: Path) -> None:
    """Remove the folders whose processes are gone. Those of other users cannot be opened."""
    for name in among.glob(f"{PREFIX}*/{NAME}"):
        with suppress(OSError), name.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(name.parent, ignore_errors=True)
