"""Captioned image sets, one file per format. Each provides `Settings` and `load(settings, split) -> Iterable[Batch]`.

`split` is "train" or "held_out"; the order is fixed, and iterating twice gives the same batches. Whatever cannot be read is an
InputError that names the file. Optional: `LICENCE`, what is known of the licence of its pictures, for model cards.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nas.errors import InputError

Split = Literal["train", "held_out"]
Item = TypeVar("Item")
BATCH = 64
CORRUPT = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


@dataclass(frozen=True)
class Batch:
    """Pictures with their captions."""

    images: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    captions: list[str]
    keys: list[str]


class ByPath(BaseModel):
    """What every image set outside the package has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: Path
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
        for item in self.items:
            try:
                image = decode(item.encoded, self.image_size)
            except CORRUPT as error:
                self.unreadable(f"{item.source}: not a readable picture: {error}")
            else:
                yield image, item


Items = Iterable[Captioned]


def decode(encoded: bytes, size: int) -> Tensor:
    """An encoded picture as (3, size, size) float32 in [-1, 1]; transparency becomes white. Raises one of CORRUPT."""
    image: Image.Image = Image.open(io.BytesIO(encoded))
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    scale = size / min(image.size)
    if scale != 1:
        wide, high = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


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


def split_of(caption: str, held_out: float) -> Split:
    """Which split a caption belongs to: the same for every picture it describes, on every machine."""
    position = int.from_bytes(sha256(caption.encode()).digest()[:8], "big") / 2**64
    return "held_out" if position < held_out else "train"
