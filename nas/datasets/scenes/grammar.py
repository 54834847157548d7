"""Captions of scenes, written and read: a scene has several captions, a caption has one scene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

from nas.datasets.scenes.world import BACKGROUNDS, COLOURS, Background, Relation, Scene, Shape, Size, Thing
from nas.errors import InputError
from nas.menu import nearest

SIZES: dict[str, Size] = {"small": "small", "little": "small", "large": "large", "big": "large"}
RELATIONS: dict[str, Relation] = {
    "left of": "left of",
    "to the left of": "left of",
    "right of": "right of",
    "to the right of": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
NUMBERS = ("a", "two", "three")
SENTENCES = ("{things} on a {background} background", "{things} on {background}", "on {background}, {things}")
SHAPES: tuple[Shape, ...] = get_args(Shape)
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}
_SHAPE_OF = {shape: shape for shape in SHAPES} | {plural: shape for shape, plural in PLURALS.items()}
_WORDS_OF_SIZE = {size: [word for word, meant in SIZES.items() if meant == size] for size in get_args(Size)}
_WORDS_OF_RELATION = {
    name: [words for words, meant in RELATIONS.items() if meant == name] for name in get_args(Relation)
}


def words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = [*SENTENCES, *SIZES, *RELATIONS, *NUMBERS, *COLOURS, *BACKGROUNDS, *_SHAPE_OF, "and"]
    return sorted({word for text in texts for word in re.findall("[a-z]+", re.sub(r"\{.*?\}", "", text))})


def caption(scene: Scene, choices: Sequence[float]) -> str:
    """A caption of the scene; `choices` in [0, 1), one for the sentence, one for the relation and one for each object."""
    sentence, relation, *sizes = choices
    things = [_described(thing, choice) for thing, choice in zip(scene.things, sizes, strict=False)]
    if scene.relation is not None:
        said = f"a {things[0]} {_one_of(_WORDS_OF_RELATION[scene.relation], relation)} a {things[1]}"
    elif len(things) > 1 and len(set(scene.things)) == 1:
        described = things[0].removesuffix(scene.things[0].shape) + PLURALS[scene.things[0].shape]
        said = f"{NUMBERS[len(things) - 1]} {described}"
    else:
        said = _listed([f"a {thing}" for thing in things])
    return _one_of(SENTENCES, sentence).format(things=said, background=scene.background)


def _described(thing: Thing, choice: float) -> str:
    return f"{_one_of(_WORDS_OF_SIZE[thing.size], choice)} {thing.colour} {thing.shape}"


def _one_of(options: Sequence[str], choice: float) -> str:
    return options[int(choice * len(options))]


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _any(options: Sequence[str]) -> str:
    return "(" + "|".join(sorted(options, key=len, reverse=True)) + ")"


_THING = f"{_any(NUMBERS)} {_any(list(SIZES))} {_any(list(COLOURS))} {_any(list(_SHAPE_OF))}"
_BETWEEN = re.compile(rf"(?:, | and | {_any(list(RELATIONS))} )(?={_any(NUMBERS)} )")
_PARTS = {"things": "(?P<things>.+)", "background": f"(?P<background>{'|'.join(BACKGROUNDS)})"}
_SENTENCES = [re.compile(sentence.format(**_PARTS)) for sentence in SENTENCES]


def parse(text: str) -> Scene:
    """The scene that a caption says. Raises InputError when it is none of this grammar's."""
    for sentence in _SENTENCES:
        match = sentence.fullmatch(text)
        scene = _scene(match["things"], match["background"]) if match else None
        if scene is not None:
            return scene
    raise InputError(f"caption {text!r} is not one of the scenes'{_unknown(text)}")


def _scene(said: str, background: Background | str) -> Scene | None:
    parts = _BETWEEN.split(said)  # descriptions, and after each but the last the relation (or None) and the next number
    described, relations = parts[::3], [words for words in parts[1::3] if words]
    things: list[Thing] = []
    for text in described:
        match = re.fullmatch(_THING, text)
        if match is None:
            return None
        number, size, colour, shape = match.groups()
        count = NUMBERS.index(number) + 1
        if (count > 1) != (shape not in SHAPES) or (count > 1 and len(described) > 1):
            return None
        things += [Thing(SIZES[size], colour, _SHAPE_OF[shape])] * count  # type: ignore[arg-type]
    if len(things) > 3 or (relations and len(described) != 2):
        return None
    return Scene(background, tuple(things), RELATIONS[relations[0]] if relations else None)  # type: ignore[arg-type]


def _unknown(text: str) -> str:
    known = words()
    unknown = next((word for word in re.findall(r"[^\W\d_]+", text.lower()) if word not in known), None)
    if unknown is None:
        return "; expected for example 'a small red circle on a white background'"
    return f": unknown word {unknown!r}{nearest(unknown, known)}"
