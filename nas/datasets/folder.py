"""A folder of images with a `metadata.jsonl`: one {"file_name": ..., "text": ...} a line, as Hugging Face's imagefolder reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nas.datasets import ByPath, Captioned, Pictures, split_of
from nas.errors import InputError


class Settings(ByPath):
    """The folder, and the field that holds the caption."""

    caption_key: str = "text"
    """Field of each line that holds the caption."""


class Folder:
    """The split's captioned pictures in the order of `metadata.jsonl`."""

    def __init__(self, settings: Settings, split: str):
        self.settings, self.split = settings, split
        self.metadata = settings.path / "metadata.jsonl"
        if not self.metadata.is_file():
            raise InputError(f"dataset.path: {self.metadata} does not exist; expected one JSON object a line")

    def __iter__(self) -> Iterator[Captioned]:
        for number, line in enumerate(self._lines(), 1):
            if line.strip():
                record = self._record(number, line)
                if split_of(record[self.settings.caption_key], self.settings.held_out) == self.split:
                    yield self._item(number, record)

    def _lines(self) -> Iterator[str]:
        """Lines end at line feeds only: a caption may hold what `str.splitlines` takes for a line's end."""
        try:
            with self.metadata.open(encoding="utf-8") as lines:
                yield from lines
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"dataset.path: {self.metadata} cannot be read: {error}") from None

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{self.metadata}:{number}: not JSON: {error.msg}") from None
        if not isinstance(record, dict):
            raise InputError(f"{self.metadata}:{number}: expected an object, got {line.strip()}")
        for key in ("file_name", self.settings.caption_key):
            if not isinstance(record.get(key), str):
                raise InputError(f"{self.metadata}:{number}: no text under {key!r}; the line has: {', '.join(record)}")
        return record

    def _item(self, number: int, record: dict[str, Any]) -> Captioned:
        path = self.settings.path / record["file_name"]
        source = f"{self.metadata}:{number}: {path}"
        try:
            return Captioned(record["file_name"], record[self.settings.caption_key], path.read_bytes(), source)
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror}") from None


def load(settings: Settings, split: str) -> Pictures:
    """The split's pictures."""
    return Pictures(Folder(settings, split), settings.image_size)
