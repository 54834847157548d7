"""A supernet of a study's space and pictures in a stated time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from nas.preparation.lessons import TIMED, Length, done
from nas.settings.design import changed
from nas.settings.study import Study
from nas.settings.training import Training
from nas.space.search_space import SearchSpace
from nas.training import loop
from nas.trial import supernet_training
from nas.trial.bench import Bench
from nas.trial.supernet_training import Drawn, Recipe, Sandwich
from nas.weights.parts import Part
from nas.weights.supernet import Supernet

LARGEST_UNTIL = 0.6  # as the shipped supernet of the scenes: the largest member alone, then three members an update
RECIPE = Recipe(images=1, largest_until=LARGEST_UNTIL, sandwich_from=LARGEST_UNTIL, members=3)


def make(part: Part, study: Study, space: SearchSpace, cache: Path, minutes: float, say: Callable[[str], None]) -> None:
    """Train it, or go on, and write it; beside it a grid of what its largest member draws."""
    plain = changed(study, {"training.init": "scratch"})
    length = Length.of(part.path, minutes)
    images = length.times(lambda: image_s(Bench(plain, cache), space))
    say(f"supernet: {images:,} images; the largest member alone until {round(LARGEST_UNTIL * images):,}")
    recipe = replace(RECIPE, images=images, warmup_images=min(supernet_training.WARMUP, images // 10))
    quality = supernet_training.train(plain, space, recipe, part.path, cache, say)
    for split, scores in quality["largest_member"].items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        say(f"supernet: its largest member, untrained further, {split} captions: {shown}")
    done(part.path)


def image_s(bench: Bench, space: SearchSpace) -> float:
    """Seconds of a core of one image, in the mean over the training."""
    members = supernet_training.pool(bench.study, space)
    objective = Sandwich(Supernet.of(space, bench.proxy), [config.scaled(bench.proxy) for config in members])
    alone, several = (_image_s(objective, bench, drawn) for drawn in ("largest", RECIPE.members))
    return LARGEST_UNTIL * alone + (1 - LARGEST_UNTIL) * several


def _image_s(objective: Sandwich, bench: Bench, members: Drawn) -> float:
    objective.members = members
    settings = Training(images_seen=1)
    module = loop.DenoiserTraining(objective, settings)
    ends: list[float] = []
    module.heard = lambda step: ends.append(time.process_time())
    loop.train(module, bench.train_data, supernet_training.SEED, (2 + TIMED) * settings.batch)
    return statistics.median(end - start for start, end in pairwise(ends)) / settings.batch
