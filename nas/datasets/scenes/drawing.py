"""Scenes as arrays: drawn from random numbers, and rendered. One row is one picture; a row has up to MOST objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.datasets.scenes.world import BACKGROUNDS, COLOURS, TINT, Floats, Shape, coverage

MOST = 3
SHADES = np.array([*BACKGROUNDS.values()], np.float32)
PALETTE = np.array([*COLOURS.values()], np.float32)


@dataclass(frozen=True)
class Layout:
    """What is to be seen in B pictures: backgrounds (B, 3) and up to MOST objects each, in shares of the side and 0 to 255."""

    background: Floats  # (B, 3)
    shape: NDArray[np.int64]  # (B, MOST), -1 where there is no object
    colour: Floats  # (B, MOST, 3)
    radius: Floats  # (B, MOST)
    centre: Floats  # (B, MOST, 2), x and y


def tinted(colours: Floats, tint: Floats) -> Floats:
    """Colours, each channel moved by up to TINT; `tint` in [0, 1)."""
    moved: Floats = np.clip(colours + (2 * tint - 1) * TINT, 0, 255)
    return moved


def render(layout: Layout, size: int, shapes: tuple[Shape, ...]) -> Floats:
    """Pictures (B, 3, size, size) in [-1, 1]; `layout.shape` counts in `shapes`."""
    rows = len(layout.background)
    pictures = np.repeat(layout.background[:, :, None], size * size, axis=2)
    pixels = (np.arange(size, dtype=np.float32) + 0.5)[None]
    for index in range(layout.shape.shape[1]):
        for number, shape in enumerate(shapes):
            at = np.flatnonzero(layout.shape[:, index] == number)
            if not len(at):
                continue
            x, y = (pixels - layout.centre[at, index, axis, None] * size for axis in (0, 1))
            covered = coverage(shape, x[:, None, :], y[:, :, None], layout.radius[at, index, None, None] * size)
            ink = layout.colour[at, index, :, None] - layout.background[at, :, None]
            pictures[at] += covered.reshape(len(at), 1, -1) * ink
    scaled: Any = pictures.reshape(rows, 3, size, size) / 127.5 - 1
    return np.asarray(scaled, np.float32)
