"""Which runs W&B has written to the end into a run directory, read from its own files.

W&B keeps each run's messages in `wandb/*run-*/run-ID.wandb`, offline and online, and the last one of a run that was finished
says how it ended. The file is a log in LevelDB's format: 7 bytes of its own, then blocks of 32 KiB with fragments of
messages (checksum 4 bytes, length 2, kind 1); a process that was killed leaves the last block torn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START, BLOCK, HEAD = 7, 32_768, 7
WHOLE, LAST = 1, 4  # kinds of fragments that end a message


@dataclass(frozen=True)
class Written:
    """A run as far as its file holds it."""

    folder: Path
    job: str
    name: str
    identity: str
    """Job type, name and id; empty when not even those were written."""
    ended: bool

    @property
    def offline(self) -> bool:
        return self.folder.name.startswith("offline-")


def runs(run_dir: Path) -> list[Written]:
    """Every run of a run directory, oldest folder first."""
    return [read(path) for path in sorted((run_dir / "wandb").glob("*run-*/*.wandb"))]


def read(path: Path) -> Written:
    """One run's file."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    job = name = identity = ""
    ended = False
    for message in messages(path.read_bytes()):
        try:
            record = Record.FromString(message)
        except DecodeError:  # torn
            break
        if record.HasField("run"):
            job, name, identity = record.run.job_type, record.run.display_name, record.run.run_id
        ended |= record.HasField("exit")
    return Written(path.parent, job, name, identity, ended)


def messages(data: bytes) -> Iterator[bytes]:
    """The messages of a file, as far as they are whole."""
    place, message = START, b""
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:  # the rest of a block is filled up
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        place += HEAD
        if place + length > len(data):
            return
        message += data[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            yield message
            message = b""
