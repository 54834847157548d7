"""Measures the anchor table that `nas.analysis.statistics.agreement` reads: a few architectures, trained briefly, trained long,
and scored on paper.

One row per (kind, architecture, seed): `slice` is the supernet's slice as it is, `warm` the study's brief trial, `scratch`
a trial of that length from nothing, `long` the same training continued to many times the length, `zero_cost` the scores
of an untrained network. Rows that are in the table already are not measured again. Long trainings keep their checkpoints in the
cache: they go on where they were interrupted, and to a greater length when one is asked for, which has rows of its own.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nas import failures
from nas.analysis.statistics import agreement
from nas.analysis.statistics.agreement import LEAST_ANCHORS, Agreement
from nas.cost.budget import over_budget
from nas.diffusion.schedule import Settings as DenoisingSettings
from nas.diffusion.schedule import noise_schedule
from nas.errors import InputError
from nas.networks.backbones import Backbone
from nas.report import stills
from nas.seeds import trial_seed
from nas.settings import study_file, training
from nas.settings.study import Study
from nas.space.search_space import SearchSpace
from nas.training.batches import Batches
from nas.trial.bench import Bench, loss_times
from nas.trial.checks.check import check
from nas.trial.rung import Job, prepare, run_rung
from nas.trial.rung import bench as bench_of_process
from nas.trust import long_training, zero_cost
from nas.trust.anchor_table import AnchorTable
from nas.workers.local import Workers, default_count

KINDS = ("long", "slice", "warm", "zero_cost")  # `long` gives the rows of `scratch` on its way
CANDIDATES = 2_000  # drawn to choose the anchors from
ZERO_COST_BATCHES = 4
SEED = 2026
ATTEMPTS = 3  # times a job is tried when its worker process dies
CACHE = Path("runs/.cache")


@dataclass(frozen=True)
class Plan:
    """How much is spent."""

    anchors: int = 16
    seeds: int = 2
    long: int = 10
    """Length of the long trainings, in brief ones; 0: none, only how well the seeds of brief trials agree."""

    def __post_init__(self) -> None:
        least = {"anchors": LEAST_ANCHORS, "seeds": 1 if self.long else 2, "long": 2 if self.long else 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise InputError(f"nas trust: --{name} {getattr(self, name)}: expected at least {limit}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is measured, in this order."""
        return KINDS if self.long else ("slice", "warm")

    def lengths(self, brief: int) -> dict[str, int]:
        """Training images by kind, from those of a brief trial."""
        return {"warm": brief, "long": self.long * brief}


def run(
    path: Path, overrides: Sequence[str], plan: Plan, out: Path, store: Path, workers: int, train: bool = True
) -> list[Agreement]:
    """Complete the anchor table of a study in `out`, write the trust table and picture beside it, and store the result.

    Without long trainings there is no truth to store or draw. Without `train` the table is taken as far as it got. Raises
    InputError when that is not far enough for an interval.
    """
    with study_file.opened(path, overrides) as (study, _):
        if study.space is None or study.search is None:
            raise InputError("search: nas trust is about the trials of a search; this study has none")
        if not plan.long and study.training.init == "scratch":
            raise InputError("nas trust: --long 0: expected a study of warm trials; this one trains from scratch")
        space = SearchSpace.load(study.space)
        check(study, space)
        if plan.long:
            check(_study_of("long", study, plan), space)
    targets = prepared(study)
    table = AnchorTable(out)
    table.check(agreement.proxy_settings(study.resolved()), list(targets))
    rows = measure(study, space, plan, table, CACHE, workers, print) if train else table.rows()
    found = agreement.table(rows, targets)
    against_long = [each for each in found if each.signal in (f"warm: {each.target}", f"scratch: {each.target}")]
    if not (against_long if plan.long else found):
        how = "long" if plan.long else "with two seeds"
        raise InputError(
            f"{table.path}: too few architectures were trained {how} for an interval, expected {LEAST_ANCHORS}"
        )
    pd.DataFrame([asdict(each) for each in found]).to_csv(out / "trust.csv", index=False)
    if not plan.long:
        return found
    stills.save_agreement(agreement.pairs(rows, targets), out / "trust.png")
    long = agreement.at_one_length(rows).query("kind == 'long'")
    seeds, images_seen = int(long["seed"].nunique()), int(long["images_seen"].max())
    measured = agreement.Trust(
        agreement.proxy_settings(study.resolved()), long["key"].nunique(), seeds, images_seen, tuple(found)
    )
    print(f"wrote {measured.save(store)}")
    return found


