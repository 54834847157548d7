"""What a run directory says of the study that it is of: resolved.yaml, conditions.json, captions.json."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nas.disk import files
from nas.documents.document import Document
from nas.errors import InputError
from nas.runs.records import Time

FORMAT = 1  # of a run directory; resolved.yaml says which, and a reader refuses what is newer than itself
SETTINGS = "resolved.yaml"


class Provenance(BaseModel):
    """What a run directory says of itself. It comes last in the file, so a file that was cut off lacks it."""

    model_config = ConfigDict(extra="allow")

    format: int = 1
    started: Time | None = None


class Goals(BaseModel):
    """What a search or an ablation asks for."""

    model_config = ConfigDict(extra="allow")

    minimise: list[str] | None = None
    maximise: list[str] | None = None
    trials: int = 0
    repeats: int = 0


class Settings(BaseModel):
    """The shape of resolved.yaml where it is read without being a study of this version."""

    model_config = ConfigDict(extra="allow")

    name: str = ""
    search: Goals | None = None
    ablation: Goals | None = None
    racing: Goals | None = None
    budget: dict[str, float] | None = None
    stopping: dict[str, Any] | None = None
    provenance: Provenance | None = None


def resolved(run_dir: Path) -> dict[str, Any]:
    """The settings of a run as they were run.

    InputError for a directory without them, for one of a newer format, and for a file that was cut off or tampered with.
    """
    path = Path(run_dir) / SETTINGS
    if not path.is_file():
        raise InputError(f"{run_dir}: not a run directory, expected the file {SETTINGS} in it")
    settings = files.read_yaml(path)
    written = settings.get("provenance")
    number = written.get("format", 1) if isinstance(written, dict) else 1
    if not isinstance(number, int) or number > FORMAT:
        raise InputError(
            f"{run_dir}: written by a newer nas (format {number}, this one reads up to {FORMAT}): update nas"
        )
    Document(str(path), settings).validate(Settings, settings)
    return settings


def began(run_dir: Path) -> datetime:
    """When a run was begun or last continued, by its own record. InputError when resolved.yaml does not say so."""
    provenance = resolved(run_dir).get("provenance") or {}
    if not provenance.get("started"):
        raise InputError(
            f"{Path(run_dir) / SETTINGS}: cut off, it does not say when the run began; move that run somewhere else"
        )
    return datetime.fromisoformat(provenance["started"])


def latest(folder: Path) -> Path | None:
    """The run in a study's folder that began last, whatever the folders are called; None when there is none."""
    runs = [path.parent for path in Path(folder).glob(f"*/{SETTINGS}")]
    return max(runs, key=lambda run: (began(run), run.name)) if len(runs) > 1 else runs[0] if runs else None


def find(path: Path) -> Path:
    """The run directory at `path`: itself, or the latest run in a study's folder below runs/. InputError if there is none."""
    path = Path(path)
    run = path if (path / SETTINGS).exists() else latest(path)
    if run is None:
        raise InputError(f"{path}: not a run directory (no {SETTINGS} in it or in its subfolders)")
    return run


def conditions(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Each metric column's unit, direction and what it was measured with (extractor, images, ...); {} before any."""
    path = Path(run_dir) / "conditions.json"
    found = files.read_object(path) if path.is_file() else {}
    for column, told in found.items():
        if not isinstance(told, dict):
            raise InputError(f"{path}: {column}: expected the conditions of a score, got {told!r}")
    return found


def captions(run_dir: Path) -> list[str]:
    """The captions every trial draws; [] before they are known."""
    path = Path(run_dir) / "captions.json"
    found = files.read_json(path) if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(caption, str) for caption in found):
        raise InputError(f"{path}: expected a list of captions")
    return found
