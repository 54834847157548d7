"""A procedural world: coloured shapes on plain backgrounds, with captions that a rule can check.

Every picture is a pure function of (seed, split, index), made when it is asked for. The caption leaves open what varies: the
place of an object, its exact radius, its colour within its name. Compositional worlds of this kind are how Okawa et al. (2023,
arXiv 2310.09336) study what diffusion models learn. `objects`, `relations` and `counts` are a ladder of difficulty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations
from typing import Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from nas.datasets import BATCH, Batch
from nas.datasets.scenes import grammar
from nas.datasets.scenes.drawing import MOST, PALETTE, SHADES, Layout, render, tinted
from nas.datasets.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    GAP,
    MARGIN,
    RADII,
    RADII_ALONE,
    Background,
    Colour,
    Floats,
    Radii,
    Relation,
    Scene,
    Shape,
    Size,
    Thing,
)
from nas.documents.section import Section
from nas.menu import nearest

LICENCE = "Made by nas; whoever draws them owns them."
LEAST_RADIUS = 3.9  # pixels; below, shapes cannot be told apart
UNSEEN_EVERY = 4  # one in so many held-out pictures holds an unseen combination
CELLS = np.array([cells[:MOST] for cells in permutations(range(4))])  # quarters of the picture, in every order
SHAPES: tuple[Shape, ...] = get_args(Shape)
Ints = NDArray[np.int64]


class Settings(Section):
    """Which scenes. The default rung has one object; `objects: [1, 2]` adds relations, `counts: true` groups of one kind."""

    image_size: int = Field(32, le=1024)
    """Pixels along one side."""
    objects: tuple[Literal[1, 2, 3], ...] = Field((1,), min_length=1)
    """Numbers of objects, equally likely."""
    shapes: tuple[Shape, ...] = Field(SHAPES, min_length=1)
    """Shapes that occur."""
    colours: tuple[Colour, ...] = Field(tuple(COLOURS), min_length=1)
    """Colours that occur; the objects of a picture differ in colour, unless they are all of one kind."""
    sizes: tuple[Size, ...] = Field(("small", "large"), min_length=1)
    """Sizes that occur."""
    backgrounds: tuple[Background, ...] = Field(tuple(BACKGROUNDS), min_length=1)
    """Backgrounds that occur."""
    relations: tuple[Relation, ...] = tuple(DIRECTIONS)
    """Relations that captions of two objects say; none: they are listed."""
    counts: bool = False
    """Whether half of the pictures with several objects hold two or three of one kind."""
    unseen: tuple[str, ...] = ("blue triangle", "red ring", "green square", "yellow cross")
    """Combinations of colour and shape that no training picture holds; a quarter of the held-out ones do."""
    pictures: int = Field(20_000, ge=1)
    """Training pictures."""
    held_out_pictures: int = Field(2_048, ge=1)
    """Pictures of the held-out split: other seeds, and unseen combinations."""
    seed: int = Field(0, ge=0)
    """Another seed is another set of the same world."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        radius = min(self.radii[size][0] for size in self.sizes)
        if self.image_size * radius < LEAST_RADIUS:
            objects, least = " and ".join(self.sizes), math.ceil(LEAST_RADIUS / radius)
            raise ValueError(
                f"image_size {self.image_size} is too small for {objects} objects; expected at least {least}"
            )
        for pair in self.unseen:
            self._check_pair(pair)
        left = {colour for colour, _ in self.pairs(unseen=False)}
        if not left:
            raise ValueError("unseen: no combination of colour and shape is left for training")
        if max(self.objects) > len(left):
            raise ValueError(
                f"objects: {max(self.objects)} of them need as many colours, got {', '.join(sorted(left))}"
            )
        return self

    @property
    def radii(self) -> Radii:
        """By size, as shares of the picture's side."""
        return RADII if max(self.objects) > 1 else RADII_ALONE

    def _check_pair(self, pair: str) -> None:
        colour, _, shape = pair.partition(" ")
        for word, known in ((colour, [*map(str, COLOURS)]), (shape, [*map(str, SHAPES)])):
            if word not in known:
                raise ValueError(f"unseen: {pair!r} is not a colour and a shape: {word!r}{nearest(word, known)}")

    def pairs(self, unseen: bool) -> list[tuple[Colour, Shape]]:
        """Combinations of colour and shape that are held out, or all others."""
        every = [(colour, shape) for shape in self.shapes for colour in self.colours]
        return [pair for pair in every if (" ".join(pair) in self.unseen) == unseen]


