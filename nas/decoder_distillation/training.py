"""A small decoder trained to the pictures of a large one. Update i is a pure function of (seed, i), so a training that goes on
from its checkpoint ends in the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from nas import interruption
from nas.disk import files, weight_files
from nas.failures import Diverged
from nas.networks.autoencoders.kl import Decoder
from nas.networks.averages import Average
from nas.numbers import duration
from nas.seeds import stream_seed

EMA_DECAY = 0.998  # as in the training of the shipped autoencoders
BETAS = (0.9, 0.99)
CLIP = 1.0  # of the norm of the gradient
REPORT_SECONDS, SAVE_SECONDS = 30.0, 60.0


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained. SnapFusion publishes the loss alone."""

    images_seen: int = 16_384
    """Latents, those seen again counted again."""
    batch: int = 16
    learning_rate: float = 1e-3
    """Adam's; falls to zero as half a cosine."""
    seed: int = 0
    """Which latents an update sees."""

    @property
    def updates(self) -> int:
        return math.ceil(self.images_seen / self.batch)


def loss_of(student: Decoder, teacher: Decoder, latents: Tensor) -> Tensor:
    """Mean squared difference of what two decoders make of latents (B, C, H, W), before pixels are bounded; a scalar."""
    with torch.no_grad():
        wanted = teacher.unbounded(latents)
    return F.mse_loss(student.unbounded(latents), wanted)


class Distillation:
    """A student, its moving average and its optimiser."""

    def __init__(self, student: Decoder, teacher: Decoder, recipe: Recipe):
        self.student, self.teacher, self.recipe = student.train().requires_grad_(), teacher, recipe
        self.average = Average(student, EMA_DECAY, warmup=True)
        self.adam = torch.optim.Adam(student.parameters(), lr=recipe.learning_rate, betas=BETAS)
        self.step = 0

    @property
    def images_seen(self) -> int:
        return self.step * self.recipe.batch

    def update(self, latents: Tensor) -> float:
        """One update on some of the latents (N, C, H, W); returns its loss."""
        generator = torch.Generator().manual_seed(stream_seed(self.recipe.seed, self.step))
        rows = torch.randint(len(latents), (self.recipe.batch,), generator=generator)
        (group,) = self.adam.param_groups
        group["lr"] = self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.updates))
        loss = loss_of(self.student, self.teacher, latents[rows])
        self.adam.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(group["params"], CLIP)
        self.adam.step()
        self.step += 1
        self.average.update(self.student, self.step)
        return float(loss.detach())

    def averaged(self) -> Decoder:
        """The student with its averaged weights, frozen: the end of the training."""
        self.average.swap(self.student)
        return self.student.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Weights, averages and moments in one file, replaced at once."""
        tensors = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.weights.items()}
        for index, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        with files.replacing(path) as partial:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial, {"step": str(self.step)})

    def restore(self, path: Path) -> None:
        """Go on from `save`'s file."""
        tensors, metadata = weight_files.read(path, "checkpoint")
        self.step = int(metadata["step"])
        self.student.load_state_dict(_below(tensors, "student."))
        self.average.restore(_below(tensors, "average."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, "adam.").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})


def train(made: Distillation, latents: Tensor, checkpoint: Path, name: str, say: Callable[[str], None]) -> None:
    """Train to the end, from the checkpoint where there is one. Raises Interrupted once a checkpoint is saved, and Diverged."""
    if checkpoint.exists():
        made.restore(checkpoint)
        say(f"{name}: going on from {made.images_seen:,} images")
    began = told = saved = time.perf_counter()
    start, losses = made.step, []
    while made.step < made.recipe.updates:
        losses.append(made.update(latents))
        if not math.isfinite(losses[-1]):
            raise Diverged(f"{name}: the loss is {losses[-1]} after {made.images_seen:,} images")
        now = time.perf_counter()
        if now - told >= REPORT_SECONDS or made.step == made.recipe.updates:
            pace = (made.step - start) * made.recipe.batch / (now - began)
            left = duration((made.recipe.updates - made.step) * made.recipe.batch / pace)
            mean, told = sum(losses) / len(losses), now
            total = made.recipe.updates * made.recipe.batch
            say(f"{name}  {made.images_seen:,}/{total:,} images  loss {mean:.3g}  {pace:.4g} images/s  {left} left")
            losses.clear()
        if now - saved >= SAVE_SECONDS or interruption.asked():
            made.save(checkpoint)
            saved = now
        interruption.check()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
