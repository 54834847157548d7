"""WebDataset shards as img2dataset writes them: tars of `key.jpg|png|webp|gif|bmp|tif` with `key.json` and/or `key.txt`."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field
from webdataset.shardlists import expand_urls

from nas.datasets import ByPath, Captioned, Pictures, caption_under, split_of, text_of
from nas.disk.reading import parsed
from nas.disk.shards import CORRUPT, IMAGES, Sample, samples
from nas.errors import InputError, brief, shown

log = logging.getLogger(__name__)


class Settings(ByPath):
    """A shard, a folder of shards, or a pattern such as data/{00000..00099}.tar or {cats,dogs}/*.tar."""

    caption_key: str = "caption"
    """Field of the JSON that holds the caption; a .txt file is read where there is none."""
    skip_corrupt: bool = False
    """Go on after a corrupt or missing shard or picture, and log how many were skipped."""
    limit: int | None = Field(None, ge=1)
    """Read only this many pictures, both splits together."""


class Shards:
    """The captioned pictures of a split, shard by shard. `skipped` counts what could not be read."""

    def __init__(self, settings: Settings, split: str):
        self.settings, self.split, self.skipped = settings, split, 0
        self.paths = shard_paths(settings.path)
        missing = [path for path in self.paths if not path.exists()]
        if missing and not settings.skip_corrupt:
            self.unreadable(f"dataset.path: {missing[0]}: missing shard, {len(missing):,} of {len(self.paths):,}")

    def __iter__(self) -> Iterator[Captioned]:
        self.skipped = seen = 0
        for path in self.paths:
            for key, sample in self._samples(path):
                if self.settings.limit is not None and seen >= self.settings.limit:
                    return
                seen += 1
                item = self._item(path, key, sample)
                if item is not None and split_of(item.caption, self.settings.held_out) == self.split:
                    yield item
        if self.skipped:
            log.warning("%s: skipped %d unreadable shards or samples", self.settings.path, self.skipped)

    def _samples(self, path: Path) -> Iterator[tuple[str, Sample]]:
        try:
            yield from samples(path)
        except CORRUPT as error:
            self.unreadable(f"{path}: missing or corrupt shard: {brief(error)}")

    def _item(self, path: Path, key: str, sample: Sample) -> Captioned | None:
        source = f"{path}: sample {shown(key)}"
        try:
            picture = picture_of(sample)
            return Captioned(key, caption_of(sample, self.settings.caption_key), picture, source)
        except ValueError as error:
            self.unreadable(f"{source}: {error}")
            return None

    def unreadable(self, message: str) -> None:
        """Raises InputError, unless what cannot be read is to be skipped and counted."""
        if not self.settings.skip_corrupt:
            raise InputError(f"{message} (dataset.skip_corrupt: true goes on without it)")
        self.skipped += 1
        log.warning("skipped: %s", message)


def load(settings: Settings, split: str) -> Pictures:
    """The split's pictures. Raises InputError when no shard matches the path."""
    shards = Shards(settings, split)
    return Pictures(shards, settings.image_size, shards.unreadable)


def shard_paths(path: Path) -> list[Path]:
    """Every shard that a path, a folder or a pattern stands for; those of one folder or one `*` are sorted."""
    try:
        patterns = [str(path)] if path.exists() else expand_urls(str(path))
    except (ValueError, AssertionError) as error:  # braces that do not match, ${x} that is not set
        raise InputError(f"dataset.path: {path}: {brief(error)}") from None
    found = [shard for pattern in patterns for shard in _matching(Path(pattern))]
    if not found:
        raise InputError(f"dataset.path: no shard matches {path}; expected a .tar, a folder of them or a pattern")
    return found


def _matching(path: Path) -> Iterable[Path]:
    if path.is_dir():
        found = (*path.glob("*.tar"), *path.glob("*.tar.gz"))
        return sorted(shard for shard in found if not shard.name.startswith("."))  # as a Mac's ._00000.tar
    if path.exists() or not re.search(r"[*?\[]", str(path)):
        return [path]
    return sorted(map(Path, glob.glob(str(path))))


def picture_of(sample: Sample) -> bytes:
    """The first encoded picture of a sample. Raises ValueError if it has none, or is not to be used."""
    if sample.fault:
        raise ValueError(sample.fault)
    for extension, content in sample.items():
        if extension in IMAGES:
            return content
    raise ValueError(f"no picture ({', '.join(IMAGES)}) beside it; the members of a sample follow one another")


def caption_of(sample: Sample, key: str) -> str:
    """The caption in a sample's JSON, or in its text file where the JSON has none. Raises ValueError if neither has one."""
    record = parsed(sample["json"]) if "json" in sample else None
    if isinstance(record, dict) and record.get(key) is not None:
        return caption_under(record, key)
    if "txt" in sample:
        return text_of(sample["txt"].decode("utf-8-sig"))
    raise ValueError(f"no caption ({key!r} in its .json, or a .txt)")
