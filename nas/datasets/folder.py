"""A folder of images with a `metadata.jsonl`: one {"file_name": ..., "text": ...} a line, as Hugging Face's imagefolder reads."""

from __future__ import annotations

import io
from collections.abc import Iterator

from nas.datasets import ByPath, Captioned, Pictures, caption_under, name_under, split_of
from nas.disk.reading import PICTURE, TEXT, contents, opened, parsed
from nas.errors import InputError, shown


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
                name, caption = self._record(number, line)
                if split_of(caption, self.settings.held_out) == self.split:
                    yield self._item(number, name, caption)

    def _lines(self) -> Iterator[str]:
        """Lines end at line feeds only: a caption may hold what `str.splitlines` takes for a line's end."""
        try:
            with io.TextIOWrapper(opened(self.metadata), encoding="utf-8-sig") as lines:
                while line := lines.readline(TEXT):
                    yield line
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"dataset.path: {self.metadata} cannot be read: {error}") from None

    def _record(self, number: int, line: str) -> tuple[str, str]:
        """File name and caption."""
        try:
            record = parsed(line)
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, got {shown(record)}")
            return name_under(record, "file_name"), caption_under(record, self.settings.caption_key)
        except ValueError as error:
            raise InputError(f"{self.metadata}:{number}: {error}") from None

    def _item(self, number: int, name: str, caption: str) -> Captioned:
        path = self.settings.path / name
        source = f"{self.metadata}:{number}: {path}"
        try:
            return Captioned(name, caption, contents(path, PICTURE), source)
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror}") from None


def load(settings: Settings, split: str) -> Pictures:
    """The split's pictures."""
    return Pictures(Folder(settings, split), settings.image_size)
