"""Tar shards as samples: consecutive members whose paths are equal up to the first dot of their names, as in webdataset.

Shards may be anybody's. Members that belong to no sample are passed over unread, sizes are claims, and a compressed shard
may not expand without end.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from nas.disk.reading import PICTURE, TEXT, opened
from nas.errors import brief, shown

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("json", "txt")
GZIP = b"\x1f\x8b"  # what such a file begins with
OTHERS = {b"BZh": "bzip2", b"\xfd7z": "xz", b"(\xb5/": "zstd"}
EXPANSION = 100  # times as large as it is, and SLACK bytes, a gzipped shard may become
SLACK = 2**24
HEADER = 2**20  # bytes, at most, of a member's name and other headers together
META = re.compile(r"__[^/]*__($|/)")  # names of members about the shard
CORRUPT = (OSError, EOFError, tarfile.TarError, zlib.error)  # what reading a shard raises
Result = TypeVar("Result")


class Sample(dict[str, bytes]):
    """Pictures and texts by extension, in lower case. `fault` says why they are not to be used, if so."""

    fault = ""


def samples(path: Path) -> Iterator[tuple[str, Sample]]:
    """(key, files) of each sample of a shard, plain or gzipped. Raises one of CORRUPT where it cannot be read on."""
    key, sample = "", Sample()
    with opened(path) as raw, _plain(raw) as file:
        for member in _members(raw, file):
            stem, extension = split(member.name)
            if not (member.isreg() and extension.rpartition(".")[2] in (*IMAGES, *TEXTS)):
                continue
            if stem != key:
                if key:
                    yield key, sample
                key, sample = stem, Sample()
            if extension in (*IMAGES, *TEXTS):
                _add(sample, extension, member, file)
    if key:
        yield key, sample


def split(name: str) -> tuple[str, str]:
    """A member's key and its extension in lower case; ("", "") if it belongs to no sample.

    `./cat/0.seg.png` is ("cat/0", "seg.png"). What a Mac or a person adds belongs to none: `._0.png`, `.DS_Store`, `README.txt`.
    """
    name = name.removeprefix("./")
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    extension = extension.lower()
    if not stem or not extension or META.match(name) or (stem.upper() == "README" and extension in TEXTS):
        return "", ""
    return folder + slash + stem, extension


def _plain(raw: BinaryIO) -> BinaryIO:
    """The tar itself."""
    start = raw.read(3)
    raw.seek(0)
    if start in OTHERS:
        raise tarfile.ReadError(f"compressed with {OTHERS[start]}; expected a tar, plain or gzipped")
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if start.startswith(GZIP) else raw


def _add(sample: Sample, extension: str, member: tarfile.TarInfo, file: BinaryIO) -> None:
    """Reads a member into its sample, if it is one of its kind and no larger than those are."""
    most = TEXT if extension in TEXTS else PICTURE
    if extension in sample:
        sample.fault = f"a second member {shown(member.name)}"
    elif not 0 <= member.size <= most or member.issparse():
        sample.fault = (
            f"{shown(member.name)} claims {member.size:,} bytes; expected at most {most:,}, all of them there"
        )
    else:
        file.seek(member.offset_data)
        sample[extension] = file.read(member.size)
        if len(sample[extension]) < member.size:
            raise tarfile.ReadError("unexpected end of data")


def _members(raw: BinaryIO, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """What a tar says that it holds, until it says what cannot be."""
    headers = _Headers(file)
    tar = _understood(lambda: tarfile.TarFile(fileobj=headers, encoding="utf-8", errors="backslashreplace"))  # type: ignore[arg-type]
    while (member := _understood(tar.next)) is not None:
        yield member
        most = os.fstat(raw.fileno()).st_size if file is raw else member.offset_data + PICTURE
        if not member.offset < tar.offset <= most:
            raise tarfile.ReadError(
                f"{shown(member.name)} claims bytes {member.offset:,} to {tar.offset:,}; expected at most {most:,}"
            )
        if file is not raw and member.offset > EXPANSION * raw.tell() + SLACK:
            raise tarfile.ReadError(f"expands more than {EXPANSION} times")
        headers.left = HEADER
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen
        tar.pax_headers = {}
    _check_end(tar, file)


class _Headers:
    """A tar of which tarfile may read headers only, and of each member no more than HEADER bytes of them."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._read, self.left = file.seek, file.tell, file.read, HEADER

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"a header that claims {size:,} bytes")
        return self._read(size)


def _understood(step: Callable[[], Result]) -> Result:
    """What a step of tarfile returns; whatever a header leads it to raise becomes one of CORRUPT."""
    try:
        return step()
    except CORRUPT:
        raise
    except Exception as error:
        raise tarfile.ReadError(brief(error)) from error


def _check_end(tar: tarfile.TarFile, file: BinaryIO) -> None:
    """ReadError if what follows the last member is neither the end mark nor the file's end: tarfile stops there silently."""
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset:,}")
