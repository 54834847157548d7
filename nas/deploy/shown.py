"""Pictures that a person shows to an export: what a drawing starts from, and where it stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from nas.diffusion.editing import Edit
from nas.disk.decoding import UnreadablePicture, decode
from nas.disk.reading import PICTURE, contents
from nas.errors import InputError
from nas.networks.autoencoders import Autoencoder

STRENGTH = 0.6  # of an edit without a mask
AREA, STAYS = "white", "black"  # of a mask


@dataclass(frozen=True)
class Start:
    """Files to start from, as they are asked for."""

    picture: Path
    mask: Path | None = None
    strength: float | None = None
    """As in `Edit`. None: 0.6, or 1 with a mask."""

    @classmethod
    def of(cls, edit: Path | None, mask: Path | None, strength: float | None) -> Start | None:
        """None where no picture is given. Raises InputError where what belongs to one is."""
        if edit is not None:
            return cls(edit, mask, strength)
        for option, given in (("--mask", mask), ("--strength", strength)):
            if given is not None:
                raise InputError(f"{option}: {given}, of no picture; expected --edit too")
        return None


@dataclass(frozen=True)
class Shown:
    """A picture to start from."""

    picture: Tensor  # (1, 3, S, S) in [-1, 1]
    mask: Tensor | None  # (1, 1, S, S), 1 where it is drawn anew
    edit: Edit

    def pasted(self, drawn: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) with this one's pixels where it stays."""
        return drawn if self.mask is None else self.mask * drawn + (1 - self.mask) * self.picture


def shown(autoencoder: Autoencoder, size: int, start: Start) -> Shown:
    """The middle square of each file, of `size` px. A position of the latents is drawn anew if any of its pixels is.

    Raises InputError for what is no picture, and for a mask that says nothing.
    """
    pixels = read(start.picture, size, "--edit")[None]
    where = None if start.mask is None else _mask(start.mask, size)
    strength = start.strength or (STRENGTH if where is None else 1.0)
    coarse = None if where is None else F.max_pool2d(where, autoencoder.factor)
    return Shown(pixels, where, Edit(autoencoder.encode(pixels), strength, coarse))


def _mask(path: Path, size: int) -> Tensor:
    """(1, 1, size, size): 1 where a picture is light, else 0."""
    where = (read(path, size, "--mask").mean(0) > 0).float()[None, None]
    for value, colour in ((1, AREA), (0, STAYS)):
        if (where == value).all():
            raise InputError(
                f"--mask {path}: all of it is {colour}; expected {AREA} where the picture is drawn anew, {STAYS} where it stays"
            )
    return where


def read(path: Path, size: int, option: str) -> Tensor:
    """The middle square of a picture as (3, size, size) in [-1, 1]. Raises InputError, beginning with the option."""
    try:
        return decode(contents(path, PICTURE), size)
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}") from None
    except UnreadablePicture as error:
        raise InputError(f"{option} {path}: not a readable picture: {error}") from None