class Scenes:
    """The pictures of a split, batch by batch."""

    def __init__(self, settings: Settings, split: str):
        self.settings, self.held_out = settings, split == "held_out"
        self.seen, self.unseen = settings.pairs(unseen=False), settings.pairs(unseen=True)

    def __len__(self) -> int:
        return self.settings.held_out_pictures if self.held_out else self.settings.pictures

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self), BATCH):
            yield self.batch(first, min(BATCH, len(self) - first))

    def batch(self, first: int, count: int) -> Batch:
        """`count` pictures from number `first` on; also beyond the split's end."""
        layout, scenes, choices = self.drawn(first, count)
        images = torch.from_numpy(render(layout, self.settings.image_size, SHAPES))
        captions = [grammar.caption(scene, chosen) for scene, chosen in zip(scenes, choices.tolist(), strict=True)]
        return Batch(images, captions, [f"{number:09}" for number in range(first, first + count)])

    def drawn(self, first: int, count: int) -> tuple[Layout, list[Scene], Floats]:
        """What the pictures show, what their captions say, and (count, 2 + MOST) choices among captions."""
        settings, random = self.settings, _Random(2 * self.settings.seed + self.held_out, first, count)
        background = random.below(len(settings.backgrounds))
        many = np.array(settings.objects)[random.below(len(settings.objects))]
        kinds = self._kinds(many, random)
        related = kinds == "relation"
        alike = kinds == "counts"
        there = np.arange(MOST) < many[:, None]
        pair = self._pairs(first, alike, random)
        size = random.below(len(settings.sizes), MOST)
        size[alike] = size[alike, :1]
        radius = self._radius(size, random)
        relation = random.below(max(1, len(settings.relations)))
        centre = _alone(radius, random)
        if max(settings.objects) > 1:
            centre = np.where((many == 1)[:, None, None], centre, _in_cells(radius, random))
        if (
            2 in settings.objects and settings.relations
        ):  # whatever this batch holds: random numbers must not depend on it
            towards = np.array([DIRECTIONS[name] for name in settings.relations])[relation]
            centre = np.where(related[:, None, None], _beside(radius, towards, random), centre)
        every = [*self.seen, *self.unseen]
        shape = np.array([SHAPES.index(shape) for _, shape in every])[pair]
        colour = np.array([list(COLOURS).index(colour) for colour, _ in every])[pair]
        shade = np.array([list(BACKGROUNDS).index(name) for name in settings.backgrounds])[background]
        layout = Layout(
            tinted(SHADES[shade], random(3)),
            np.where(there, shape, -1),
            tinted(PALETTE[colour], random(MOST, 3)),
            radius,
            centre.astype(np.float32),
        )
        scenes = [
            Scene(
                settings.backgrounds[background[row]],
                tuple(Thing(settings.sizes[size[row, i]], *every[pair[row, i]]) for i in range(many[row])),
                settings.relations[relation[row]] if related[row] else None,
            )
            for row in range(count)
        ]
        return layout, scenes, random(2 + MOST)

    def _kinds(self, many: Ints, random: _Random) -> NDArray[np.str_]:
        """How the objects belong together: a relation, several of one kind, or a list."""
        choice = random()
        apart = np.where((many == 2) & bool(self.settings.relations), "relation", "list")
        return np.where((many > 1) & self.settings.counts & (choice < 0.5), "counts", apart)

    def _pairs(self, first: int, alike: NDArray[np.bool_], random: _Random) -> Ints:
        """Colour and shape of each object (count, MOST), as places in the list of seen and then unseen combinations."""
        rank = random.below(len(self.seen), MOST)
        colours = np.array([list(COLOURS).index(colour) for colour, _ in [*self.seen, *self.unseen]])
        if self.held_out and self.unseen:
            unseen = np.arange(first, first + len(rank)) % UNSEEN_EVERY == 0
            rank[unseen, 0] = len(self.seen) + rank[unseen, 0] % len(self.unseen)
        rank[alike] = rank[alike, :1]
        for index in range(1, min(MOST, max(self.settings.objects))):
            for _ in self.seen:
                same = (colours[rank[:, :index]] == colours[rank[:, index, None]]).any(1) & ~alike
                rank[same, index] = (rank[same, index] + 1) % len(self.seen)
        return rank

    def _radius(self, size: Ints, random: _Random) -> Floats:
        bounds = np.array([self.settings.radii[name] for name in self.settings.sizes], np.float32)[size]
        radius: Floats = bounds[..., 0] + (bounds[..., 1] - bounds[..., 0]) * random(MOST)
        return radius


