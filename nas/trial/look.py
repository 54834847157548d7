"""A cheap score of networks as they are initialised, in a worker process: a few pictures, and no training.

Fewer steps would save as much, and cost more of what a look is for (benchmarks/looks.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch

from nas import failures
from nas.interruption import Interrupted
from nas.metrics import scores
from nas.trial import descent
from nas.trial.bench import Bench
from nas.trial.descent import Parent
from nas.trial.rung import bench

SEED = 0  # slices of a supernet are the same for every seed


def look(
    architectures: Sequence[dict[str, Any]], images: int | None = None, parent: Parent | None = None
) -> list[dict[str, Any]]:
    """In a worker: what is found of each deploy-scale architecture, `nas.runs.looks.Looked` without its choices.

    `images` are the pictures, `search.pool.images` unless told; `parent` the trial whose weights the networks have.

    A network that fails by its own fault has the reason in place of scores.
    """
    found = []
    for architecture in architectures:
        began, metrics, failed = time.perf_counter(), {}, ""
        try:
            metrics = scored(bench(), architecture, images, parent)
        except Exception as error:
            known = failures.sorted_out(error)
            if isinstance(known, Interrupted | failures.DiskTrouble):
                raise known from None
            failed = str(known)
        found.append({"metrics": metrics, "failed": failed, "seconds": time.perf_counter() - began})
    return found


@torch.no_grad()
def scored(
    bench: Bench, architecture: dict[str, Any], images: int | None = None, parent: Parent | None = None
) -> dict[str, float]:
    """The study's metrics, by column, of the first evaluation captions, and the paired denoising loss where it is an objective.
    Raises failures.Diverged."""
    study = bench.study
    assert study.search is not None
    bench.prepare()
    proxy = bench.scaled(architecture)
    network = bench.network(proxy, SEED) if parent is None else descent.network(bench, proxy, SEED, parent)
    schedule = bench.objective(network, SEED).schedule_config
    network.eval()
    images = min(images or study.search.pool.images, study.evaluation.images)
    found = scores(bench.metrics, bench.captioned(bench.draw(network, schedule, images)))
    if "denoising_loss" in study.objectives:
        losses = bench.denoising_losses(network, schedule)
        found["denoising_loss"] = sum(losses) / len(losses)
    finite = {column: value for column, value in found.items() if isfinite(value)}  # no caption may ask for a column
    if bad := [column for column in study.objectives if column in found and column not in finite]:
        raise failures.Diverged(f"{', '.join(bad)} is not a finite number for {images} pictures")
    return finite
