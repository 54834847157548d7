"""Trainings of what is no denoiser: decoders, autoencoders, judges. Update i is a pure function of (seed, i), so a training that
goes on from its checkpoint ends in the same weights."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nas import interruption
from nas.disk import files, weight_files
from nas.failures import Diverged
from nas.networks.averages import Average
from nas.numbers import trained

EMA_DECAY = 0.998  # as in the training of the shipped autoencoders
CLIP = 1.0  # of the norm of the gradient
REPORT_SECONDS, SAVE_SECONDS = 30.0, 60.0
Lessons = TypeVar("Lessons")


class Fitting(ABC, Generic[Lessons]):
    """A network, its moving average and its optimiser."""

    role = "network"  # what a checkpoint calls its weights

    def __init__(self, network: nn.Module, adam: torch.optim.Optimizer, updates: int, batch: int):
        self.network, self.adam, self.updates, self.batch = network, adam, updates, batch
        self.average = Average(network, EMA_DECAY, warmup=True)
        self.step = 0

    @property
    def images_seen(self) -> int:
        return self.step * self.batch

    @abstractmethod
    def loss(self, lessons: Lessons) -> Tensor:
        """That of update number `step`, a scalar."""

    @abstractmethod
    def rate(self) -> float:
        """The learning rate of update number `step`."""

    def update(self, lessons: Lessons) -> float:
        """One update; returns its loss."""
        self.adam.param_groups[0]["lr"] = self.rate()
        loss = self.loss(lessons)
        self.adam.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.adam.step()
        self.step += 1
        self.average.update(self.network, self.step)
        return float(loss.detach())

    def averaged(self) -> nn.Module:
        """The network with its averaged weights, frozen: the end of the training."""
        self.average.swap(self.network)
        return self.network.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Weights, averages and moments in one file, replaced at once."""
        tensors = {f"{self.role}.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.weights.items()}
        for index, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        with files.replacing(path) as partial:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial, {"step": str(self.step)})

    def restore(self, path: Path) -> None:
        """Go on from `save`'s file."""
        tensors, metadata = weight_files.read(path, "checkpoint")
        self.step = int(metadata["step"])
        self.network.load_state_dict(_below(tensors, f"{self.role}."))
        self.average.restore(_below(tensors, "average."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, "adam.").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})


def train(
    made: Fitting[Lessons],
    lessons: Lessons,
    checkpoint: Path | None = None,
    name: str = "network",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train to the end, from the checkpoint where there is one. Raises Interrupted once a checkpoint is saved, and Diverged."""
    if checkpoint is not None and checkpoint.exists():
        made.restore(checkpoint)
        say(f"{name}: going on from {made.images_seen:,} images")
    began = told = saved = time.perf_counter()
    start, losses = made.step, []
    while made.step < made.updates:
        losses.append(made.update(lessons))
        if not math.isfinite(losses[-1]):
            raise Diverged(f"{name}: the loss is {losses[-1]} after {made.images_seen:,} images")
        now = time.perf_counter()
        if now - told >= REPORT_SECONDS or made.step == made.updates:
            pace = (made.step - start) * made.batch / (now - began)
            mean, told = sum(losses) / len(losses), now
            say(f"{name}  {trained(made.images_seen, made.updates * made.batch, pace)}  loss {mean:.3g}")
            losses.clear()
        if checkpoint is not None and (now - saved >= SAVE_SECONDS or interruption.asked()):
            made.save(checkpoint)
            saved = now
        interruption.check()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
