"""WebDataset shards as img2dataset writes them: tars of `key.jpg|png|webp` with `key.json` and/or `key.txt`."""

from __future__ import annotations

import glob
import json
import logging
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field
from webdataset.shardlists import expand_urls

from nas.datasets import ByPath, Captioned, Pictures, split_of
from nas.errors import InputError, brief

IMAGES = {"jpg", "jpeg", "png", "webp"}
Sample = dict[str, bytes]  # extension -> content
log = logging.getLogger(__name__)


class Settings(ByPath):
    """A shard, a folder of shards, or a pattern such as data/{00000..00099}.tar or data/*.tar."""

    caption_key: str = "caption"
    """Field of the JSON that holds the caption; a .txt file is read where there is no JSON."""
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
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            self.unreadable(f"{path}: missing or corrupt shard: {brief(error)}")

    def _item(self, path: Path, key: str, sample: Sample) -> Captioned | None:
        image = next((content for extension, content in sample.items() if extension in IMAGES), None)
        caption = caption_of(sample, self.settings.caption_key)
        source = f"{path}: sample {key!r}"
        if image is None or caption is None:
            what = "picture" if image is None else f"readable caption ({self.settings.caption_key!r} in .json, or .txt)"
            self.unreadable(f"{source} has no {what}")
            return None
        return Captioned(key, caption, image, source)

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
    """Every shard a path, folder or pattern stands for, sorted."""
    if path.is_dir():
        found = sorted([*path.glob("*.tar"), *path.glob("*.tar.gz")])
    elif re.search(r"[*?\[]", str(path)):
        found = sorted(map(Path, glob.glob(str(path))))
    else:
        found = [Path(url) for url in expand_urls(str(path))]
    if not found:
        raise InputError(f"dataset.path: no shard matches {path}; expected a .tar, a folder of them or a pattern")
    return found


def samples(path: Path) -> Iterator[tuple[str, Sample]]:
    """(key, files by extension) of consecutive tar members that share a key. Raises OSError or TarError if unreadable."""
    key, sample = "", Sample()
    with tarfile.open(path, "r:*") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            stem, _, extension = Path(member.name).name.partition(".")
            if stem != key and sample:
                yield key, sample
                sample = Sample()
            key = stem
            sample[extension.lower()] = file.read()
        _check_end(tar)
    if sample:
        yield key, sample


def _check_end(tar: tarfile.TarFile) -> None:
    """TarError if what follows the last member is neither the end mark nor the file's end: tarfile stops there silently."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset:,}")


def caption_of(sample: Sample, key: str) -> str | None:
    """The caption in the sample's JSON or text file, None if neither has a readable one."""
    try:
        if "json" in sample:
            record = json.loads(sample["json"])
            value = record.get(key) if isinstance(record, dict) else None
            return str(value).strip() if value is not None else None
        return sample["txt"].decode().strip() if "txt" in sample else None
    except ValueError:  # not JSON, not UTF-8
        return None
