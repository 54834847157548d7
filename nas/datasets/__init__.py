"""Captioned image sets, one file per format. Each provides `Settings` and `load(settings, split) -> Iterable[Batch]`.

`split` is "train" or "held_out"; the order is fixed, and iterating twice gives the same batches. Whatever cannot be read is an
InputError that names the file. Optional: `LICENCE`, what is known of the licence of its pictures, for model cards.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from nas.disk.decoding import UnreadablePicture, decode
from nas.disk.reading import writable
from nas.documents.section import Section
from nas.errors import InputError, shown

Split = Literal["train", "held_out"]
Item = TypeVar("Item")
BATCH = 64


@dataclass(frozen=True)
class Batch:
    """Pictures with their captions."""

    images: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    captions: list[str]
    keys: list[str]


Given = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]  # `~` is the user's folder


class ByPath(Section):
    """What every image set outside the package has in common."""

    path: Given
    """Where it lies."""
    image_size: int = Field(64, ge=8, le=4096)
    """Pixels along one side; pictures are resized on the shorter side and cropped in the middle."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of the captions (not pictures) kept out of training, chosen by hash."""


@dataclass(frozen=True)
class Captioned:
    """An encoded picture, its caption and its key."""

    key: str
    caption: str
    encoded: bytes
    source: str  # where it lies, for error messages


def refuse(message: str) -> None:
    """What is done about a corrupt picture unless a data set says otherwise."""
    raise InputError(message)


class Pictures:
    """An image set: decodes and batches what `items` yields, in its order; `unreadable` is told of corrupt pictures."""

    def __init__(self, items: "Items", image_size: int, unreadable: Callable[[str], None] = refuse):
        self.items, self.image_size, self.unreadable = items, image_size, unreadable

    def __iter__(self) -> Iterator[Batch]:
        for group in groups(self._decoded(), BATCH):
            images = torch.stack([image for image, _ in group])
            yield Batch(images, [item.caption for _, item in group], [item.key for _, item in group])

    def _decoded(self) -> Iterator[tuple[Tensor, Captioned]]:
        return (pair for pair in map(self.decoded, self.items) if pair is not None)

    def decoded(self, item: Captioned) -> tuple[Tensor, Captioned] | None:
        """An item with its pixels; None, once `unreadable` has been told, if it has none."""
        try:
            return decode(item.encoded, self.image_size), item
        except UnreadablePicture as error:
            self.unreadable(f"{item.source}: not a readable picture: {error}")
            return None


Items = Iterable[Captioned]


def groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size` items, the last one shorter."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def name_under(record: Mapping[str, Any], key: str) -> str:
    """The name of a file in the data set's folder or below, as a record holds it. Raises ValueError for anything else."""
    name = record.get(key)
    if not isinstance(name, str) or any(unicodedata.category(letter) == "Cc" for letter in name):  # control characters
        raise ValueError(f"{key!r}: expected the name of a file, got {shown(name)}")
    path = PurePath(writable(name))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{key!r}: expected a name inside the data set's folder, got {shown(name)}")
    return name


def caption_under(record: Mapping[str, Any], key: str) -> str:
    """The caption that a record from a file holds: text, or the first of a list of texts. Raises ValueError for anything else."""
    if key not in record:
        raise ValueError(f"no {key!r}; there is: {', '.join(map(shown, record))}")
    value = record[key]
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r}: expected text or a list of texts, got {shown(value)}")
    return text_of(texts[0])


def text_of(caption: str) -> str:
    """A caption without the space around it. Raises ValueError if it holds NUL or a lone surrogate."""
    return writable(caption).strip()


def split_of(caption: str, held_out: float) -> Split:
    """Which split a caption belongs to: the same for every picture it describes, on every machine."""
    position = int.from_bytes(sha256(caption.encode()).digest()[:8], "big") / 2**64
    return "held_out" if position < held_out else "train"