class _Random:
    """Uniform numbers of pictures `first` .. `first + count`, the same whatever batch a picture is made in."""

    DRAWS = 64  # a picture's own numbers; a multiple of the four that Philox makes at once

    def __init__(self, seed: int, first: int, count: int):
        stream = np.random.Philox(key=seed).advance(first * self.DRAWS // 4)
        self.numbers = np.random.Generator(stream).random((count, self.DRAWS)).astype(np.float32)
        np.minimum(self.numbers, np.float32(1 - 2**-24), out=self.numbers)  # rounding must not give 1
        self.used = 0

    def __call__(self, *shape: int) -> Floats:
        """The next numbers of every picture, (count, *shape) in [0, 1)."""
        size = int(np.prod(shape, dtype=int))
        taken = self.numbers[:, self.used : self.used + size]
        self.used += size
        return taken.reshape(len(taken), *shape)

    def below(self, n: int, *shape: int) -> Ints:
        """Whole numbers from 0 to n - 1."""
        return (self(*shape) * n).astype(np.int64)


def _within(low: Floats, high: Floats, share: Floats) -> Floats:
    placed: Floats = low + (high - low) * share
    return placed


def _alone(radius: Floats, random: _Random) -> Floats:
    """Centres anywhere in the picture, for pictures of one object."""
    low = (MARGIN + radius)[..., None]
    return _within(low, 1 - low, random(MOST, 2))


def _in_cells(radius: Floats, random: _Random) -> Floats:
    """Centres in different quarters of the picture, so that objects keep GAP between them."""
    cell = CELLS[random.below(len(CELLS))]  # (count, MOST)
    low, high = (MARGIN + radius)[..., None], (0.5 - GAP / 2 - radius)[..., None]
    offset = _within(low, high, random(MOST, 2))
    far = np.stack([cell % 2, cell // 2], -1) == 1
    return np.where(far, 1 - offset, offset)


def _beside(radius: Floats, towards: Ints, random: _Random) -> Floats:
    """Centres of pictures whose first object lies `towards` (count, 2) the second: clearly along that axis, and less across."""
    along, across = random(2).T, random(2).T
    swapped = (towards.sum(1) > 0)[:, None]  # the second object comes first along the axis
    near, far = np.where(swapped, radius[:, [1, 0]], radius[:, :2]).T
    low = _within(MARGIN + near, 1 - MARGIN - 2 * far - GAP - near, along[0])
    high = _within(low + near + GAP + far, 1 - MARGIN - far, along[1])
    reach = 0.4 * (high - low)
    first = _within(MARGIN + near, 1 - MARGIN - near, across[0])
    second = _within(np.maximum(MARGIN + far, first - reach), np.minimum(1 - MARGIN - far, first + reach), across[1])
    centre = np.stack([np.stack([low, first], -1), np.stack([high, second], -1)], 1)  # (count, 2, along and across)
    centre = np.where(swapped[..., None], centre[:, ::-1], centre)
    centre = np.where((towards[:, 1] != 0)[:, None, None], centre[..., ::-1], centre)
    return np.concatenate([centre, centre[:, :1].repeat(MOST - 2, 1)], 1)


def load(settings: Settings, split: str) -> Scenes:
    """The split ("train" or "held_out")."""
    return Scenes(settings, split)
