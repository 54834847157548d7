"""One trial, one rung at a time, in a worker process: build the proxy, train, sample, score."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics import Metric

from nas import autoencoders, conditioning, encoded, lora, menu, sampling, supernet, training
from nas.backbones import Proxy, unet
from nas.conditioning import Text
from nas.errors import InputError
from nas.metrics import Reference
from nas.objectives.denoising import denoising_error
from nas.pictures import save_grid
from nas.settings import Study

SCORE_BATCH = 64  # images decoded and scored at a time
GRID_COLUMNS, GRID_ROWS = 8, 4
LOSS_TIMES = 8  # times per image of the paired denoising loss


@dataclass(frozen=True)
class Job:
    """Everything a worker needs for one rung of one trial."""

    trial: int
    architecture: dict[str, Any]  # deploy scale, Config.to_dict()
    seed: int
    rung: int
    images_seen: int  # in total, at the end of this rung
    last: bool
    folder: Path


@dataclass
class Timings:
    """Seconds by phase; what no phase claims is overhead."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Bench:
    """What all trials of a study share inside one process: encoded data, frozen models, metrics, captions and noise."""

    def __init__(self, study: Study, cache: Path):
        self.study, self.cache = study, cache

    @cached_property
    def autoencoder(self) -> autoencoders.Autoencoder:
        entry = self.study.autoencoder
        loaded: autoencoders.Autoencoder = menu.pick("autoencoders", entry.name).load(entry.settings("autoencoders"))
        return loaded

    @cached_property
    def encoder(self) -> conditioning.TextEncoder:
        return conditioning.load(self.study.conditioning)

    def images(self, split: str) -> Any:
        entry = self.study.dataset
        return menu.pick("datasets", entry.name).load(entry.settings("datasets"), split)

    def data(self, split: str) -> encoded.EncodedSet:
        """The encoded split; made and cached on first use."""
        return self.train_data if split == "train" else self.held_out_data

    @cached_property
    def train_data(self) -> encoded.EncodedSet:
        return self._encoded("train")

    @cached_property
    def held_out_data(self) -> encoded.EncodedSet:
        return self._encoded("held_out")

    def _encoded(self, split: str) -> encoded.EncodedSet:
        resolved = self.study.resolved()
        identity = {key: resolved[key] for key in ("dataset", "autoencoder", "conditioning")}
        path = encoded.cache_path(self.cache, split=split, **identity)
        return encoded.load_or_encode(path, lambda: self.images(split), lambda: self.autoencoder, lambda: self.encoder)

    @cached_property
    def proxy(self) -> Proxy:
        data = self.train_data
        return Proxy(
            width_divisor=self.study.proxy.width_divisor,
            latent_channels=data.latents.shape[1],
            text_width=data.tokens.shape[2],
            pooled_width=data.pooled.shape[1],
        )

    @cached_property
    def drawn(self) -> tuple[list[str], Text, Tensor]:
        """The evaluation captions, their embeddings and the initial noise: the same for every trial."""
        evaluation, data = self.study.evaluation, self.data(self.study.evaluation.split)
        generator = torch.Generator().manual_seed(training.stream_seed(evaluation.seed, 1))
        if len(data) < evaluation.images:
            raise InputError(
                f"evaluation.images: {evaluation.images} captions asked for, but the {evaluation.split} split has "
                f"{len(data)} images"
            )
        rows = torch.randperm(len(data), generator=generator)[: evaluation.images]
        noise = torch.randn((len(rows), *data.latents.shape[1:]), generator=generator)
        return [data.captions[i] for i in data.caption_of[rows]], data.text(rows), noise

    @cached_property
    def metrics(self) -> list[Metric]:
        """The study's metrics, their references prepared from the training split."""
        reference = Reference(
            batches=lambda: self.images("train"),
            captions=list(self.train_data.captions[:-1]),
            cache=encoded.cache_path(self.cache, dataset=self.study.resolved()["dataset"]),
        )
        return [
            menu.pick("metrics", entry.name).build(entry.settings("metrics"), reference) for entry in self.study.metrics
        ]

    def prepare(self) -> None:
        """Make every cache that trials share."""
        _ = self.train_data, self.held_out_data, self.metrics, self.drawn

    def conditions(self) -> dict[str, dict[str, Any]]:
        """What each score depends on, by column."""
        evaluation = self.study.evaluation
        plan = self.study.sampling.model_dump(mode="json")
        shared = {"images": evaluation.images, "split": evaluation.split, "seed": evaluation.seed, **plan}
        described: dict[str, dict[str, Any]] = {
            str(metric.name): {
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                **shared,
                **dict(metric.conditions),  # type: ignore[arg-type]
            }
            for metric in self.metrics
        }
        described["denoising_loss"] = {
            "unit": "mean squared error",
            "higher_is_better": False,
            "split": "held_out",
            "times": LOSS_TIMES,
        }
        return described

    def scaled(self, architecture: dict[str, Any]) -> unet.Config:
        """The proxy of a deploy-scale architecture."""
        return unet.Config.from_dict(architecture).scaled(self.proxy)

    def network(self, proxy: unet.Config, seed: int) -> nn.Module:
        """A proxy network, initialised as training.init says."""
        init, space = self.study.training.init, self.study.space
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network: nn.Module = proxy.build()
        if init != "scratch":
            supernet.initialise(network, supernet.weights_path(init, space), space, self.proxy)
        return network

    def objective(self, network: nn.Module, seed: int) -> Any:
        """The study's objective over a network that has just been initialised, which is given its adapters here.

        The teacher, where one is needed, is the network as it was initialised.
        """
        entry, adapters = self.study.objective, self.study.training.lora
        made = menu.pick("objectives", entry.name).Objective
        teacher = copy.deepcopy(network).requires_grad_(False) if "teacher" in made.requires else None
        if adapters is not None:
            lora.adapt(network, adapters, seed)
        return made(network, teacher, entry.settings("objectives"))

    @torch.no_grad()
    def draw(self, network: nn.Module, schedule: dict[str, Any], images: int | None = None) -> Iterator[Tensor]:
        """Pictures (B, 3, H, W) of the first `images` evaluation captions, in [-1, 1], batch by batch."""
        _, text, noise = self.drawn
        total = len(noise) if images is None else images
        null = self.train_data.null
        for start in range(0, total, SCORE_BATCH):
            rows = slice(start, min(start + SCORE_BATCH, total))
            latents = sampling.sample(
                network, self.study.sampling, schedule, noise[rows], Text(text.tokens[rows], text.pooled[rows]), null
            )
            yield self.autoencoder.decode(latents)

    @torch.no_grad()
    def denoising_loss(self, network: nn.Module, schedule_config: dict[str, Any]) -> float:
        """Paired loss: the same held-out images, times and noise for every network, captions given."""
        data = self.held_out_data
        schedule: Any = DDPMScheduler.from_config(schedule_config)
        generator = torch.Generator().manual_seed(training.stream_seed(self.study.evaluation.seed, 2))
        rows = torch.arange(min(len(data), 256))
        steps = schedule.config["num_train_timesteps"]
        losses = []
        for index in range(LOSS_TIMES):
            time = torch.full((len(rows),), round((index + 0.5) * steps / LOSS_TIMES))
            noise = torch.randn((len(rows), *data.latents.shape[1:]), generator=generator)
            losses.append(denoising_error(network, schedule, data.latents[rows], data.text(rows), time, noise).mean())
        return float(torch.stack(losses).mean())


