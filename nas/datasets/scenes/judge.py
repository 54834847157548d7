"""What is to be seen in a picture of the world of scenes, found by rule: no network, nothing that was trained.

The background is read from the border, objects are connected regions that differ from it, and each is compared with every
shape drawn at its own place and area. Whatever fits no shape, or is of no known colour, is an object of unknown kind. Relations
follow GenEval's rule (Ghosh et al. 2023, arXiv 2310.11513): the offset of two centres, less 0.1 of the summed sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from nas.datasets.scenes.drawing import PALETTE, SHADES
from nas.datasets.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FORMS,
    Background,
    Colour,
    Floats,
    Radii,
    Relation,
    Scene,
    Shape,
    Size,
    Thing,
    coverage,
    size_limit,
)

CONTRAST = 40  # of 255: least distance of an object's colour from the background
NEAR = 60  # of 255: how far a colour may be from the one it is taken for
LEAST_AREA = 0.25  # of the smallest object's: what is smaller is a blemish
PAD = 3  # pixels around an object that its blurred edge may reach
BLURS = (0.0, 0.7, 1.1)  # standard deviations, in pixels, with which shapes are compared
MISFIT = 0.12  # summed squared difference from the best shape, as a share of its area: above, it is no shape
SLACK = 0.1  # of the summed sizes, by which a relation must be clear
ATOMS = ("background", "count", "colour", "size", "shape", "relation")


@dataclass(frozen=True)
class Found:
    """One object of a picture; None where nothing known fits."""

    colour: Colour | None
    shape: Shape | None
    size: Size
    centre: tuple[float, float]  # x and y, in pixels
    extent: tuple[float, float]  # width and height, in pixels


@dataclass(frozen=True)
class Seen:
    """What is in a picture."""

    background: Background | None
    things: tuple[Found, ...]


def look(picture: Floats, radii: Radii) -> Seen:
    """What is in a picture (3, S, S) in [-1, 1] of a world whose objects have these radii."""
    pixels = (np.clip(np.moveaxis(picture, 0, -1), -1, 1) + 1) * 127.5  # (S, S, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    shade = np.median(border, axis=0)
    background = _nearest(shade, SHADES, list(BACKGROUNDS))
    regions, _ = ndimage.label(np.linalg.norm(pixels - shade, axis=-1) > CONTRAST)
    least = LEAST_AREA * min(form.area for form in FORMS.values()) * (radii["small"][0] * len(pixels)) ** 2
    limit = size_limit(radii) * len(pixels)
    found = [
        _found(pixels, shade, limit, regions == number, box)
        for number, box in enumerate(ndimage.find_objects(regions), 1)
        if np.count_nonzero(regions[box] == number) >= least
    ]
    return Seen(background, tuple(found))


def _nearest(colour: Floats, palette: Floats, names: list[Any]) -> Any:
    """The name of the nearest colour of a palette (N, 3), None if none is near."""
    distances = np.linalg.norm(palette - colour, axis=-1)
    nearest = int(distances.argmin())
    return names[nearest] if distances[nearest] <= NEAR else None


def _found(pixels: Floats, shade: Floats, limit: float, region: Any, box: tuple[slice, slice]) -> Found:
    near = tuple(slice(max(0, side.start - PAD), min(len(pixels), side.stop + PAD)) for side in box)
    own = ndimage.binary_dilation(region[near], iterations=PAD)[..., None]
    paint = (pixels[near] - shade) * own  # (h, w, 3): what the object adds to the background
    y, x = (np.arange(side.start, side.stop) + 0.5 for side in near)
    strength = np.linalg.norm(paint, axis=-1)
    ink = np.median(paint[strength >= np.quantile(strength[region[near]], 0.75)], axis=0)
    for _ in range(2):  # a thin shape that is blurred nowhere has its full colour: what fits tells it better
        fit = _fitted(np.clip(paint @ ink / (ink @ ink), 0, 1), x, y)
        ink = np.tensordot(fit.drawn, paint, 2) / np.square(fit.drawn).sum()
    height, width = (side.stop - side.start for side in box)
    return Found(
        _nearest(shade + ink, PALETTE, list(COLOURS)),
        fit.shape if fit.misfit <= MISFIT else None,
        "small" if fit.radius < limit else "large",
        fit.centre,
        (width, height),
    )


@dataclass(frozen=True)
class _Fit:
    """The shape that explains a covered area best."""

    misfit: float  # summed squared difference, as a share of the area
    shape: Shape
    radius: float
    centre: tuple[float, float]
    drawn: Floats


def _fitted(covered: Floats, x: Floats, y: Floats) -> _Fit:
    """Every shape is drawn with the area and the centroid of what is covered (h, w), sharp and blurred."""
    area = float(covered.sum())
    middle_x, middle_y = float(covered.sum(0) @ x) / area, float(covered.sum(1) @ y) / area
    radii = [(area / form.area) ** 0.5 for form in FORMS.values()]
    centres = [(middle_x, middle_y - form.centroid * r) for form, r in zip(FORMS.values(), radii, strict=True)]
    sharp = np.stack(
        [
            coverage(shape, x[None, :] - cx, y[:, None] - cy, r)
            for shape, (cx, cy), r in zip(FORMS, centres, radii, strict=True)
        ]
    )
    drawn = np.concatenate([_blurring(len(y), blur) @ sharp @ _blurring(len(x), blur) for blur in BLURS])
    misfits = np.square(drawn - covered).sum((1, 2)) / area  # (blurs * shapes,)
    best = int(misfits.argmin())
    shape = best % len(FORMS)
    return _Fit(float(misfits[best]), list(FORMS)[shape], radii[shape], centres[shape], drawn[best])


@lru_cache(maxsize=1024)
def _blurring(side: int, blur: float) -> Floats:
    """A Gaussian blur of one axis as a symmetric matrix (side, side), its rows not renormalised at the ends."""
    distance = np.arange(side)[:, None] - np.arange(side)
    kernel = np.exp(-np.square(np.arange(-6, 7)) / 2 / blur**2) if blur else np.array([1.0])
    matrix: Floats = (np.exp(-np.square(distance) / 2 / blur**2) if blur else np.eye(side)) / kernel.sum()
    return matrix


def judged(scene: Scene, seen: Seen) -> dict[str, list[bool]]:
    """Which atoms of a caption are right: for each of ATOMS one answer, or one for each object; none where nothing is said."""
    matched = _matched(scene.things, seen.things)
    pairs = list(zip(scene.things, matched, strict=True))
    right = {
        "background": [seen.background == scene.background],
        "count": [len(seen.things) == len(scene.things)],
        "colour": [found is not None and found.colour == thing.colour for thing, found in pairs],
        "size": [found is not None and found.size == thing.size for thing, found in pairs],
        "shape": [found is not None and found.shape == thing.shape for thing, found in pairs],
        "relation": [],
    }
    if scene.relation is not None:
        first, second = matched
        right["relation"] = [first is not None and second is not None and scene.relation in relations(first, second)]
    return right


def _matched(things: Sequence[Thing], found: Sequence[Found]) -> list[Found | None]:
    """For each thing an object of its own, so that most is right: colours count most, then shapes, then sizes."""
    likeness = np.array([[_likeness(thing, other) for other in found] for thing in things]).reshape(len(things), -1)
    matched: list[Found | None] = [None] * len(things)
    for thing, other in zip(*linear_sum_assignment(likeness, maximize=True), strict=True):
        matched[thing] = found[other]
    return matched


def _likeness(thing: Thing, found: Found) -> int:
    return 4 * (found.colour == thing.colour) + 2 * (found.shape == thing.shape) + (found.size == thing.size)


def relations(first: Found, second: Found) -> set[Relation]:
    """How the first lies to the second: a direction holds where it is most of the offset that is left."""
    offset = np.array(first.centre) - np.array(second.centre)
    slack = SLACK * (np.array(first.extent) + np.array(second.extent))
    clear = np.sign(offset) * np.maximum(np.abs(offset) - slack, 0)
    length = float(np.linalg.norm(clear))
    if length == 0:
        return set()
    return {name for name, towards in DIRECTIONS.items() if float(clear @ np.array(towards)) / length > 0.5}
