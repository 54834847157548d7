"""`runs/<study>/<time>/`: what a study writes, where, and which earlier run the same command continues."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from nas import design, lock, worlds, yaml_text
from nas.errors import InputError
from nas.failures import DiskTrouble
from nas.results import FORMAT
from nas.results import resolved as resolved_settings
from nas.settings import Study

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
        folder = self.path / "trials" / f"{number:04d}"
        if number not in self._made:
            folder.mkdir(parents=True, exist_ok=True)
            self._made.add(number)
        return folder

    def records(self) -> dict[int, dict[str, Any]]:
        """Every trial's record by number. One that a power failure left unreadable counts as not written."""
        found = [_read(path) for path in sorted(self.path.glob("trials/*/record.json"))]
        return {record["trial"]: record for record in found if record is not None}

    def write_record(self, record: Mapping[str, Any]) -> None:
        self.trial(record["trial"])
        self.write_json(f"trials/{record['trial']:04d}/record.json", record)

    def write_json(self, name: str, value: Any) -> None:
        """A mapping has a line for each key; json.dumps with `indent` is the slow encoder, in Python."""
        if not isinstance(value, Mapping):
            return self._write(name, json.dumps(value))
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
        self._write(name, f"{{\n{lines}\n}}")

    def write_yaml(self, name: str, value: Any) -> None:
        self._write(name, yaml_text.written(value))

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all: a killed process leaves the old file."""
        path = f"{self.path}/{name}"
        try:
            with open(f"{path}.tmp", "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(f"{path}.tmp", path)
        except OSError as error:
            raise DiskTrouble(f"{path}: {error.strerror}") from None

    def lock(self) -> TextIO:
        """Hold this run until the process ends, however it ends. Raises InputError when another process holds it."""
        return lock.hold(self.path, "another process is running this study; wait for it or start with --new")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return record


def open_run(study: Study, root: Path, new: bool = False) -> tuple[RunDirectory, bool]:
    """The directory to run in, and whether it continues an earlier run.

    The latest run of the study is continued when it is unfinished (an ablation: when a cell has failed), or when the
    study now asks for more trials or repeats; its settings must be the same otherwise. Anything else starts a new one.
    """
    resolved = study.resolved()
    earlier = sorted(path for path in (root / study.name).glob("*") if (path / "resolved.yaml").exists())
    if earlier and not new:
        directory = RunDirectory(earlier[-1])
        before = resolved_settings(directory.path)
        finished = (directory.path / "report.html").exists() and not _outstanding(study, directory)
        more = _asked(resolved) > _asked(before)
        if _identity(before) == _identity(resolved) and (more or not finished):
            _describe(directory, resolved)
            return directory, True
    directory = RunDirectory(root / study.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    try:
        directory.path.mkdir(parents=True, exist_ok=False)
    except OSError as error:
        raise InputError(f"{directory.path}: cannot make the run directory: {error.strerror}") from None
    _describe(directory, resolved)
    return directory, False


def _identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings two runs must share to be one run."""
    kept = {key: value for key, value in resolved.items() if key not in (*EXTENDABLE, "provenance")}
    for section, more in MORE.items():
        if kept.get(section):
            kept[section] = {key: value for key, value in kept[section].items() if key != more}
    return kept


def _asked(resolved: Mapping[str, Any]) -> int:
    """How many trials or repeats of every cell, and how many repeats after a search."""
    return sum(int(resolved[section][more]) for section, more in MORE.items() if resolved.get(section))


def _outstanding(study: Study, directory: RunDirectory) -> bool:
    """Whether an ablation has cells that are not trained to the end."""
    return study.ablation is not None and bool(design.outstanding(study.ablation, directory.records().values()))


def _describe(directory: RunDirectory, resolved: Mapping[str, Any]) -> None:
    known = {**provenance(), worlds.RECORDED: worlds.told(resolved)}
    directory.write_yaml("resolved.yaml", {**resolved, "provenance": known})


def provenance() -> dict[str, Any]:
    """Format of the run directory; commit, versions and device of this process."""
    from nas import latency

    return {
        "format": FORMAT,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED}},
        "device": latency.computing_device(),
        "started": now(),
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
