"""What is judged: the trials of runs that drew the same captions, with their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nas.analysis import findings, fronts
from nas.errors import InputError, shown
from nas.judging.questions import Asked
from nas.menu import nearest
from nas.runs import description, pictures


@dataclass(frozen=True)
class Contest:
    """Who is compared, and where answers go."""

    run: Path
    """The first run, whose folder keeps the answers."""
    captions: tuple[str, ...]
    pictures: Mapping[str, Sequence[str]]
    """Data URLs by trial, one a caption."""

    @property
    def asked(self) -> Asked:
        return Asked(tuple(self.pictures), len(self.captions))


def of(paths: Sequence[Path], trials: str | None = None, front: bool = False) -> Contest:
    """The trials to judge: those that were trained to the end (of an ablation the first repeat of every cell), those of the
    fronts alone, or those named by numbers with commas between them. InputError for what cannot be judged.
    """
    runs = [description.find(path) for path in paths]
    if trials is not None and (len(runs) > 1 or front):
        raise InputError(f"--trials {trials}: expected one run, and no --front")
    prefixes = {"": runs[0], **{f"{_name(run)}:": run for run in runs if run != runs[0]}}
    if len(prefixes) < len(runs):
        raise InputError(f"{runs[-1]}: judged beside another run of the same name; expected runs of different names")
    found: dict[str, list[str]] = {}
    for prefix, run in prefixes.items():
        table = findings.Run.read(run)
        numbers = _numbered(table.table, trials) if trials is not None else _usual(table, front)
        found |= dict(_drawn(run, prefix, numbers, trials is not None))
    if len(found) < 2:
        raise InputError(f"{runs[0]}: two trials with pictures are needed to judge, got {len(found)}")
    count = min(len(drawn) for drawn in found.values())
    captions = _captions(runs, count)
    return Contest(runs[0], tuple(captions), {trial: drawn[: len(captions)] for trial, drawn in found.items()})


def _usual(run: findings.Run, front: bool) -> list[int]:
    complete = run.table[run.table["state"] == "complete"]
    if front:  # with the repeats of its members, whose mean counts
        named = fronts.identities(complete)
        chosen = complete[named.isin(named[complete["on_front"]])]
    else:
        chosen = run.best if run.is_ablation else complete
    return [int(trial) for trial in chosen["trial"]]


def _numbered(table: pd.DataFrame, trials: str) -> list[int]:
    """The numbers that a person wrote."""
    known = {str(trial): int(trial) for trial in table["trial"]}
    words = [word.strip() for word in trials.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise InputError(f"--trials {trials}: no trial {shown(word)}{nearest(word, list(known))}")
    return list(dict.fromkeys(known[word] for word in words))


def _drawn(run: Path, prefix: str, numbers: Sequence[int], named: bool) -> Iterator[tuple[str, list[str]]]:
    """Trials with their pictures; InputError where there are none, or a trial that was `named` has none."""
    drawn = {number: pictures.tiles(pictures.samples(run, number)) for number in numbers}
    missing = [number for number, found in drawn.items() if not found]
    if missing and (named or len(missing) == len(drawn)):
        where = pictures.samples(run, missing[0])
        raise InputError(
            f"{run}: no pictures to judge, expected {where.relative_to(run)}, which a trial draws when it is scored"
        )
    if not drawn:
        raise InputError(f"{run}: no pictures to judge: no trial was trained to the end")
    return ((f"{prefix}{number}", found) for number, found in drawn.items() if found)


def _captions(runs: Sequence[Path], count: int) -> list[str]:
    """What all runs drew, in one order."""
    drawn = [description.captions(run)[:count] for run in runs]
    for run, captions in zip(runs, drawn, strict=True):
        if not captions:
            raise InputError(f"{run}: no captions.json in it, so nobody knows what its pictures are to show")
        if captions != drawn[0]:
            place = next((i for i, pair in enumerate(zip(drawn[0], captions, strict=False)) if len(set(pair)) > 1), 0)
            raise InputError(
                f"{run}: drew other captions than {runs[0]}: caption {place} is {shown(captions[place])}, "
                f"expected {shown(drawn[0][place])}"
            )
    return drawn[0]


def _name(run: Path) -> str:
    """STUDY/TIME, as judgements name another run."""
    whole = run.resolve()
    return f"{whole.parent.name}/{whole.name}".replace(":", "-").replace(" ", "-")