def prepared(study: Study) -> dict[str, bool]:
    """Make the caches all trials share and check what they start from; the study's scores, and whether higher is better."""
    slots = Workers(1, study, CACHE)
    try:
        slots.submit((-1, 0), prepare)
        while not (ended := slots.finished(1.0)):
            pass
        conditions, _ = ended[0][1].result()
    finally:
        slots.stop()
    costs = study.deploy.latency_conditions()
    return {column: bool(found["higher_is_better"]) for column, found in conditions.items() if column not in costs}


def choose(
    study: Study, space: SearchSpace, count: int, kept: Sequence[Backbone] = (), asked: str = "nas trust: --anchors"
) -> list[Backbone]:
    """Members within budget, `kept` among them, one from each of `count` equal slices by multiply-adds where none is there yet,
    each as unlike the others as possible; at least `count` in all. Raises InputError when the space has too few.
    """
    rng = random.Random(SEED)
    found: dict[str, tuple[int, dict[str, Any], Backbone]] = {}
    for _ in range(CANDIDATES):
        choices = space.sample(rng)
        config = space.architecture(choices)
        cost = study.deploy.costs(config)
        if not over_budget(cost, study.budget):
            found[config.key] = (cost["macs"], choices, config)
    if len(found) < count:
        raise InputError(f"{asked} {count}: only {len(found)} of {CANDIDATES:,} candidates are within budget")
    ordered = sorted(found.values(), key=lambda candidate: candidate[0])
    slices = [ordered[index * len(ordered) // count : (index + 1) * len(ordered) // count] for index in range(count)]
    keys = {config.key for config in kept}
    empty = [part for part in slices if keys.isdisjoint(config.key for _, _, config in part)]
    chosen = [found[key] for key in keys if key in found]
    needed = max(0, count - len(kept))
    for part in (empty[index * len(empty) // needed] for index in range(needed)):
        chosen.append(max(part, key=lambda one: min((_unlike(one[1], other[1]) for other in chosen), default=0)))
    return [*kept, *(config for _, _, config in chosen if config.key not in keys)]


def _unlike(a: dict[str, Any], b: dict[str, Any]) -> int:
    """Axes in which two members differ."""
    return sum(a.get(name) != b.get(name) for name in {*a, *b})


def measure(
    study: Study,
    space: SearchSpace,
    plan: Plan,
    table: AnchorTable,
    cache: Path,
    workers: int,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """The anchor table, completed."""
    loop = study.training
    lengths = {kind: images for kind, images in plan.lengths(loop.images_seen).items() if kind in plan.kinds}
    asked = {kind: loop.updates(images) * loop.batch for kind, images in lengths.items()}
    chosen = choose(study, space, plan.anchors, table.architectures())
    table.begin(agreement.proxy_settings(study.resolved()), chosen)
    done = table.done()
    todo = {
        kind: [
            job for job in _jobs(kind, plan, chosen) if done.get((kind, job[0].key, job[1]), -1) < asked.get(kind, 0)
        ]
        for kind in plan.kinds
    }
    if study.training.init == "scratch":
        todo |= {"slice": [], "warm": []}
    images = sum(
        asked.get(kind, 0) - done.get((kind, config.key, seed), 0)
        for kind, jobs in todo.items()
        for config, seed in jobs
    )
    say(f"{len(chosen)} architectures x {plan.seeds} seeds, {images:,} training images to go; rows go to {table.path}")
    for kind, jobs in todo.items():
        if jobs:
            _measure_kind(kind, study, plan, jobs, table, cache, workers or default_count(), say)
    return table.rows()


def scored_on_paper(
    study: Study,
    space: SearchSpace,
    members: int,
    table: AnchorTable,
    cache: Path,
    workers: int,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """The zero-cost rows of a table, completed to so many members of a space. Raises InputError as `choose`."""
    chosen = choose(study, space, members, table.architectures(), "--members")
    table.begin(agreement.proxy_settings(study.resolved()), chosen)
    done = table.done()
    todo = [(config, 0) for config in chosen if ("zero_cost", config.key, 0) not in done]
    if todo:
        say(f"{len(todo)} of {len(chosen)} architectures to score; rows go to {table.path}")
        _measure_kind("zero_cost", study, Plan(), todo, table, cache, workers or default_count(), say)
    rows = table.rows()
    return rows[rows["kind"] == "zero_cost"]


def _jobs(kind: str, plan: Plan, chosen: Sequence[Backbone]) -> list[tuple[Backbone, int]]:
    """(architecture, seed) in the order of measuring: whole seeds one after another."""
    seeds = range(plan.seeds if kind in ("long", "warm") else 1)
    return [(config, seed) for seed in seeds for config in chosen]


def _measure_kind(
    kind: str,
    study: Study,
    plan: Plan,
    todo: Sequence[tuple[Backbone, int]],
    table: AnchorTable,
    cache: Path,
    count: int,
    say: Callable[[str], None],
) -> None:
    """Measure what is to be done of a kind. What fails by its own fault is said and left out."""
    trained = _study_of(kind, study, plan)
    slots = Workers(min(count, len(todo)), trained, cache)
    waiting, left, began, lost = deque(enumerate(todo)), len(todo), time.time(), Counter[int]()
    try:
        with tempfile.TemporaryDirectory() as folder:
            while left:
                while slots.free and waiting:
                    number, (config, seed) = waiting.popleft()
                    kept = long_training.folder(cache, trained, config.key, seed)
                    place = kept if kind == "long" else Path(folder) / f"{number}-{lost[number]}"
                    place.mkdir(parents=True, exist_ok=True)
                    job = Job(number, config.to_dict(), trial_seed(study.seed, config.key, seed), 0, 0, place)
                    slots.submit((number, 0), run_anchor, kind, study.training.images_seen, job)
                for (number, _), future in slots.finished(5.0):
                    config, seed = todo[number]
                    try:
                        table.add(_rows(study, config, seed, future.result()))
                        shutil.rmtree(Path(folder) / f"{number}-{lost[number]}", ignore_errors=True)
                    except failures.Lost as error:
                        lost[number] += 1
                        if lost[number] < ATTEMPTS:
                            waiting.append((number, todo[number]))
                            continue
                        say(f"{kind}: {config.key}, seed {seed}: left out, its worker ended {ATTEMPTS} times: {error}")
                    except failures.Failed as error:
                        say(f"{kind}: {config.key}, seed {seed}: left out: {error}")
                    left -= 1
                    minutes = (time.time() - began) / (len(todo) - left) * left / 60
                    say(f"{kind}: {len(todo) - left}/{len(todo)} done, about {minutes:.0f} min left for this kind")
    finally:
        slots.stop()


def _study_of(kind: str, study: Study, plan: Plan) -> Study:
    """The study a kind is trained under. Beside warm trials, trainings from scratch take the defaults meant for them, not
    fine-tuning's; a study that trains from scratch has its own.
    """
    if kind in ("slice", "warm"):
        return study
    brief, images = study.training, plan.lengths(study.training.images_seen)["long"]
    if brief.init == "scratch":
        return study.model_copy(update={"training": brief.model_copy(update={"images_seen": images})})
    scratch = training.Training(images_seen=images, batch=brief.batch, precision=brief.precision, init="scratch")
    return study.model_copy(update={"training": scratch})


def run_anchor(kind: str, brief: int, job: Job) -> dict[str, dict[str, Any]]:
    """In a worker: the rows of one anchor, by kind."""
    bench = bench_of_process()
    if kind == "zero_cost":
        return {kind: zero_cost_scores(bench, job)}
    if kind == "long":
        found = long_training.run(job, brief, bench.study.training.images_seen)
        return {part: _scores(result) for part, result in found.items()}
    return {kind: _scores(run_rung(_rung(job, 0, 0 if kind == "slice" else brief)))}


def _rung(job: Job, rung: int, images: int) -> Job:
    return Job(job.trial, job.architecture, job.seed, rung, images, job.folder)


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """A rung's result as columns."""
    rung = result["rung"]
    times = loss_times(noise_schedule(DenoisingSettings()).config["num_train_timesteps"])
    levels = {f"denoising_loss_t{time:03d}": loss for time, loss in zip(times, rung["denoising_losses"], strict=True)}
    seconds = {name: round(rung["timings"].get(name, 0.0), 2) for name in ("train_s", "sample_s", "score_s")}
    return {"images_seen": rung["images_seen"], **rung["metrics"], **levels, **seconds}


def zero_cost_scores(bench: Bench, job: Job) -> dict[str, Any]:
    """The scores of the network as it is initialised from scratch, its zeroed layers woken."""
    network = bench.scaled(job.architecture)
    built = bench.network(network, job.seed)
    zero_cost.wake(built, torch.Generator().manual_seed(job.seed))
    batches = list(Batches(bench.lessons, bench.study.training, SEED, 0, ZERO_COST_BATCHES))
    return {"images_seen": 0, **zero_cost.scores(built, bench.objective(built, job.seed).generator_loss, batches)}


def _rows(study: Study, config: Backbone, seed: int, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A job's outcome as rows of the table."""
    cost = config.cost(study.deploy.latent_size, study.deploy.text_tokens)
    common = {"key": config.key, "seed": seed, "params": cost.params, "macs": cost.macs}
    return [{"kind": kind, **common, **row} for kind, row in measured.items()]
