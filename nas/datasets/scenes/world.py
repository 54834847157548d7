"""What there is in the world of scenes: shapes, colours, sizes, backgrounds and relations.

Lengths are shares of the picture's side. A shape of radius r lies in the square of side 2 r around its centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

Shape = Literal["circle", "square", "triangle", "diamond", "cross", "ring"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Size = Literal["small", "large"]
Background = Literal["white", "grey", "brown", "black"]
Relation = Literal["left of", "right of", "above", "below"]

COLOURS: dict[Colour, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (240, 130, 15),
    "yellow": (250, 225, 50),
    "green": (40, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (35, 80, 215),
    "purple": (130, 45, 170),
    "pink": (245, 130, 190),
}
BACKGROUNDS: dict[Background, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "grey": (150, 150, 150),
    "brown": (100, 65, 35),
    "black": (22, 22, 22),
}
TINT = 10  # how far a colour may be from its name's, per channel of 255

Radii = dict[Size, tuple[float, float]]
RADII: Radii = {"small": (0.125, 0.155), "large": (0.195, 0.215)}
RADII_ALONE: Radii = {
    "small": (0.165, 0.2),
    "large": (0.27, 0.33),
}  # where every picture has one object, it has more room
GAP = 0.095  # least distance between the squares around two objects
MARGIN = 0.015  # least distance to the border

DIRECTIONS: dict[Relation, tuple[int, int]] = {  # of the first object seen from the second; y points down
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}


def size_limit(radii: Radii) -> float:
    """The radius between small and large."""
    return (radii["small"][1] + radii["large"][0]) / 2


@dataclass(frozen=True)
class Form:
    """A shape of radius 1: how far a point is outside it, its area, and how far its centroid lies below its centre."""

    distance: Callable[[Floats, Floats], Floats]
    area: float
    centroid: float = 0.0


def _circle(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.hypot(x, y) - 1
    return distance


SQUARE = 0.86  # half its side


def _square(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.maximum(np.abs(x), np.abs(y)) - SQUARE
    return distance


TOP, FOOT, HALF = -1.0, 0.8, 0.98  # of the triangle: height of its tip and of its foot, half the width of its foot
_SLOPE = math.hypot(HALF, FOOT - TOP)


def _triangle(x: Floats, y: Floats) -> Floats:
    side = (np.abs(x) * (FOOT - TOP) - (y - TOP) * HALF) / _SLOPE
    distance: Floats = np.maximum(side, y - FOOT)
    return distance


def _diamond(x: Floats, y: Floats) -> Floats:
    distance: Floats = (np.abs(x) + np.abs(y) - 1) / math.sqrt(2)
    return distance


ARM = 0.34  # half the width of the cross's arms


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    distance: Floats = np.minimum(np.maximum(x - 1, y - ARM), np.maximum(x - ARM, y - 1))
    return distance


HOLE = 0.52  # radius of the ring's hole


def _ring(x: Floats, y: Floats) -> Floats:
    distance: Floats = np.abs(np.hypot(x, y) - (1 + HOLE) / 2) - (1 - HOLE) / 2
    return distance


FORMS: dict[Shape, Form] = {
    "circle": Form(_circle, math.pi),
    "square": Form(_square, 4 * SQUARE**2),
    "triangle": Form(_triangle, HALF * (FOOT - TOP), TOP + 2 / 3 * (FOOT - TOP)),
    "diamond": Form(_diamond, 2.0),
    "cross": Form(_cross, 8 * ARM - 4 * ARM**2),
    "ring": Form(_ring, math.pi * (1 - HOLE**2)),
}


def coverage(shape: Shape, x: Floats, y: Floats, radius: Floats | float) -> Floats:
    """How much of each pixel a shape covers, 0 to 1, by its signed distance; x and y from its centre and radius in pixels."""
    covered: Floats = np.clip(0.5 - FORMS[shape].distance(x / radius, y / radius) * radius, 0, 1)
    return covered


@dataclass(frozen=True)
class Thing:
    """One object as a caption describes it."""

    size: Size
    colour: Colour
    shape: Shape


@dataclass(frozen=True)
class Scene:
    """What a caption says. With a relation there are two objects, the first `relation` the second."""

    background: Background
    things: tuple[Thing, ...]
    relation: Relation | None = None
