"""A search of cache schedules for one trained network, from the heuristics on, and its front on captions it has not seen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
import pandas as pd

from nas import failures, interruption
from nas.analysis import naming
from nas.cost.units import COMPUTE, Modes
from nas.diffusion.caches import cache_schedules
from nas.diffusion.plan import Plan
from nas.disk import files
from nas.errors import InputError
from nas.schedules import run_time_tests, unit_times
from nas.schedules.drawing import DISTANCE, Judge, Subject, Task, quality
from nas.schedules.record import Record, Scored
from nas.search.schedules import Archive, Genes, evolve

Cost = Literal["macs", "ms"]
TABLE, PLANS, DISTANCES = "schedules.csv", "plans", "distances.json"
TIMED = 3  # drawings of the calibration captions by each schedule of the front, beside uncached ones
UNCACHED, FOUND = "uncached", "found"
WORST = 1e9  # quality of what draws no numbers: it stays behind everything


@dataclass(frozen=True)
class Settings:
    """What is asked of a search."""

    images: int = 16
    """Pictures that a schedule is scored by."""
    evaluations: int = 400
    """Schedules to score, the heuristics among them; the generation in which the number is reached is finished."""
    population: int = 32
    quality: str = DISTANCE
    """`distance`, or a column of the study's metrics."""
    cost: Cost = "macs"
    keep: int = 12
    """Members of each front that are drawn again for captions the search has not seen."""
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What a search ends with."""

    table: pd.DataFrame
    """A row for each schedule that was drawn for the evaluation captions."""
    plans: Mapping[str, Modes]
    """The schedules by name."""
    distances: Mapping[str, np.ndarray]
    """Grey levels of every picture from the uncached one, by name."""


def run(subject: Subject, settings: Settings, folder: Path, say: Callable[[str], None] = print) -> Found:
    """Search, then score the front and the heuristics' own front on the evaluation captions.

    Writes scored.jsonl as it goes, then schedules.csv and a plan in `plans` for every schedule of the table. Raises InputError
    for a plan of one step, which has nothing to keep, or a quality that the study does not measure.
    """
    search = Search(subject, settings, folder)
    search.evolve(say)
    return search.held_out(say)


@dataclass
class Search:
    """A subject, its heuristics, and everything scored so far."""

    subject: Subject
    settings: Settings
    folder: Path
    heuristics: dict[bytes, str] = field(default_factory=dict)
    """What the literature calls a schedule, by its modes."""

    def __post_init__(self) -> None:
        plan = self.subject.plan
        if plan.evaluations == 1:
            raise InputError(
                f"{self.subject.name} is drawn in one step, which leaves nothing to keep; expected several steps"
            )
        self.sign = -1 if self._higher_is_better() else 1
        self.minimised = quality(self.settings.quality, self.sign)
        self.genes = Genes(self.subject.units, plan.evaluations)
        self.judge = Judge(self.subject, Task.calibration(self.subject.bench, self.settings.images, self.settings.seed))
        self.record = Record(self.folder, self._identity())
        self.known = {one.rows: (one.quality, one.cost) for one in self.record.scored}
        self.archive = Archive(self._score)

    @cached_property
    def start(self) -> list[Modes]:
        """The uncached schedule and the heuristics."""
        found = []
        for name, modes in self._heuristics():
            found.append(self.subject.units.canonical(modes))
            self.heuristics.setdefault(found[-1].tobytes(), name)
        return found

    def _heuristics(self) -> Iterator[tuple[str, Modes]]:
        steps, units = self.subject.plan.evaluations, self.subject.units
        yield UNCACHED, np.full((steps, len(units)), COMPUTE, dtype=np.int8)
        yield from ((called(preset), preset.modes(steps, units)) for preset in cache_schedules.presets(steps, units))
        yield from run_time_tests.schedules(run_time_tests.measured(self.subject, self.judge.task), units)

    def evolve(self, say: Callable[[str], None]) -> None:
        """Score schedules until there are as many as asked for."""
        say(f"{self.subject.name}: {len(self.genes.most):,} genes, {len(self.start)} schedules to start from")
        began, had = time.perf_counter(), len(self.record.scored)
        for generation in evolve(self.genes, self.archive, self.start, self.settings.population, self.settings.seed):
            fresh = len(self.record.scored) - had
            rate = f", {60 * fresh / (time.perf_counter() - began):.0f} a minute" if fresh else " (read again)"
            say(f"generation {generation}: {len(self.archive.modes):,} schedules{rate}; {self._standing()}")
            if len(self.archive.modes) >= self.settings.evaluations:
                return

    def _standing(self) -> str:
        """The best of the heuristics and the best of all at half the cost."""
        name = "grey levels from uncached" if self.settings.quality == DISTANCE else self.settings.quality
        half = [(q, modes.tobytes() in self.heuristics) for modes, (q, c) in self._pairs() if c <= 0.5]
        best = min((q for q, _ in half), default=None)
        old = min((q for q, heuristic in half if heuristic), default=None)
        return f"at half the cost {self._said(best)} {name}, heuristics {self._said(old)}"

    def _said(self, minimised: float | None) -> str:
        return "none" if minimised is None else f"{self.sign * minimised:.3g}"

    def _pairs(self) -> Iterator[tuple[Modes, tuple[float, float]]]:
        return zip(self.archive.modes, self.archive.scores, strict=True)

    def _score(self, modes: Modes) -> tuple[float, float]:
        rows = spelled(self.subject, modes)
        if rows not in self.known:
            interruption.check()
            began = time.perf_counter()
            found = self._quality(modes), self.cost(modes)
            self.record.add(Scored(rows, *found, time.perf_counter() - began))
            self.known[rows] = found
        return self.known[rows]

    def _quality(self, modes: Modes) -> float:
        """To be minimised; WORST where pictures are not finite numbers, as an extrapolation may lead there."""
        try:
            return self.minimised(self.judge, self.judge.pictures(self.subject.by(modes)))
        except failures.Diverged:
            return WORST

    def cost(self, modes: Modes) -> float:
        """The share of the uncached drawing that a schedule costs, in multiply-adds or by the units' own times."""
        computed = self.subject.units.effective(modes)
        whole = np.ones_like(computed)
        if self.settings.cost == "macs":
            macs = self.subject.units.macs
            return float(macs(computed).sum() / macs(whole).sum())
        times = self._times()
        return times.of(computed) / times.of(whole)

    def _times(self) -> unit_times.Times:
        """Measured once, and kept beside the record: another measurement would make another search."""
        path = self.folder / "unit_times.csv"
        if not path.exists():
            unit_times.measure(self.subject, self.judge.task).write(path)
        return unit_times.Times.read(path, self.subject.units)

    def _higher_is_better(self) -> bool:
        measured = self.subject.bench.conditions()
        names = [DISTANCE, *(name for name in measured if name not in ("denoising_loss", "latency_ms"))]
        if self.settings.quality not in names:
            raise InputError(
                f"--quality {self.settings.quality}: not measured here; expected one of {', '.join(names)}"
            )
        return bool(measured.get(self.settings.quality, {}).get("higher_is_better", False))

    def _identity(self) -> dict[str, Any]:
        plan = self.subject.plan.model_dump(mode="json")
        asked = {name: getattr(self.settings, name) for name in ("images", "population", "quality", "cost", "seed")}
        return {"network": self.subject.fingerprint(), "plan": plan, **asked}

    # --- on new captions -------------------------------------------------------------------------------------------

    def chosen(self) -> dict[str, Modes]:
        """Schedules to draw again, by name: of the front, and of the front of the heuristics alone, at most `keep` each."""
        values = np.array(self.archive.scores)
        old = [place for place, modes in enumerate(self.archive.modes) if modes.tobytes() in self.heuristics]
        alone = Archive(self._score, [self.archive.modes[p] for p in old], [self.archive.scores[p] for p in old])
        named: dict[str, Modes] = {UNCACHED: self.start[0]}
        for places in ([old[place] for place in alone.front()], self.archive.front()):
            for place in _spread([place for place in places if values[place, 0] < WORST], values, self.settings.keep):
                modes, cost = self.archive.modes[place], values[place, 1]
                named[self.heuristics.get(modes.tobytes()) or _free(f"{FOUND} {100 * cost:.1f} %", named)] = modes
        return named

    def held_out(self, say: Callable[[str], None]) -> Found:
        """Every chosen schedule: shares of MACs and of the measured time, distance from uncached, and the study's metrics."""
        judge, named = Judge(self.subject, Task.held_out(self.subject.bench)), self.chosen()
        rows, distances = [], {}
        for left in (self.folder / PLANS).glob("*.yaml"):
            left.unlink()
        for name, modes in named.items():
            row, distances[name] = self._row(judge, name, modes)
            rows.append(row)
            say(f"{name}: {100 * row['macs_share']:.0f} % of the MACs, {row[DISTANCE]:.2f} grey levels from uncached")
        table = pd.DataFrame(rows).assign(time_share=self._timed(named, say)).sort_values("macs_share", ascending=False)
        with files.replacing(self.folder / TABLE) as partial:
            table.to_csv(partial, index=False)
        files.write_json(self.folder / DISTANCES, {name: each.round(4).tolist() for name, each in distances.items()})
        return Found(table, named, distances)

    def _row(self, judge: Judge, name: str, modes: Modes) -> tuple[dict[str, Any], np.ndarray]:
        """What is found of one schedule; its plan is written."""
        plan = self.plan(name, modes)
        pictures = judge.pictures(plan)
        distances = judge.distances(pictures).numpy()
        calibration, cost = self.archive.of(self.subject.units.canonical(modes))
        row: dict[str, Any] = {"schedule": name, "found": name.startswith(FOUND), "macs": plan.macs(self.subject.units)}
        row["macs_share"] = row["macs"] / self.subject.plan.macs(self.subject.units)
        row |= {"cost": cost, "calibration": self.sign * calibration, DISTANCE: float(distances.mean())}
        (self.folder / PLANS).mkdir(exist_ok=True)
        files.write_yaml(self.folder / PLANS / f"{file_name(name)}.yaml", {"sampling": plan.model_dump(mode="json")})
        return row | self.subject.scores(judge.task, pictures), distances

    def plan(self, name: str, modes: Modes) -> Plan:
        return self.subject.plan if name == UNCACHED else self.subject.by(modes)

    def _timed(self, named: Mapping[str, Modes], say: Callable[[str], None]) -> list[float]:
        """The time of drawing the calibration captions over that of an uncached drawing beside it, a median each."""
        say("timing each against an uncached drawing")

        def seconds(plan: Plan) -> float:
            began = time.perf_counter()
            self.judge.pictures(plan)
            return time.perf_counter() - began

        plans = [self.plan(name, modes) for name, modes in named.items()]
        ratios = [[seconds(plan) / seconds(self.subject.plan) for plan in plans] for _ in range(TIMED)]
        return [statistics.median(each) for each in zip(*ratios, strict=True)]


