"""What a search of schedules has scored, a line each in `scored.jsonl`: the same command goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.disk import files
from nas.errors import InputError

NAME = "scored.jsonl"


@dataclass(frozen=True)
class Scored:
    """One schedule: its rows as `nas.diffusion.caches.cache_schedules` writes them, joined by spaces, and what was found."""

    rows: str
    quality: float
    cost: float
    seconds: float


class Record:
    """The file: its first line says what the search is, and each other line holds a schedule."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        """Raises InputError where the folder holds another search."""
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self._append(identity)
        self.scored = list(self._read(identity))

    def add(self, scored: Scored) -> None:
        """Force a line to the disk."""
        self.scored.append(scored)
        self._append(vars(scored))

    def _append(self, value: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, identity: dict[str, Any]) -> Iterator[Scored]:
        lines = self.path.read_text(encoding="utf-8").split("\n")
        try:
            known = json.loads(lines[0])
            differing = [name for name in identity if known[name] != identity[name]]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.path}: not the record of a search of schedules; remove it to begin again"
            ) from None
        if differing:
            name = differing[0]
            raise InputError(
                f"{self.path}: holds a search with {name} {known[name]!r}, asked for {identity[name]!r}; "
                "expected the same, or another --out"
            )
        whole = lines[1:-1]  # what a killed process was writing has no end
        if lines[-1]:
            files.write_text(self.path, "\n".join(lines[:-1]) + "\n")
        for line in whole:
            yield Scored(**json.loads(line))
