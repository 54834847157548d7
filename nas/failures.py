"""How a job can end badly, and what of it is the trial's fault: only that is recorded as its failure."""

from __future__ import annotations

import errno

from nas.errors import InputError, brief
from nas.interruption import Interrupted

DISK = {
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "read-only file system",
}
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class Failed(Exception):
    """A job that failed by its own fault; the text is the reason for the record."""


class Diverged(Exception):
    """The loss, a score or what is drawn stopped being finite numbers."""


class DiskTrouble(Exception):
    """Nothing can be written; the study stops, and the same command goes on when there is room."""


class Lost(Exception):
    """The worker that computed a job is gone, or no longer heard of. The text says what is known."""


def sorted_out(error: BaseException) -> Exception:
    """What a job's exception means to the coordinator: Failed, DiskTrouble, Interrupted, or an InputError as it is.

    All of them survive pickling, which cannot be said of what libraries raise.
    """
    if isinstance(error, InputError | Interrupted | Failed | DiskTrouble | Lost):
        return error
    if (trouble := disk_trouble(error)) is not None:
        return DiskTrouble(trouble)
    return Failed(reason(error))


def reason(error: BaseException) -> str:
    """Why a trial failed, on one line."""
    if is_out_of_memory(error):
        return f"out of memory: {brief(error)}"
    return brief(error) if isinstance(error, Diverged) else f"{type(error).__name__}: {brief(error)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine, the bound or the GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in MEMORY)


def disk_trouble(error: BaseException) -> str | None:
    """What is wrong with the disk, with the file where it is known; None if that is not the matter."""
    if isinstance(error, DiskTrouble):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename}: {DISK[error.errno]}" if error.filename else DISK[error.errno]
    text = str(error).lower()  # safetensors says "I/O error: No space left on device (os error 28)"
    return next((said for code, said in DISK.items() if said in text or f"os error {code})" in text), None)
