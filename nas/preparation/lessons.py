"""Trainings of a stated length: how many updates fit into so many minutes of a core, found out once and kept beside the part."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas import interruption
from nas.datasets import Batch
from nas.disk import files
from nas.training import fitting
from nas.training.fitting import Fitting

MOST_BYTES = 2**30  # of pictures held at once; more are not trained on
TIMED = 3  # updates, after one that is slow
Say = Callable[[str], None]


def pictures(batches: Iterable[Batch], most: int | None = None) -> tuple[Tensor, list[str]]:
    """The first `most` pictures (N, 3, H, W), as many as MOST_BYTES hold, with their captions."""
    images: list[Tensor] = []
    captions: list[str] = []
    for batch in batches:
        images.append(batch.images)
        captions += batch.captions
        room = MOST_BYTES // (batch.images[0].numel() * batch.images.element_size())
        if len(captions) >= min(room, most or room):
            break
    return torch.cat(images)[:most], captions[:most]


@dataclass(frozen=True)
class Length:
    """How long a part is trained, kept in a file from its first update to its end, so that a training that goes on keeps it."""

    path: Path
    seconds: float
    """Of a core."""

    @classmethod
    def of(cls, part: Path, minutes: float) -> Length:
        """As the training was begun, or of so many minutes where none was."""
        path = part.with_name(f"{part.name}.length.json")
        begun = files.read_object(path) if path.exists() else {}
        return cls(path, float(begun.get("seconds", 60 * minutes)))

    @property
    def begun(self) -> bool:
        return self.path.exists()

    def times(self, each_s: Callable[[], float]) -> int:
        """How often what takes `each_s` seconds of a core is done."""
        if not self.begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, {"times": max(1, round(self.seconds / each_s())), "seconds": self.seconds})
        found = files.read_object(self.path)["times"]
        return int(found)


def update_s(made: Fitting[Any], lessons: Any) -> float:
    """Seconds of a core of one update. The network is another one afterwards."""
    laps = [time.process_time()]
    for _ in range(1 + TIMED):
        made.update(lessons)
        laps.append(time.process_time())
    return statistics.median(end - start for start, end in zip(laps[1:-1], laps[2:], strict=True))


def trained(
    make: Callable[[int], Fitting[Any]], lessons: Any, part: Path, minutes: float, name: str, say: Say
) -> Fitting[Any]:
    """What `make(updates)` makes, trained for so many minutes of a core, or on from where it was interrupted."""
    made = make(Length.of(part, minutes).times(lambda: update_s(make(1 + TIMED), lessons)))
    with interruption.computing():
        try:
            fitting.train(made, lessons, checkpoint(part), name, say)
        except interruption.Interrupted:
            say(f"{name}: told to end: saved after {made.images_seen:,} images; the same command goes on from there")
            raise
    return made


def checkpoint(part: Path) -> Path:
    """Where the unfinished training of a part lies."""
    return part.with_name(f"{part.name}.checkpoint")


def unfinished(part: Path) -> list[Path]:
    """What is there of a training that was not finished; a supernet's is its own."""
    kept = (checkpoint(part), part.with_suffix(".partial"), Length.of(part, 0).path)
    return [path for path in kept if path.exists()]


def done(part: Path) -> None:
    """Remove what a training kept while it was not finished."""
    for path in unfinished(part):
        path.unlink()
