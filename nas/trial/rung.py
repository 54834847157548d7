"""One trial, one rung at a time, in a worker process: build the proxy, train, sample, score."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from nas import failures, interruption, machine
from nas.networks import lora
from nas.networks.backbones import Backbone
from nas.runs.headway import Headway
from nas.settings import design
from nas.settings.study import Study
from nas.training import loop
from nas.trial import base_model, descent, imagined
from nas.trial.bench import Bench
from nas.trial.clock.phases import Timings
from nas.trial.descent import Parent
from nas.weights import checkpoints

CHECKPOINT = "checkpoint.safetensors"  # in a trial's folder; whoever keeps its last record removes it then, not before


@dataclass(frozen=True)
class Job:
    """Everything a worker needs for one rung of one trial."""

    trial: int
    architecture: dict[str, Any]  # deploy scale, Config.to_dict()
    seed: int
    rung: int
    images_seen: int  # in total, at the end of this rung
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)  # this trial's own, by path: `nas.settings.design.changed`
    like: dict[str, Any] | None = None  # initial weights are those of this architecture where names and shapes agree
    parent: Parent | None = None  # the trial whose weights it starts from, in place of what training.init says


_bench: Bench | None = None


def start_worker(study: Study, cache: Path) -> None:
    """What a worker process does once."""
    global _bench
    _bench = Bench(study, cache)


def bench() -> Bench:
    """In a worker: the study's bench."""
    assert _bench is not None
    return _bench


def prepare() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """In a worker: make the shared caches; returns the conditions of each score, and the captions that are drawn."""
    bench().check_weights()
    bench().prepare()
    for variant in _variants(bench()):
        for split in ("train", "held_out"):
            if not variant.encoded_path(split).exists():  # else several workers would encode it at once
                variant.data(split)
        imagined.prepare(variant)
    return bench().conditions(), bench().drawn[0]


def prepare_base(folder: Path) -> dict[str, Any]:
    """In a worker: train the base model unless it is cached, and score it as the trials are drawn and as `base.sampling` says.

    Pairs that trials learn from are drawn here, before any of them. Returns the base's record: architecture, weights,
    images_seen, and `scores`, each with its sampling plan and metrics.
    """
    assert _bench is not None and _bench.study.base is not None
    path = base_model.train(_bench)
    base = base_model.bench_of(_bench)
    network = base_model.network(_bench)
    schedule = base.objective(network, bench().study.seed).schedule_config
    plans = dict.fromkeys([_bench.study.sampling, _bench.study.base.sampling or _bench.study.sampling])
    scores = []
    for index, plan in enumerate(plans):
        picture = folder / "base" / str(index) / "samples.png"
        drawn = base.variant({"sampling": plan.model_dump()}).score(network, schedule, picture=picture)
        scores.append({"sampling": plan.model_dump(mode="json"), "metrics": drawn.metrics})
    for variant in _variants(_bench):
        _ = variant.lessons
    return {"weights": str(path), "images_seen": checkpoints.images_seen(path), "scores": scores}


def _variants(bench: Bench) -> Iterator[Bench]:
    """The benches of the trials' own settings."""
    ablation = bench.study.ablation
    for settings in [cell.settings for cell in design.cells(ablation)] if ablation else [{}]:
        yield bench.variant(settings)


def run_rung(job: Job) -> dict[str, Any]:
    """In a worker: train to the rung's length and score; returns the rung's record.

    Raises failures.Diverged, and Interrupted (the checkpoint is saved) when the process is told to stop.
    """
    return run_on(bench(), job)


def run_alone(study: Study, cache: Path, job: Job) -> dict[str, Any]:
    """One rung in this process, outside a run: the record `run_rung` returns. A base that is not in the cache is trained first.

    Raises failures.Diverged.
    """
    bench = Bench(study, cache)
    if study.base is not None:
        base_model.train(bench)
    return run_on(bench, job)


def run_on(bench: Bench, job: Job) -> dict[str, Any]:
    """`run_rung` on this bench."""
    began = time.perf_counter()
    machine.forget_peak_memory()
    timings = Timings()
    with timings.phase("load_s"):
        bench = bench.variant(job.settings)
        bench.prepare()
        proxy = bench.scaled(job.architecture)
        network = _network(bench, proxy, job)
        objective = bench.objective(network, job.seed)
        module = loop.DenoiserTraining(objective, bench.study.training)
        checkpoint = job.folder / CHECKPOINT
        if checkpoint.exists():
            module.restore(checkpoint)
        headway = _headway(bench, module, job)
    with timings.phase("train_s"):
        try:
            pace = loop.train(module, bench.lessons, job.seed, job.images_seen)
        except interruption.Interrupted:
            module.save(checkpoint, {"trial": str(job.trial)})
            raise
    with timings.phase("save_s"):
        module.save(checkpoint, {"trial": str(job.trial)})  # what comes now may be interrupted without loss
    module.swap_average()
    network.eval()
    done = objective.finished(bench.lesson)
    plain = lora.merged(done) if bench.study.training.lora is not None else done
    scores = bench.score(plain, objective.schedule_config, timings, job.folder / "samples.png", headway.drawn)
    shutil.copyfile(job.folder / "samples.png", job.folder / f"samples_{job.rung}.png")
    bad = [name for name, value in scores.metrics.items() if not math.isfinite(value)]
    if bad:
        raise failures.Diverged(f"{', '.join(bad)} is not a finite number after {job.images_seen:,} images")
    with timings.phase("save_s"):
        weights = {name: value.detach().cpu().contiguous() for name, value in plain.state_dict().items()}
        save_file(weights, job.folder / "weights.safetensors", {"images_seen": str(module.images_seen)})
        if done is network and plain is not network:
            lora.save(network, job.folder / "adapters.safetensors", {"images_seen": str(module.images_seen)})
    headway.over()
    timings.seconds["total_s"] = time.perf_counter() - began
    cost = proxy.cost(bench.train_data.latents.shape[-1], bench.train_data.tokens.shape[1])
    rung = {
        "rung": job.rung,
        "images_seen": module.images_seen,
        "passes": objective.passes_of(module.step),
        "metrics": scores.metrics,
        "denoising_losses": scores.denoising_losses,
        "training": module.logged() | {name: float(value) for name, value in objective.logged.items()},
        "timings": timings.seconds,
        "images_per_s": pace.images_per_s,
        "peak_memory_mib": machine.peak_memory_mib(),
        "worker": os.getpid(),
        "threads": torch.get_num_threads(),
        "device": machine.computing_device(),
    }
    if module.kept:
        rung["blocks_kept"] = module.kept
    return {"rung": rung, "proxy": proxy.to_dict(), "proxy_cost": dataclasses.asdict(cost) | imagined.costs(bench)}


def _network(bench: Bench, proxy: Backbone, job: Job) -> nn.Module:
    """The proxy's network as it is before any training."""
    if job.parent is not None:
        return descent.network(bench, proxy, job.seed, job.parent)
    return bench.network(proxy, job.seed, bench.scaled(job.like) if job.like else None)


def _headway(bench: Bench, module: loop.DenoiserTraining, job: Job) -> Headway:
    """What is told how far this rung has come, and listens to the training."""
    study, first, batch = bench.study, module.step, bench.study.training.batch
    updates = max(0, study.training.updates(job.images_seen) - first)
    passes = module.objective.passes_of(study.training.updates(job.images_seen))
    headway = Headway(
        job.folder, updates * batch, study.evaluation.images, study.sampling.calls, bench.loss_passes, passes
    )
    module.heard = lambda step: headway.trained((step - first) * batch)
    return headway
