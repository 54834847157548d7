"""`nas prepare`: what a study needs before its first trial, step by step, each with its cost said before it begins.

A step that is done is not done again; one that is interrupted goes on. What `nas run` makes with its trials, a base model or a
prior, is left to it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nas import interruption, menu
from nas.analysis import naming
from nas.analysis.reference_lines import LABELS
from nas.datasets import ByPath
from nas.disk import lock
from nas.errors import InputError
from nas.networks.backbones import Proxy
from nas.numbers import duration
from nas.preparation import autoencoder, judge, lessons, pace, supernet, survey
from nas.settings import design, study_file
from nas.settings.study import Study
from nas.settings.study_file import Overrides, Source
from nas.space.search_space import SearchSpace
from nas.study import launch
from nas.study.proposer import Reference
from nas.trial import line_scores, rung
from nas.trial.bench import Bench
from nas.trial.checks.check import check
from nas.weights import parts
from nas.weights import supernet as weights
from nas.weights.parts import Part

LOOKED = 5_000  # pictures of the first look, at most
HELD_OUT = 256  # pictures that an autoencoder and a judge are measured on, at most
COSTLY = 0.25  # of the way from other real pictures to an untrained network that copies may be away (assumption)
Found = dict[str, dict[str, Any]]  # lines of reference by name
Show = Callable[[list[str], list[list[str]]], None]


@dataclass(frozen=True)
class Asked:
    """Minutes of a core that parts which are not there are trained for."""

    autoencoder: float = 4.0
    judge: float = 10.0
    supernet: float = 15.0

    def __post_init__(self) -> None:
        for name, minutes in vars(self).items():
            if not minutes > 0:
                raise InputError(f"--{name} {minutes:g}: expected minutes above 0")


@dataclass(frozen=True)
class Step:
    """One thing that is made."""

    name: str
    makes: str
    there: bool
    core_s: float
    """That were asked for, of a core."""
    other_s: float
    """That it takes beside them, as busy as the machine is."""
    do: Callable[[], object]
    begun: bool = False
    """Whether an interrupted training is gone on with."""

    def row(self) -> list[str]:
        """As a person reads it."""
        if self.there:
            return [self.name, self.makes, "there", ""]
        spent = [f"{duration(self.core_s)} of a core"] if self.core_s else []
        beside = f"about {duration(max(1.0, self.other_s))}" + (" beside" if spent else "")
        return [self.name, self.makes, "begun" if self.begun else "missing", " and ".join([*spent, beside])]


class Job:
    """The preparation of one study."""

    def __init__(self, study: Study, asked: Asked, cache: Path, say: lessons.Say, show: Show):
        self.study, self.asked, self.cache, self.say, self.show = study, asked, cache, say, show
        self.space = SearchSpace.load(study.space) if study.space is not None else None

    @cached_property
    def standing_in(self) -> Study:
        """The study as it can be checked and timed now."""
        return parts.stand_in(self.study, parts.absent(self.study))

    @cached_property
    def reference(self) -> Reference:
        return launch.proposer_of(self.standing_in, self.space).reference()

    def check(self) -> None:
        """Raises InputError for what a run would refuse, beside parts that are not there."""
        check(self.standing_in, self.space)
        there = {part.role: part for part in parts.named(self.study) if part.there}
        if self.space is None or "supernet" not in there or self.study.conditioning.image != "none":
            return
        bench = Bench(self.standing_in, self.cache)
        given = (bench.autoencoder.channels, bench.encoder.width, bench.encoder.pooled_width)
        weights.require_covers(there["supernet"].path, self.space, Proxy(self.study.proxy.width_divisor, *given))

    def look(self) -> None:
        """Say what the pictures are like. Raises InputError where some that cannot be read would end the study."""
        settings = self.study.dataset.settings("datasets")
        if not isinstance(settings, ByPath):
            return
        seen = survey.look({"name": self.study.dataset.name, **self.study.dataset.options}, LOOKED)
        for name, value in seen.lines():
            self.say(f"{name:<20}{value}")
        if seen.unreadable and not getattr(settings, "skip_corrupt", False):
            raise InputError(
                f"dataset: {seen.unreadable[0]}; {len(seen.unreadable):,} of {seen.pictures:,} pictures cannot be read; "
                "expected none: leave them out of the set, or of shards dataset.skip_corrupt: true"
            )

    def steps(self) -> list[Step]:
        """All, in the order in which they are done."""
        bench = Bench(self.standing_in, self.cache)
        timed = pace.measure(bench, self.reference.variant.architecture)
        made = {part.path: part for part in parts.absent(self.study)}
        found = [self._part(part, part.path not in made, timed) for part in parts.named(self.study)]
        train, held_out = (_count(self.study, split) for split in ("train", "held_out"))
        references = Step(
            "references",
            "latents, text embeddings, features of real pictures; the scores of the ceiling and the floor",
            self._referred(bool(made)),
            0.0,
            timed.references_s(self.study, train, held_out),
            self._lines,
        )
        place = next((place for place, step in enumerate(found) if step.name == "supernet"), len(found))
        return [*found[:place], references, *found[place:]]

    def _part(self, part: Part, there: bool, timed: pace.Pace) -> Step:
        minutes: float = getattr(self.asked, part.role)
        other = lessons.TIMED * 5.0  # seconds in which it finds out its pace
        other += 2 * timed.drawn_s(self.study) if part.role == "supernet" else HELD_OUT * timed.scored_s(1)
        length = lessons.Length.of(part.path, minutes)
        return Step(part.role, str(part.path), there, length.seconds, other, lambda: self._make(part), length.begun)

    def _make(self, part: Part) -> None:
        minutes: float = getattr(self.asked, part.role)
        begun = lessons.Length.of(part.path, minutes).seconds / 60
        if begun != minutes:
            self.say(
                f"{part.role}: goes on with the {begun:g} minutes of a core it was begun with, not --{part.role} {minutes:g}; "
                f"remove {' and '.join(map(str, lessons.unfinished(part.path)))} to begin anew"
            )
        if part.role == "supernet":
            assert self.space is not None
            return supernet.make(part, self.study, self.space, self.cache, minutes, self.say)
        make = autoencoder.make if part.role == "autoencoder" else judge.make
        make(part, Bench(design.changed(self.study, part.settings), self.cache), minutes, self.say)

    def _referred(self, parts_missing: bool) -> bool:
        """Whether all that is computed of pictures is kept already."""
        if parts_missing:
            return False
        variant = self.reference.variant
        study = design.changed(self.study, variant.settings)
        encoded = (Bench(study, self.cache).encoded_path(split).exists() for split in ("train", "held_out"))
        return all(encoded) and line_scores.known(study, self.cache, variant.architecture.to_dict())

    def _lines(self) -> Found:
        variant = self.reference.variant
        rung.start_worker(self._with_parts(), self.cache)
        with tempfile.TemporaryDirectory() as folder:
            return line_scores.measure(Path(folder), variant.settings, variant.architecture.to_dict(), False)

    def _with_parts(self) -> Study:
        """The study with all that is there by now; the supernet, which no line needs, may not be."""
        return parts.stand_in(self.study, [part for part in parts.absent(self.study) if part.role == "supernet"])

    def findings(self) -> Iterator[str]:
        """What the parts are worth on these pictures, once all of them are there."""
        images, captions = lessons.pictures(Bench(self.study, self.cache).images("held_out"), HELD_OUT)
        for where, bench in self._with_autoencoders():
            yield f"autoencoder{where}: " + autoencoder.told(
                autoencoder.copies_db(bench.autoencoder, images), len(images)
            )
            if (used := autoencoder.codebook(bench.autoencoder, images)) is not None:
                yield f"autoencoder{where}: {used}"
        for settings in judge.asked(self.study):
            yield judge.told(settings, images, captions)
        lines = self._lines()
        self.show(*grid(lines))
        yield from costly(lines, self.better())

    def _with_autoencoders(self) -> Iterator[tuple[str, Bench]]:
        """The study's bench, and those of cells with an autoencoder that was made for them, with which that is."""
        yield "", Bench(self.study, self.cache)
        for part in parts.named(self.study):
            if part.role == "autoencoder" and part.settings:
                yield f" {part.path}", Bench(design.changed(self.study, part.settings), self.cache)

    def better(self) -> dict[str, bool]:
        """Whether more is better, by column of a metric."""
        return {
            column: bool(about["higher_is_better"])
            for column, about in rung.bench().conditions().items()
            if column not in ("denoising_loss", "latency_ms")
        }


