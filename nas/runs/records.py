"""The record of a trial, `trials/0003/record.json`: what it holds, and the one place that reads and writes it.

A record that is damaged is never used. Whoever only reads is told its file and what is wrong; the study's own command puts it
aside, with its folder, and trains the trial again.
"""

from __future__ import annotations

import json
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from nas.disk import files
from nas.errors import InputError, brief, shown
from nas.failures import DiskTrouble

State = Literal["complete", "stopped", "over_budget", "duplicate", "failed", "running"]
STATES: tuple[State, ...] = get_args(State)
UNTRAINED: tuple[State, ...] = ("over_budget", "duplicate")  # of trials that were not to be trained

NAME = "record.json"
MOST_MISSING = 1_000  # numbers are given in a row; a larger gap was never one of a study


def _time(text: str) -> str:
    try:
        known = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"expected a time with its zone, such as 2026-01-31T12:00:00+00:00, got {shown(text)}")
    return text


Time = Annotated[str, AfterValidator(_time)]
Count = Annotated[int, Field(ge=0)]


@with_config(extra="allow", strict=True)
class Rung(TypedDict):
    """What a trial gave at one length of training; more keys than these may be there."""

    rung: Count
    images_seen: Count
    metrics: dict[str, FiniteFloat]
    """Scores, by column."""
    timings: NotRequired[dict[str, float]]
    """Seconds, by phase."""
    passes: NotRequired[float]
    """Network passes that an image of its training cost, backward ones counted."""
    images_per_s: NotRequired[float | None]
    peak_memory_mib: NotRequired[float | None]


@with_config(extra="allow", strict=True)
class Record(TypedDict):
    """What is known of a trial."""

    trial: Count
    """Its number, which is the name of its folder."""
    key: str
    """The architecture's hash."""
    state: State
    reason: str
    """Why it ended so, or nothing."""
    choices: dict[str, Any]
    """By axis; of an ablation the levels, by factor."""
    architecture: dict[str, Any]
    """The network at deploy scale."""
    cost: dict[str, int | FiniteFloat]
    """At deploy scale, by column."""
    rungs: list[Rung]
    """In the order of training."""
    init: str
    """What training starts from."""
    seed: NotRequired[int]
    repeat: NotRequired[Count]
    duplicate_of: NotRequired[Count | None]
    """The trial whose result it takes."""
    race: NotRequired[bool]
    """It is a repeat after the search."""
    parent: NotRequired[Count]
    """The trial whose weights it starts from (`search.sampler: evolution`)."""
    cell: NotRequired[str]
    settings: NotRequired[dict[str, Any]]
    """Of an ablation's cell, by path."""
    proxy: NotRequired[dict[str, Any]]
    """The network that was trained."""
    proxy_cost: NotRequired[dict[str, int | FiniteFloat]]
    started: NotRequired[Time | None]
    finished: NotRequired[Time | None]


def _whole(record: Record) -> Record:
    state = record["state"]
    if state in ("complete", "stopped") and not record["rungs"]:
        raise ValueError(f"rungs: empty, but the state is {state}")
    if state not in UNTRAINED and "seed" not in record:
        raise ValueError(f"seed: missing, but the state is {state}")
    return record


_RECORD = TypeAdapter(Annotated[Record, AfterValidator(_whole)])


class Damaged(InputError):
    """Something that is no record; says what is wrong with it."""


def checked(found: Any, number: int) -> Record:
    """`found` as the record of this trial. Raises Damaged."""
    try:
        record = _RECORD.validate_python(found)
    except ValidationError as error:
        raise Damaged(_said(error)) from None
    if record["trial"] != number:
        raise Damaged(f"trial: expected {number}, got {record['trial']}")
    return record


def read_all(run_dir: Path) -> dict[int, Record]:
    """Every trial's record by number. A folder without one is a trial that has not reported yet.

    Raises InputError for the first that is damaged, and DiskTrouble for one that cannot be read.
    """
    found, damaged = sorted_out(run_dir)
    for number, error in damaged.items():
        raise InputError(
            f"{path_of(run_dir, number)}: {error}; nas run puts it aside and trains the trial again, or remove it"
        )
    return found


def sorted_out(run_dir: Path) -> tuple[dict[int, Record], dict[int, Damaged]]:
    """Every trial's record, and what is wrong with those that are damaged, by number. Raises DiskTrouble."""
    found: dict[int, Record] = {}
    damaged: dict[int, Damaged] = {}
    highest = -1
    for number in _numbers(run_dir):
        try:
            if number > highest + MOST_MISSING:
                raise Damaged(f"trial: expected a number that follows {highest}, got {number}")
            record = checked(_read(path_of(run_dir, number)), number)
        except FileNotFoundError:  # put aside in the meantime
            continue
        except Damaged as error:
            damaged[number] = error
        else:
            found[number], highest = record, number
    return found, damaged


def read(trial: Path) -> Record:
    """The record in a trial's folder, which is called by its number. Raises InputError for a damaged one, and DiskTrouble."""
    try:
        if not trial.name.isdecimal():
            raise Damaged(f"the folder is called {trial.name}, expected a trial's number")
        return checked(_read(trial / NAME), int(trial.name))
    except Damaged as error:
        raise InputError(f"{trial / NAME}: {error}") from None


def path_of(run_dir: Path, number: int) -> Path:
    """Where a trial's record is."""
    return Path(run_dir) / "trials" / folder(number) / NAME


def folder(number: int) -> str:
    """The name of a trial's folder."""
    return f"{number:04d}"


def write(run_dir: Path, record: Record) -> None:
    """Replace a trial's record; its folder is there. Raises DiskTrouble."""
    path = path_of(run_dir, record["trial"])
    try:
        files.write_json(path, record)
    except OSError as error:
        raise DiskTrouble(f"{path}: {error.strerror}") from None


def put_aside(run_dir: Path, number: int) -> Path:
    """Rename a trial's folder, so that the trial starts from nothing; returns what it is called now. Raises DiskTrouble."""
    path = path_of(run_dir, number).parent
    names = (path.with_name(f"{path.name}.damaged{'' if copy == 1 else f'-{copy}'}") for copy in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        return path.rename(aside)
    except OSError as error:
        raise DiskTrouble(f"{path}: {error.strerror}") from None


def _numbers(run_dir: Path) -> list[int]:
    """The trials that have a record, in order. What has another name is nobody's: a copy somebody made."""
    names = [path.parent.name for path in Path(run_dir).glob(f"trials/*/{NAME}")]
    return sorted(int(name) for name in names if name.isdecimal() and name == folder(int(name)))


def _read(path: Path) -> Any:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DiskTrouble(f"{path}: {error.strerror}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON: {brief(error)}" if text else "empty") from None


def _said(error: ValidationError) -> str:
    """The first thing wrong, in words: where, what was expected, what is there."""
    first = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "missing":
        message = "missing"
    elif first["type"] != "value_error":
        message = f"expected {message}, got {shown(first['input'])}"
    return ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), message])
