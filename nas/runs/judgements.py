"""What people answered who were shown two pictures of one caption, `judgements.csv` in the folder of a run: a row an answer.

Rows are only ever added, each whole or not at all, and several processes may add at once. An answer that is taken back stays,
and a row says that the judge's last one does not count. The file is all there is: who comes back goes on from it.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import BinaryIO

from nas.disk import lock
from nas.errors import InputError, shown

FILE = "judgements.csv"
LEFT, TIE, RIGHT, UNDO = "left", "tie", "right", "undo"
ANSWERS = (LEFT, TIE, RIGHT)
JUDGE = re.compile(r"\w[\w .@-]{0,39}")  # what a judge may be called
TRIAL = re.compile(r"(?:(?P<run>[^:\s]+):)?(?P<number>[0-9]{1,9})")  # a trial of another run is STUDY/TIME:NUMBER

Question = tuple[int, str, str]  # a caption's place, and two trials in the order of their names


@dataclass(frozen=True)
class Judgement:
    """One answer."""

    judge: str
    time: str
    """UTC, ISO 8601."""
    caption: int
    """Its place among the run's captions."""
    left: str
    """The trial whose picture was at the left: a number, of another run with STUDY/TIME: before it."""
    right: str
    answer: str
    """One of ANSWERS, the side that was preferred; UNDO in a row that takes the judge's last answer back."""
    seconds: float
    """From the pictures to the key."""

    @property
    def question(self) -> Question:
        """What was asked, whatever the sides were."""
        first, second = sorted((self.left, self.right))
        return self.caption, first, second

    @property
    def value(self) -> int:
        """1 where the first trial of the question was preferred, -1 for the second, 0 for neither."""
        if self.answer == TIE:
            return 0
        return 1 if (self.answer == LEFT) == (self.left < self.right) else -1


HEAD = tuple(field.name for field in fields(Judgement))


def read(run_dir: Path) -> list[Judgement]:
    """The answers that count, in the order in which they were given; [] where nobody judged. InputError for a damaged file."""
    path = Path(run_dir) / FILE
    try:
        return _standing(path, path.read_bytes())
    except FileNotFoundError:
        return []


def add(run_dir: Path, judgement: Judgement, after: int) -> bool:
    """Add a row, forced to the disk, if exactly `after` answers of the judge count so far; whether it was added.

    Two windows of one judge that show the same question give one answer. InputError where nothing can be written.
    """
    path = Path(run_dir) / FILE
    try:
        with path.open("a+b") as file, lock.waited_for(file):
            file.seek(0)
            content = file.read()
            if count(_standing(path, content), judgement.judge) != after:
                return False
            _append(file, content, judgement)
    except OSError as error:
        raise InputError(f"{path}: the answer was not written: {error.strerror}") from None
    return True


def check_writable(run_dir: Path) -> None:
    """InputError where answers could not be kept."""
    path = Path(run_dir) / FILE
    if not os.access(path if path.exists() else run_dir, os.W_OK):
        raise InputError(f"{path}: answers cannot be written there; judge a copy of the run")


def count(given: Iterable[Judgement], judge: str) -> int:
    """How many answers of a judge count."""
    return sum(one.judge == judge for one in given)


def _append(file: BinaryIO, content: bytes, judgement: Judgement) -> None:
    """One write, after what a killed process left of a row is cut away."""
    file.truncate(_whole(content))
    lines = StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    if not _whole(content):
        writer.writerow(HEAD)
    writer.writerow(astuple(judgement))
    file.write(lines.getvalue().encode())
    file.flush()
    os.fsync(file.fileno())


def _whole(content: bytes) -> int:
    """Bytes up to the end of the last whole row."""
    return content.rfind(b"\n") + 1


def _standing(path: Path, content: bytes) -> list[Judgement]:
    rows = csv.reader(StringIO(content[: _whole(content)].decode(errors="replace")))
    if (head := next(rows, None)) not in (None, list(HEAD)):
        raise InputError(f"{path}: line 1: expected the columns {','.join(HEAD)}, got {shown(','.join(head or ()))}")
    found: list[Judgement] = []
    for line, row in enumerate(rows, 2):
        given = _judgement(row)
        if given is None:
            raise InputError(f"{path}: line {line}: not what nas judge writes, {shown(','.join(row))}; remove the line")
        if given.answer != UNDO:
            found.append(given)
        elif (last := _last(found, given.judge)) is not None:
            del found[last]
    return found


def _last(found: list[Judgement], judge: str) -> int | None:
    """The place of a judge's newest answer."""
    return next((place for place in reversed(range(len(found))) if found[place].judge == judge), None)


def _judgement(row: list[str]) -> Judgement | None:
    """None for a row that nobody could have answered."""
    try:
        judge, time, caption, left, right, answer, seconds = row
        given = Judgement(judge, time, int(caption), left, right, answer, float(seconds))
    except ValueError:
        return None
    named = JUDGE.fullmatch(judge) and TRIAL.fullmatch(left) and TRIAL.fullmatch(right) and left != right
    return given if named and given.caption >= 0 and answer in (*ANSWERS, UNDO) and given.seconds >= 0 else None