def run(
    source: Source, overrides: Overrides, asked: Asked, cache: Path, only_check: bool, say: lessons.Say, show: Show
) -> bool:
    """Prepare a study, or with `only_check` say what is missing and what it costs; whether all of it is there.

    Raises InputError before anything is written for a study that no run would begin with, and Interrupted once what was being
    made is saved.
    """
    interruption.install_in_trainer()
    logging.getLogger("nas.datasets.webdataset").addFilter(Once())
    with study_file.opened(source, overrides) as (study, _):
        job = Job(study, asked, cache, say, show)
        job.check()
        job.look()
        steps = job.steps()
    show(["step", "what", "", "takes"], [step.row() for step in steps])
    missing = [step for step in steps if not step.there]
    if missing:
        core, other = sum(step.core_s for step in missing), sum(step.other_s for step in missing)
        say(
            f"in all {duration(core)} of a core for training, and {duration(other)} beside: about {duration(core + other)} by "
            "the clock where a core is free, and more where others compute"
        )
    if only_check:
        return not missing
    folder = cache / f"prepare-{study.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with lock.hold(folder, "another process prepares this study; wait for it"):
        for place, step in enumerate(missing, 1):
            say(f"step {place} of {len(missing)}: {step.name}")
            step.do()
        for line in job.findings():
            say(line)
    return True


