"""Latents that a network draws by its own plan, kept on disk a batch to a file: what is drawn once is not drawn again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nas import seeds
from nas.disk import files, weight_files
from nas.failures import Diverged
from nas.networks.conditioning import Text
from nas.numbers import duration
from nas.schedules.drawing import BATCH, Subject, Task

STREAM = 6  # of a seed: the captions and noise that a decoder learns from
REPORT_SECONDS = 30.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Latents:
    """Those of one network, in a folder."""

    subject: Subject
    folder: Path
    seed: int

    def lessons(self, count: int, say: Say) -> Tensor:
        """The first `count` (count, C, H, W) of an endless stream: any captions of the training split, each with new noise."""
        return self._all("lessons", count, self._lesson, say)

    def held_out(self, say: Say) -> Tensor:
        """Those of the study's evaluation captions and their noise (N, C, H, W), which its scores are of."""
        return self._all("held-out", len(self.task.captions), self._part, say)

    @cached_property
    def task(self) -> Task:
        """The evaluation captions with their noise."""
        return Task.held_out(self.subject.bench)

    def _lesson(self, index: int) -> Task:
        """Batch `index` of the stream, whatever others are drawn."""
        data = self.subject.bench.train_data
        stream = seeds.stream_seed(seeds.stream_seed(self.seed, STREAM), index)
        generator = torch.Generator().manual_seed(stream)
        rows = torch.randint(len(data), (BATCH,), generator=generator)
        noise = torch.randn((BATCH, *data.latents.shape[1:]), generator=generator)
        return Task(data.words(rows), data.text(rows), noise)

    def _part(self, index: int) -> Task:
        rows, task = slice(index * BATCH, (index + 1) * BATCH), self.task
        return Task(task.captions[rows], Text(task.text.tokens[rows], task.text.pooled[rows]), task.noise[rows])

    def _all(self, name: str, count: int, task: Callable[[int], Task], say: Say) -> Tensor:
        """Raises Interrupted between two batches, and Diverged where the network draws no numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / f"{name}-{index:05d}.safetensors" for index in range(-(-count // BATCH))]
        missing = [index for index, path in enumerate(paths) if not path.exists()]
        began = told = time.perf_counter()
        for done, index in enumerate(missing, 1):
            self._draw(task(index), paths[index])
            now = time.perf_counter()
            if now - told >= REPORT_SECONDS or done == len(missing):
                left = duration((now - began) / done * (len(missing) - done))
                say(f"{name} latents  {min(count, BATCH * (index + 1)):,}/{count:,}  {left} left")
                told = now
        return torch.cat([weight_files.read(path, "latents").tensors["latents"] for path in paths])[:count]

    @torch.no_grad()
    def _draw(self, task: Task, path: Path) -> None:
        latents = torch.cat(list(self.subject.latents(task, self.subject.bench.study.sampling)))
        if not latents.isfinite().all():
            raise Diverged(f"the latents that {self.subject.name} draws are not finite numbers")
        with files.replacing(path) as partial:
            save_file({"latents": latents.contiguous()}, partial)
