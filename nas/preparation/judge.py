"""A judge of a study's own pictures: the shipped one, trained on with them; and how often any finds held-out captions."""

from __future__ import annotations

import json
from collections.abc import Iterator

from torch import Tensor

from nas.metrics import clip_score
from nas.metrics.caption_accuracy import CaptionAccuracy
from nas.metrics.clip_score import Judge, Settings
from nas.numbers import number_of
from nas.preparation import lessons
from nas.settings.study import Study
from nas.training import judges
from nas.training.judges import Contrast, Lessons
from nas.trial.bench import Bench
from nas.weights import worlds
from nas.weights.parts import Part


def make(part: Part, bench: Bench, minutes: float, say: lessons.Say) -> None:
    """Train it on the training pictures alone, or go on, and write it."""
    seen = Lessons(*lessons.pictures(bench.images("train")))
    made = lessons.trained(
        lambda updates: Contrast(Judge(Settings()), updates), seen, part.path, minutes, part.role, say
    )
    quality = {"images": made.images_seen, "pictures": len(seen.captions), "start": "judge of emoji"}
    about = {
        "made_by": "nas prepare",
        "made_for": worlds.own(bench.study.resolved())[-1],
        "quality": json.dumps(quality),
        "licence": "that of the pictures it was trained on",
    }
    judges.write(made.averaged(), clip_score.SHIPPED, part.path, about)
    lessons.done(part.path)


def asked(study: Study) -> Iterator[Settings]:
    """The judges that a study's metrics ask, each once."""
    settings = [entry.settings("metrics") for entry in study.metrics]
    yield from dict.fromkeys(Settings(**dict(one)) for one in settings if isinstance(one, Settings))


def accuracy(settings: Settings, images: Tensor, captions: list[str]) -> tuple[float, int]:
    """Share of pictures (N, 3, H, W) whose own caption is found among so many others, those of the same pictures."""
    metric = CaptionAccuracy(Judge(settings), captions)
    for start in range(0, len(captions), 64):
        metric.update(images[start : start + 64], captions[start : start + 64])
    return float(metric.compute()["caption_accuracy"]), len(metric.pool)


def told(settings: Settings, images: Tensor, captions: list[str]) -> str:
    """How good it is on real pictures that it never saw."""
    share, others = accuracy(settings, images, captions)
    return (
        f"judge {settings.judge}: finds the caption of {100 * share:.0f} % of {number_of(len(captions), 'held-out picture')} "
        f"among {others} (chance {100 / max(1, others):.0f} %)"
    )
