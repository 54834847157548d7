"""The pace of a worker: a few updates and pictures of a network timed in it, as busy as the machine is now."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from nas.diffusion import solvers
from nas.diffusion.plan import AUTOREGRESSIVE
from nas.networks.conditioning import Text
from nas.training import loop
from nas.trial.bench import SCORE_BATCH, Bench
from nas.trial.clock.pace import Pace
from nas.trial.rung import bench

UPDATES, STEPS = 4, 2  # timed, at most; one more update before, which is slow


def clock(settings: dict[str, Any], architecture: dict[str, Any]) -> Pace:
    """In a worker: the pace of a network under the study with these settings."""
    return of_network(bench().variant(settings), architecture)


def of_network(bench: Bench, architecture: dict[str, Any]) -> Pace:
    """Time a few updates, pictures and scores of a deploy-scale network's proxy. Raises failures.Diverged."""
    bench.prepare()
    study = bench.study
    began = time.perf_counter()
    network = bench.network(bench.scaled(architecture), seed=0)
    objective = bench.objective(network, 0)
    module = loop.DenoiserTraining(objective, study.training)
    load_s = time.perf_counter() - began
    timed = min(UPDATES, study.training.updates(study.training.images_seen))
    ends: list[float] = []
    module.heard = lambda step: ends.append(time.perf_counter())
    # pairs are not drawn for it: what is learnt does not matter here
    loop.train(module, replace(bench.train_data, noise=bench.train_data.latents), 0, (1 + timed) * study.training.batch)
    update_s = statistics.median(end - start for start, end in pairwise(ends))
    network.eval()
    captions, text, noise = bench.drawn
    rows = slice(0, min(SCORE_BATCH, len(noise)))
    count = len(noise[rows])
    some = Text(text.tokens[rows], text.pooled[rows])
    steps = study.sampling.steps if study.sampling.solver == AUTOREGRESSIVE else min(STEPS, study.sampling.steps)
    plan = study.sampling.model_copy(update={"cache": None}).changed(steps)
    draw = partial(solvers.sample, network, plan, objective.schedule_config)
    with torch.no_grad():
        bench.autoencoder.decode(draw(noise[:1], Text(some.tokens[:1], some.pooled[:1]), bench.train_data.null))
        laps = [time.perf_counter()]  # what is done for the first time is slow
        latents = draw(noise[rows], some, bench.train_data.null)
        laps.append(time.perf_counter())
        images = bench.autoencoder.decode(latents)
    laps.append(time.perf_counter())
    for metric in bench.metrics:
        metric.reset()
        metric.update(images, captions[rows])
    laps.append(time.perf_counter())
    for metric in bench.metrics:
        metric.compute()
        metric.reset()
    laps.append(time.perf_counter())
    draw_s, decode_s, judge_s, compute_s = (end - start for start, end in pairwise(laps))
    call_s = draw_s / (count * plan.calls)
    return Pace(load_s, update_s, call_s, decode_s / count, judge_s / count, compute_s, bench.loss_passes)
