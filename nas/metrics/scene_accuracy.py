"""Scene accuracy: how much of its caption a picture of the world of scenes shows, judged by rule.

A prompt is right where all of its atoms are: background, number of objects, and of every object colour, size and shape, and the
relation of two. This is GenEval's idea (Ghosh et al. 2023, arXiv 2310.11513) in a world where the detector is a rule, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from nas.datasets.scenes import grammar
from nas.datasets.scenes.judge import ATOMS, judged, look
from nas.datasets.scenes.world import RADII, RADII_ALONE, Scene
from nas.documents.section import Section
from nas.errors import InputError
from nas.metrics import Reference

CAPTIONED = True
PROMPT, UNSEEN = "prompt_accuracy", "unseen_prompt_accuracy"


class Settings(Section):
    """The rules have no settings."""


def columns(settings: Settings) -> tuple[str, ...]:
    """`prompt_accuracy`; the same of combinations that no training picture holds; and one column for each atom."""
    return PROMPT, UNSEEN, *map(_column, ATOMS)


def _column(atom: str) -> str:
    return f"{atom}_accuracy"


def check(settings: Settings, captions: Sequence[str]) -> None:
    """Raises InputError when the captions are not those of scenes."""
    try:
        for caption in captions:
            grammar.parse(caption)
    except InputError as error:
        raise InputError(f"name: scene_accuracy judges pictures of dataset scenes only: {error}") from None


def build(settings: Settings, reference: Reference) -> SceneAccuracy:
    """The metric. Raises InputError when the captions are not those of scenes."""
    check(settings, [*reference.captions, *reference.drawn])
    return SceneAccuracy(*([grammar.parse(said) for said in some] for some in (reference.captions, reference.drawn)))


class SceneAccuracy(Metric):
    """Shares of pictures, or of objects, that are as their captions say."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    unit = "share"

    def __init__(self, trained: Sequence[Scene], drawn: Iterable[Scene]):
        """`trained`: all that training captions say; `drawn`: what will be asked for, which decides the columns."""
        super().__init__()
        self.seen = {kind for scene in trained for kind in _kinds(scene)}
        self.radii = RADII if any(len(scene.things) > 1 for scene in trained) else RADII_ALONE
        self.conditions = {"judge": "rules"}
        said = {column for scene in drawn for column in self._said(scene)}
        self.columns = tuple(column for column in columns(Settings()) if column in said)
        self.right: Tensor
        self.asked: Tensor
        self.add_state("right", default=torch.zeros(len(self.columns)), dist_reduce_fx="sum")
        self.add_state("asked", default=torch.zeros(len(self.columns)), dist_reduce_fx="sum")

    def _said(self, scene: Scene) -> list[str]:
        atoms = ATOMS if scene.relation else [atom for atom in ATOMS if atom != "relation"]
        return [self._prompt(scene), *map(_column, atoms)]

    def _prompt(self, scene: Scene) -> str:
        return PROMPT if _kinds(scene) <= self.seen else UNSEEN

    def update(self, images: Tensor, captions: list[str]) -> None:
        for picture, caption in zip(images.float().cpu().numpy(), captions, strict=True):
            scene = grammar.parse(caption)
            atoms = judged(scene, look(picture, self.radii))
            self._count(self._prompt(scene), [all(all(answers) for answers in atoms.values())])
            for atom, answers in atoms.items():
                self._count(_column(atom), answers)

    def _count(self, column: str, answers: Sequence[bool]) -> None:
        if answers and column in self.columns:
            index = self.columns.index(column)
            self.right[index] += sum(answers)
            self.asked[index] += len(answers)

    def compute(self) -> dict[str, Tensor]:
        if not self.asked.any():
            raise ValueError("scene_accuracy: no pictures")
        return dict(zip(self.columns, self.right / self.asked, strict=True))


def _kinds(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene.things}
