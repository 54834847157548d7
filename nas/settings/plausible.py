"""What a study can say, yet cannot mean, and what it hardly means."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nas import menu
from nas.errors import InputError
from nas.settings import design
from nas.settings.study import Study
from nas.settings.training import Training

FAST = 0.05  # a learning rate of AdamW from which networks seldom recover
LARGE_BATCH = 8_192
SMALL_MEMORY = 1e9  # bytes, of a process that holds torch and a network
CROWD = 4  # workers a core


def check(study: Study) -> None:
    """Raises InputError for what no study can mean."""
    _one_batch("training", study.training)
    if study.base is not None:
        _one_batch("base.training", study.base.training)


def _one_batch(section: str, training: Training) -> None:
    if training.images_seen < training.batch:
        raise InputError(
            f"{section}.images_seen: expected at least one batch, {training.batch:,}, got {training.images_seen:,}"
        )


def unlikely(study: Study) -> Iterator[str]:
    """What is probably not meant, each beginning with the setting."""
    training, cores = study.training, os.cpu_count() or 1
    if training.warmup_images > training.images_seen:
        yield (
            f"training.warmup_images: {training.warmup_images:,} of {training.images_seen:,} images seen: "
            "the learning rate is never reached"
        )
    if training.learning_rate > FAST:
        yield f"training.learning_rate: {training.learning_rate:g} is far more than the usual 1e-4 to 1e-2"
    if training.batch > LARGE_BATCH:
        yield f"training.batch: {training.batch:,} images an update; each is held in memory"
    if study.workers is not None and study.workers > CROWD * cores:
        yield f"workers: {study.workers:,} side by side on {cores} cores; each trial gets a share of one"
    if study.worker_memory is not None and study.worker_memory < SMALL_MEMORY:
        yield f"worker_memory: {study.worker_memory / 1e6:.0f} M is hardly enough for a process with torch in it"
    yield from _rungs(study)
    yield from dict.fromkeys(line for one in _cells(study) for line in _renoised(one))


def _cells(study: Study) -> Iterator[Study]:
    """The studies that an ablation consists of; a search is one."""
    if study.ablation is None:
        yield study
        return
    for cell in design.cells(study.ablation):
        yield design.changed(study, cell.settings)


def _renoised(study: Study) -> Iterator[str]:
    """Several steps with fresh noise between, of what is no generator: a baseline for those that are, at most."""
    solvers = menu.pick("objectives", study.objective.name).Objective.solvers
    if study.sampling.steps > 1 and study.sampling.solver not in solvers:
        yield (
            f"sampling.solver: {study.sampling.solver} predicts clean latents from fresh noise in every step, which "
            f"{study.objective.name} does not learn; usual are {', '.join(solvers)}"
        )


def _rungs(study: Study) -> Iterator[str]:
    """Rungs that score one network twice, and a rule of early stopping that was asked for and has nothing to do."""
    stopping, training = study.stopping, study.training
    updates = [training.updates(round(rung * training.images_seen)) for rung in stopping.rungs]
    for index, (before, after) in enumerate(zip(updates, updates[1:], strict=False)):
        if before == after:
            here, there = stopping.rungs[index : index + 2]
            yield f"stopping.rungs: {here:g} and {there:g} of {training.images_seen:,} images are both {after:,} updates"
    if study.search is None or stopping.rule == "none" or "min_peers" not in stopping.model_fields_set:
        return
    if stopping.min_peers > study.search.trials:
        yield (
            f"stopping.min_peers: {stopping.min_peers:,} of {study.search.trials:,} trials have to come first: "
            "none is ever stopped"
        )