def spelled(subject: Subject, modes: Modes) -> str:
    """The rows of a schedule, with spaces between them."""
    return " ".join(cache_schedules.written(modes, subject.units).rows)


def called(preset: Any) -> str:
    """A heuristic in words: `deepcache every 3, branch 1`."""
    values = {name: value for name, value in preset.model_dump().items() if name != "name"}
    return f"{preset.name} " + ", ".join(f"{name} {value}" for name, value in values.items())


def file_name(name: str) -> str:
    """Of a schedule's plan."""
    return name.replace(" %", "").replace(", ", "-").replace(" ", "-")


def grid(found: Found, subject: Subject) -> tuple[list[str], list[list[str]]]:
    """The table as a person reads it: headings and rows."""
    measured = [name for name in subject.bench.conditions() if name in found.table]
    asked = [name for name in subject.bench.study.objectives if name in measured]
    scores = asked or measured
    headings = ["schedule", "MACs", "time", "grey levels from uncached", *map(naming.label, scores)]
    rows = [
        [
            str(row["schedule"]),
            f"{100 * row['macs_share']:.0f} %",
            f"{100 * row['time_share']:.0f} %",
            f"{row[DISTANCE]:.2f}",
            *(naming.shown(name, row[name]) for name in scores),
        ]
        for _, row in found.table.iterrows()
    ]
    return headings, rows


def _spread(places: Sequence[int], values: np.ndarray, most: int) -> list[int]:
    """At most so many of the places of a front, spread evenly over the second score."""
    if len(places) <= most:
        return list(places)
    costs = values[list(places), 1]
    wanted = np.linspace(costs.min(), costs.max(), most)
    return list(dict.fromkeys(places[int(np.abs(costs - at).argmin())] for at in wanted))


def _free(name: str, taken: Mapping[str, Modes]) -> str:
    """The name, with a letter if it is taken: costs may agree to a tenth of a percent."""
    return next(one for one in (name, *(f"{name} {letter}" for letter in ascii_lowercase)) if one not in taken)