class Once(logging.Filter):
    """Lets each message through once: pictures that cannot be read are met at every pass over a set."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.getMessage() not in self._seen
        self._seen.add(record.getMessage())
        return new


def grid(lines: Found) -> tuple[list[str], list[list[str]]]:
    """Lines of reference: headings and rows."""
    columns = list(dict.fromkeys(column for line in lines.values() for column in line["scores"]))
    rows = [
        [
            LABELS.get(name, name),
            *(naming.shown(column, line["scores"][column]) if column in line["scores"] else "" for column in columns),
            str(line["told"]),
        ]
        for name, line in lines.items()
    ]
    return ["", *map(naming.label, columns), ""], rows


def costly(lines: Found, better: dict[str, bool]) -> Iterator[str]:
    """A line for each distance of which the autoencoder alone takes much: of the way from other real pictures, the floor, to an
    untrained network."""
    if not {"held_out", "autoencoded", "untrained"} <= lines.keys():
        return
    floor, copies, start = (lines[name]["scores"] for name in ("held_out", "autoencoded", "untrained"))
    for column, higher in better.items():
        if higher or not all(column in scores for scores in (floor, copies, start)) or start[column] <= floor[column]:
            continue
        share = (copies[column] - floor[column]) / (start[column] - floor[column])
        if share > COSTLY:
            yield (
                f"the autoencoder costs {100 * share:.0f} % of {naming.label(column)} from an untrained network to other real "
                "pictures, and no network can win that back; prepare again with more minutes for --autoencoder, or name a "
                "pretrained one under autoencoder.path"
            )


def _count(study: Study, split: str) -> int:
    """Pictures of a split; they are read, not decoded."""
    pictures: Any = menu.pick("datasets", study.dataset.name).load(study.dataset.settings("datasets"), split)
    items = getattr(pictures, "items", None)
    return len(pictures) if items is None else sum(1 for _ in items)
