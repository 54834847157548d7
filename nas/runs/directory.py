"""`runs/<study>/<time>/`: what a study writes, where, and which earlier run the same command continues."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from nas import machine
from nas.disk import files, lock
from nas.errors import InputError
from nas.failures import DiskTrouble
from nas.runs import description, records
from nas.runs.records import Record
from nas.settings import design
from nas.settings.study import Study
from nas.weights import worlds

Say = Callable[[str], None]

TRY_AGAIN_S = 0.2
# what does not change the meaning of a finished trial
EXTENDABLE = ("workers", "worker_memory", "worker_cpus", "worker_gpus", "tracking", "question")
MORE = {"search": "trials", "ablation": "repeats", "racing": "trials"}  # what may grow when a run is continued
VERSIONED = ("torch", "optuna", "lightning", "torchmetrics", "diffusers", "open_clip_torch", "timm", "transformers")


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDirectory:
    """Paths inside one run, and atomic writes to them."""

    def __init__(self, path: Path):
        self.path = path
        self._made: set[int] = set()  # trials whose folder is there

    @property
    def root(self) -> Path:
        """The folder of all studies' runs."""
        return self.path.parent.parent

    @property
    def cache(self) -> Path:
        """Latents and embeddings, shared by all runs below the same root."""
        return self.root / ".cache"

    def trial(self, number: int) -> Path:
        folder = records.path_of(self.path, number).parent
        if number not in self._made:
            folder.mkdir(parents=True, exist_ok=True)
            self._made.add(number)
        return folder

    def records(self) -> dict[int, Record]:
        """Every trial's record by number. InputError for one that is damaged."""
        return records.read_all(self.path)

    def write_record(self, record: Record) -> None:
        self.trial(record["trial"])
        records.write(self.path, record)

    def write_json(self, name: str, value: Any) -> None:
        self._write(name, files.write_json, value)

    def write_yaml(self, name: str, value: Any) -> None:
        self._write(name, files.write_yaml, value)

    def _write(self, name: str, write: Callable[[Path, Any], None], value: Any) -> None:
        """Whole or not at all: a killed process leaves the old file."""
        try:
            write(self.path / name, value)
        except OSError as error:
            raise DiskTrouble(f"{self.path / name}: {error.strerror}") from None

    def lock(self) -> TextIO:
        """Hold this run until the process ends, however it ends. Raises InputError when another process holds it."""
        return lock.hold(self.path, "another process is running this study; wait for it or start with --new")


def open_run(study: Study, root: Path, new: bool = False, say: Say = lambda text: None) -> tuple[RunDirectory, bool]:
    """The directory to run in, and whether it continues an earlier run.

    The latest run of the study is continued when it is unfinished (also: a record is damaged, or of an ablation a cell has
    failed), or when the study now asks for more trials or repeats; its settings must be the same otherwise. Anything else
    starts a new one; `say` is told which settings differ. InputError when the settings of an earlier run cannot be read, and
    when another process runs the one to continue.
    """
    folder, resolved = root / study.name, study.resolved()
    if (before := to_continue(study, root, new, say)) is not None:
        directory = RunDirectory(before)
        with directory.lock():
            describe(directory, resolved)
        return directory, True
    directory = RunDirectory(folder / _moment(folder).strftime("%Y-%m-%d_%H-%M-%S"))
    try:
        directory.path.mkdir(parents=True)
    except FileExistsError:  # another process began a run in this very second
        time.sleep(TRY_AGAIN_S)
        return open_run(study, root, new, say)
    except OSError as error:
        raise InputError(f"{directory.path}: cannot make the run directory: {error.strerror}") from None
    describe(directory, resolved)
    return directory, False


def to_continue(study: Study, root: Path, new: bool = False, say: Say = lambda text: None) -> Path | None:
    """The earlier run that `open_run` goes on with, None where it begins a new one."""
    before = None if new else description.latest(root / study.name)
    return before if before is not None and _continues(study, before, study.resolved(), say) else None


def go_on(study: Study, directory: RunDirectory) -> bool:
    """Whether a run that is held has something left to do; its settings are then written as they are asked for now.

    InputError where less is asked for than before.
    """
    resolved, before = study.resolved(), _asked(description.resolved(directory.path))
    for section, count in _asked(resolved).items():
        if count < before.get(section, 0):
            raise InputError(
                f"{section}.{MORE[section]}: expected {before[section]} or more, which the run was asked for, got {count}"
            )
    left = _asked(resolved) != before or _unfinished(study, directory.path)
    if left:
        describe(directory, resolved)
    return left


def _continues(study: Study, run: Path, resolved: Mapping[str, Any], say: Say) -> bool:
    """Whether this run is the one that the study asks for, and has something left to do."""
    description.began(run)  # a file that was cut off would pass for one with other settings
    ran = description.resolved(run)
    if other := _differing(ran, resolved):
        say(f"{run} ran with other settings ({', '.join(other)}): a new run begins")
        return False
    before = _asked(ran)
    more = any(count > before.get(section, 0) for section, count in _asked(resolved).items())
    return more or _unfinished(study, run)


def _unfinished(study: Study, run: Path) -> bool:
    """Whether a run has something left to do: trials, a cell that failed, a record that is damaged, its report."""
    found, damaged = records.sorted_out(run)
    running = any(record["state"] == "running" for record in found.values())
    waiting = study.ablation is not None and bool(design.outstanding(study.ablation, found.values()))
    return bool(damaged) or running or waiting or not (run / "report.html").exists()


def _moment(folder: Path) -> datetime:
    """The time in UTC, but after all runs of the study began, also where the clock was put back: the last is continued."""
    moments = [datetime.now(UTC).replace(microsecond=0)]
    for path in folder.glob(f"*/{description.SETTINGS}"):
        with suppress(InputError, OverflowError):
            moments.append(description.began(path.parent) + timedelta(seconds=1))
    return max(moments).astimezone(UTC)


def _differing(ran: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The sections in which two runs differ, which must not for them to be one run."""
    before, now = _identity(ran), _identity(asked)
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def _identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings two runs must share to be one run; what is empty was not there before there was such a key."""
    kept = {key: value for key, value in resolved.items() if key not in (*EXTENDABLE, "provenance")}
    for section, more in MORE.items():
        if kept.get(section):
            kept[section] = {key: value for key, value in kept[section].items() if key != more and value != {}}
    return kept


def _asked(resolved: Mapping[str, Any]) -> dict[str, int]:
    """By section how many trials, repeats of every cell, or repeats after a search."""
    return {section: int(resolved[section][more]) for section, more in MORE.items() if resolved.get(section)}


def describe(directory: RunDirectory, resolved: Mapping[str, Any]) -> None:
    """Write the settings of a run that begins or goes on now. The time comes last, so that a file that was cut off lacks it."""
    began = _moment(directory.path.parent).isoformat(timespec="seconds")
    known = {**provenance(), worlds.RECORDED: worlds.told(resolved), "started": began}
    directory.write_yaml(description.SETTINGS, {**resolved, "provenance": known})


def provenance() -> dict[str, Any]:
    """Format of the run directory; commit, versions and device of this process."""

    return {
        "format": description.FORMAT,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED}},
        "device": machine.computing_device(),
    }


def _commit() -> str:
    """The package's git commit, marked when the working tree differs; empty outside a checkout."""
    folder = Path(__file__).parent
    described = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()
