"""One trained network, captions with their noise, and how far pictures drawn by a schedule are from those drawn without one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from nas import failures, interruption, metrics, seeds
from nas.cost.units import Modes, Units
from nas.diffusion import solvers
from nas.diffusion.caches import cache_schedules
from nas.diffusion.plan import Plan
from nas.networks.conditioning import Text
from nas.trial import imagined
from nas.trial.bench import Bench

BATCH = 64  # pictures drawn at a time
STREAM = 5  # of a seed: the captions and noise of a search
GREYS = 127.5  # grey levels in a unit of a picture's numbers


@dataclass(frozen=True)
class Task:
    """Captions and the noise that their pictures start from."""

    captions: list[str]
    text: Text
    noise: Tensor
    """(N, C, H, W)"""

    @classmethod
    def calibration(cls, bench: Bench, images: int, seed: int) -> Self:
        """Captions of the training split, which a search may learn from."""
        data = bench.train_data
        generator = torch.Generator().manual_seed(seeds.stream_seed(seed, STREAM))
        rows = torch.randperm(len(data), generator=generator)[:images]
        noise = torch.randn((len(rows), *data.latents.shape[1:]), generator=generator)
        return cls(data.words(rows), imagined.text(bench, data, rows, seed), noise)

    @classmethod
    def held_out(cls, bench: Bench) -> Self:
        """The study's evaluation captions with their noise."""
        return cls(*bench.drawn)


@dataclass(frozen=True)
class Subject:
    """A network and how it is drawn where nothing is kept."""

    name: str
    bench: Bench
    network: nn.Module
    schedule: dict[str, Any]
    """Configuration of the noise schedule."""

    @cached_property
    def plan(self) -> Plan:
        """The study's own, without a cache."""
        return self.bench.study.sampling.model_copy(update={"cache": None})

    @cached_property
    def units(self) -> Units:
        """Those of the network, for the study's latents and captions."""
        found: Units = self.config.units(self.bench.train_data.latents.shape[-1], self.bench.train_data.tokens.shape[1])
        return found

    @property
    def config(self) -> Any:
        return self.network.config

    def fingerprint(self) -> str:
        """Twelve hex digits of the network's weights."""
        digest = hashlib.sha256()
        for tensor in self.network.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:12]

    def by(self, modes: Modes) -> Plan:
        """The plan with a schedule."""
        return self.plan.model_copy(update={"cache": cache_schedules.written(modes, self.units)})

    def latents(self, task: Task, plan: Plan) -> Iterator[Tensor]:
        """Latents (B, C, H, W) of the captions, batch by batch."""
        null = self.bench.train_data.null
        for start in range(0, len(task.captions), BATCH):
            interruption.check()
            rows = slice(start, start + BATCH)
            text = Text(task.text.tokens[rows], task.text.pooled[rows])
            yield solvers.sample(self.network, plan, self.schedule, task.noise[rows], text, null)

    @torch.no_grad()
    def pictures(self, task: Task, plan: Plan) -> Tensor:
        """Pictures (N, 3, S, S) of the captions. Raises Diverged where they are not finite numbers."""
        found = torch.cat([self.bench.autoencoder.decode(latents) for latents in self.latents(task, plan)])
        if not found.isfinite().all():
            raise failures.Diverged("the drawn pictures are not finite numbers")
        return found

    def scores(self, task: Task, pictures: Tensor) -> dict[str, float]:
        """The study's metrics, by column, of pictures (N, 3, S, S)."""
        parts = zip(torch.split(pictures, BATCH), _split(task.captions), strict=True)
        return metrics.scores(self.bench.metrics, parts)


def _split(captions: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(captions), BATCH):
        yield captions[start : start + BATCH]


@dataclass(frozen=True)
class Judge:
    """What a schedule is worth on some captions."""

    subject: Subject
    task: Task

    @cached_property
    def uncached(self) -> Tensor:
        """(N, 3, S, S)"""
        return self.pictures(self.subject.plan)

    def pictures(self, plan: Plan) -> Tensor:
        """(N, 3, S, S)"""
        return self.subject.pictures(self.task, plan)

    def distances(self, pictures: Tensor) -> Tensor:
        """Root mean square difference of each picture from the uncached one, in grey levels of 256, (N,)."""
        return GREYS * (pictures - self.uncached).square().mean(dim=(1, 2, 3)).sqrt()


Quality = Callable[[Judge, Tensor], float]  # of pictures, to be minimised
DISTANCE = "distance"


def quality(name: str, sign: int) -> Quality:
    """The mean distance from the uncached pictures, or a column of the study's metrics times its sign."""
    if name == DISTANCE:
        return lambda judge, pictures: float(judge.distances(pictures).mean())
    return lambda judge, pictures: sign * judge.subject.scores(judge.task, pictures)[name]
