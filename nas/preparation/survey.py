"""What a captioned image set is like: how many pictures, of what sizes and captions, and what is wrong with them."""

from __future__ import annotations

import io
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from nas import menu
from nas.datasets import Captioned
from nas.disk.decoding import UnreadablePicture, decode
from nas.documents.document import Document
from nas.errors import InputError
from nas.numbers import number_of

LONG = 15  # words of a caption that 20 tokens hold, more or less
OTHER_LETTERS = 0.1  # share of captions with letters beyond ASCII from which on it is said
REPEATED = 0.05  # share of pictures that are copies, or of captions said before, from which on it is said


@dataclass
class Survey:
    """What was seen of a set."""

    held_out: int = 0
    """Pictures whose captions are held out of training."""
    sides: list[int] = field(default_factory=list)
    """The shorter side of each readable picture."""
    words: list[int] = field(default_factory=list)
    """Of each caption."""
    unreadable: list[str] = field(default_factory=list)
    """What is wrong with each picture that cannot be decoded."""
    copies: int = 0
    """Pictures whose file is that of an earlier one."""
    captions: Counter[str] = field(default_factory=Counter)
    other_letters: int = 0
    """Captions with letters beyond ASCII."""
    whole: bool = True
    """Whether all of the set was looked at."""

    @property
    def pictures(self) -> int:
        return len(self.sides) + len(self.unreadable)

    def lines(self) -> list[tuple[str, str]]:
        """What was seen, as names and values."""
        seen = f"{self.pictures:,}" if self.whole else f"the first {self.pictures:,} of more"
        return [
            ("pictures", f"{seen}, {self.held_out:,} of them with captions that are held out"),
            ("shorter side, px", _range(self.sides)),
            ("captions", f"{len(self.captions):,} different ones"),
            ("words of a caption", _range(self.words)),
        ]

    def warnings(self) -> list[str]:
        """What is likely to do harm, and what to do about it."""
        said = []
        if self.unreadable:
            said.append(f"{number_of(len(self.unreadable), 'picture')} cannot be read, the first: {self.unreadable[0]}")
        if self.copies > REPEATED * self.pictures:
            said.append(f"{self.copies:,} pictures are copies of others, to the byte")
        if (again := self.captions.total() - len(self.captions)) > REPEATED * self.pictures:
            said.append(f"{again:,} captions were said before; pictures of one caption stay in one split")
        if empty := self.captions[""]:
            said.append(f"{number_of(empty, 'caption')} are empty" if empty > 1 else "1 caption is empty")
        if self.other_letters > OTHER_LETTERS * self.pictures:
            said.append(
                f"{self.other_letters:,} captions have letters beyond English ones: the shipped text encoder knows English; "
                "see conditioning in the page on your own pictures"
            )
        if long := sum(words > LONG for words in self.words):
            said.append(
                f"{long:,} captions have more than {LONG} words; conditioning.length says how many tokens are read"
            )
        return said


def described(path: Path, annotations: Path | None, image_size: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The `dataset` section for what lies at a path, with `key=value` of its own. Raises InputError naming a key that is
    none, and where nothing is known that lies there."""
    document = Document("--set", {**_guess(path, annotations), "image_size": image_size}, {"": "--set: "})
    for given in overrides:
        document.override(given)
    name, options = document.content["name"], {key: value for key, value in document.content.items() if key != "name"}
    document.validate(menu.pick("datasets", name).Settings, options)
    return dict(document.content)


def _guess(path: Path, annotations: Path | None) -> dict[str, Any]:
    if annotations is not None:
        return {"name": "coco", "path": str(path), "annotations": str(annotations)}
    if (path / "metadata.jsonl").is_file():
        return {"name": "folder", "path": str(path)}
    if ".tar" in path.suffixes or ".tar" in path.name or any(path.glob("*.tar*")):
        return {"name": "webdataset", "path": str(path), "skip_corrupt": True}
    what = "is not there" if not path.exists() else "has no metadata.jsonl and no tar shards"
    raise InputError(
        f"{path}: {what}; expected a folder of pictures with metadata.jsonl, tar shards of img2dataset, or COCO's images with "
        "--annotations"
    )


def look(section: dict[str, Any], most: int) -> Survey:
    """Read a set, `most` pictures of it at most, a tenth of them from what is held out. Raises InputError as the data set does,
    and where it has no picture."""
    found, hashes, held_out = Survey(), set[bytes](), max(1, most // 10)
    for split, share in (("held_out", held_out), ("train", max(1, most - held_out))):
        for place, item in enumerate(_items(section, split)):
            if place == share:
                found.whole = False
                break
            _note(found, hashes, item)
            found.held_out += split == "held_out"
    if not found.pictures:
        raise InputError(f"{section['path']}: no captioned picture in it")
    return found


def _items(section: dict[str, Any], split: str) -> Iterator[Captioned]:
    module = menu.pick("datasets", section["name"])
    settings = module.Settings(**{name: value for name, value in section.items() if name != "name"})
    yield from module.load(settings, split).items


def _note(found: Survey, hashes: set[bytes], item: Captioned) -> None:
    from PIL import Image

    try:
        decode(item.encoded, 8)
        found.sides.append(min(Image.open(io.BytesIO(item.encoded)).size))
    except UnreadablePicture as error:
        found.unreadable.append(f"{item.source}: {error}")
    digest = sha256(item.encoded).digest()
    found.copies += digest in hashes
    hashes.add(digest)
    found.words.append(len(item.caption.split()))
    found.captions[item.caption] += 1
    found.other_letters += any(letter.isalpha() and not letter.isascii() for letter in item.caption)


def _range(values: Sequence[int]) -> str:
    if not values:
        return "none"
    return f"{min(values):,} to {max(values):,}, the middle one {statistics.median_low(values):,}"
