"""The anchors' measurements on disk: `anchors.csv`, and `anchors.json`, which says of what and under which settings.

A row is one (kind, architecture, seed, length). Settings are those that decide what a trial's scores mean
(`agreement.PROXY_SETTINGS`): rows measured under others are never added to, or taken for these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nas.disk import files
from nas.errors import InputError
from nas.networks import backbones
from nas.networks.backbones import Backbone


@dataclass(frozen=True)
class AnchorTable:
    """The table in a folder."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "anchors.csv"

    @property
    def told(self) -> Path:
        """Settings and architectures."""
        return self.folder / "anchors.json"

    def rows(self) -> pd.DataFrame:
        """The rows measured so far. Raises InputError when there are none."""
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; nas trust makes it when it trains")
        return pd.read_csv(self.path)

    def done(self) -> dict[tuple[str, str, int], int]:
        """Training images by (kind, key, seed), the most of those measured."""
        if not self.path.exists():
            return {}
        rows = pd.read_csv(self.path)[["kind", "key", "seed", "images_seen"]].sort_values("images_seen")
        return {(kind, key, seed): images for kind, key, seed, images in rows.itertuples(index=False, name=None)}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows that are not there yet, replacing the file at once: a killed process leaves the table before or after."""
        before = [pd.read_csv(self.path)] if self.path.exists() else []
        whole = pd.concat([*before, pd.DataFrame(rows)]).drop_duplicates(["kind", "key", "seed", "images_seen"])
        with files.replacing(self.path) as partial:
            whole.to_csv(partial, index=False)

    def architectures(self) -> list[Backbone]:
        """The anchors chosen so far, at deploy scale."""
        return [backbones.from_dict(plain) for plain in self._content().get("architectures", [])]

    def begin(self, settings: Mapping[str, Any], architectures: Sequence[Backbone]) -> None:
        """Say what the rows are of."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"settings": settings, "architectures": [config.to_dict() for config in architectures]}
        files.write_text(self.told, json.dumps(content, indent=1, default=str) + "\n")

    def check(self, settings: Mapping[str, Any], columns: Sequence[str]) -> None:
        """Raises InputError, naming the section, when the rows were measured under other settings or lack a score."""
        if not self.path.exists():
            return
        found = self._content().get("settings", {})
        for name, wanted in json.loads(json.dumps(settings, default=str)).items():
            if found.get(name) != wanted:
                raise InputError(f"{self.path}: {_difference(name, found.get(name), wanted)}; give another --out")
        lacking = [column for column in columns if column not in pd.read_csv(self.path, nrows=0)]
        if lacking:
            raise InputError(f"{self.path}: was measured without {', '.join(lacking)}; give another --out")

    def _content(self) -> dict[str, Any]:
        if not self.told.is_file():
            return {}
        return files.read_object(self.told)


def _difference(name: str, found: Any, wanted: Any) -> str:
    """The first thing in which two settings differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**found, **wanted}:
            if found.get(key) != wanted.get(key):
                return _difference(f"{name}.{key}", found.get(key), wanted.get(key))
    return f"was measured with {name} {json.dumps(found)}, not {json.dumps(wanted)}"