_bench: Bench | None = None


def start_worker(study: Study, cache: Path, threads: int) -> None:
    """What a worker process does once."""
    global _bench
    torch.set_num_threads(threads)
    _bench = Bench(study, cache)


def prepare() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """In a worker: make the shared caches; returns the conditions of each score, and the captions that are drawn."""
    assert _bench is not None
    _bench.prepare()
    return _bench.conditions(), _bench.drawn[0]


def run_rung(job: Job) -> dict[str, Any]:
    """In a worker: train to the rung's length and score. Raises training.Diverged; returns the rung's record."""
    assert _bench is not None
    return _run_rung(_bench, job)


def _run_rung(bench: Bench, job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    timings = Timings()
    with timings.phase("load_s"):
        bench.prepare()
        proxy = bench.scaled(job.architecture)
        network = bench.network(proxy, job.seed)
        objective = bench.objective(network, job.seed)
        module = training.DenoiserTraining(objective, bench.study.training)
        checkpoint = job.folder / "checkpoint.safetensors"
        if job.rung > 0:
            module.restore(checkpoint)
    with timings.phase("train_s"):
        pace = training.train(module, bench.train_data, job.seed, job.images_seen)
    module.ema.swap()
    network.eval()
    plain = lora.merged(network) if bench.study.training.lora is not None else network
    metrics = _score(bench, plain, objective.schedule_config, job.folder, timings)
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise training.Diverged(f"{', '.join(bad)} is not a finite number after {job.images_seen:,} images")
    with timings.phase("save_s"):
        weights = {name: value.detach().cpu().contiguous() for name, value in plain.state_dict().items()}
        save_file(weights, job.folder / "weights.safetensors", {"images_seen": str(module.images_seen)})
        if plain is not network:
            lora.save(network, job.folder / "adapters.safetensors", {"images_seen": str(module.images_seen)})
        module.ema.swap()
        if job.last:
            checkpoint.unlink(missing_ok=True)
        else:
            module.save(checkpoint, {"trial": str(job.trial)})
    timings.seconds["total_s"] = time.perf_counter() - began
    cost = proxy.cost(bench.train_data.latents.shape[-1], bench.train_data.tokens.shape[1])
    rung = {
        "rung": job.rung,
        "images_seen": module.images_seen,
        "metrics": metrics,
        "training": module.logged(),
        "timings": timings.seconds,
        "images_per_s": pace.images_per_s,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker": os.getpid(),
    }
    return {"rung": rung, "proxy": proxy.to_dict(), "proxy_cost": dataclasses.asdict(cost)}


def _score(
    bench: Bench, network: nn.Module, schedule: dict[str, Any], folder: Path, timings: Timings
) -> dict[str, float]:
    """Every metric of the study, and the paired denoising loss."""
    captions = bench.drawn[0]
    for metric in bench.metrics:
        metric.reset()
    done = 0
    shown: list[Tensor] = []
    pictures = bench.draw(network, schedule)
    while True:
        with timings.phase("sample_s"):
            images = next(pictures, None)
        if images is None:
            break
        with timings.phase("score_s"):
            for metric in bench.metrics:
                metric.update(images, captions[done : done + len(images)])
        done += len(images)
        shown.append(images[: max(0, GRID_COLUMNS * GRID_ROWS - sum(map(len, shown)))])
    with timings.phase("score_s"):
        values = {str(metric.name): float(metric.compute()) for metric in bench.metrics}
        values["denoising_loss"] = bench.denoising_loss(network, schedule)
    save_grid(torch.cat(shown), folder / "samples.png", GRID_COLUMNS)
    return values
