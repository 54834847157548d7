"""A decoder trained on latents that do not move. Update i is a pure function of (seed, i), so a training that goes on from its
checkpoint ends in the same weights.

Either to real pictures, as MobileDiffusion trains its pruned one (arXiv 2311.16567): there is no KL term left, since nothing
moves the latents. The loss is L1 + L2 on pixels, as for the shipped autoencoder; MobileDiffusion has an adversarial term as
well, smaller than in the training of the whole. Or to what a whole decoder makes of the latents, as SnapFusion does (arXiv
2306.00980, section 3.2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

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

BATCH = 64  # pictures decoded at a time outside training
EMA_DECAY = 0.998  # as in the training of the shipped autoencoders
BETAS = (0.9, 0.99)
CLIP = 1.0  # of the norm of the gradient
REPORT_SECONDS, SAVE_SECONDS = 30.0, 60.0

Network = TypeVar("Network", bound=nn.Module)
Loss = Callable[[Tensor], Tensor]  # a scalar, of the latents in these rows (B,)


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained. SnapFusion publishes the loss alone."""

    images_seen: int = 16_384
    """Latents, those seen again counted again."""
    batch: int = 16
    learning_rate: float = 1e-3
    """AdamW's; falls to zero as half a cosine."""
    seed: int = 0
    """Which latents an update sees."""

    @property
    def updates(self) -> int:
        return math.ceil(self.images_seen / self.batch)


# --- losses ----------------------------------------------------------------------------------------------------------


def to_pictures(decoder: nn.Module, latents: Tensor, pictures: Tensor) -> Tensor:
    """L1 + L2 from what a decoder makes of latents (B, C, H, W), as it takes them, to pictures (B, 3, fH, fW) in [-1, 1]; a
    scalar. The network runs in bfloat16, the loss does not."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        made = decoder(latents)
    loss: Tensor = F.l1_loss(made.float(), pictures) + F.mse_loss(made.float(), pictures)
    return loss


def to_teacher(student: Decoder, teacher: Decoder, latents: Tensor) -> Tensor:
    """Mean squared difference of what two decoders make of latents (B, C, H, W), before pixels are bounded; a scalar."""
    with torch.no_grad():
        wanted = teacher.unbounded(latents)
    return F.mse_loss(student.unbounded(latents), wanted)


# --- training --------------------------------------------------------------------------------------------------------


class DecoderTraining(Generic[Network]):
    """A decoder, its moving average and its optimiser."""

    def __init__(self, decoder: Network, loss: Loss, count: int, recipe: Recipe, weight_decay: float = 0.0):
        """`count`: rows of latents that the loss may be asked for."""
        self.decoder, self.loss, self.count, self.recipe = decoder.train().requires_grad_(), loss, count, recipe
        self.average = Average(decoder, EMA_DECAY, warmup=True)
        rate, parameters = recipe.learning_rate, decoder.parameters()
        self.adam = torch.optim.AdamW(parameters, lr=rate, betas=BETAS, weight_decay=weight_decay)
        self.step = 0

    @property
    def images_seen(self) -> int:
        return self.step * self.recipe.batch

    def update(self) -> float:
        """One update; returns its loss."""
        generator = torch.Generator().manual_seed(stream_seed(self.recipe.seed, self.step))
        rows = torch.randint(self.count, (self.recipe.batch,), generator=generator)
        (group,) = self.adam.param_groups
        group["lr"] = self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.updates))
        loss = self.loss(rows)
        self.adam.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(group["params"], CLIP)
        self.adam.step()
        self.step += 1
        self.average.update(self.decoder, self.step)
        return float(loss.detach())

    def averaged(self) -> Network:
        """The decoder with its averaged weights, frozen: the end of the training."""
        self.average.swap(self.decoder)
        return self.decoder.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Weights, averages and moments in one file, replaced at once."""
        tensors = {f"student.{name}": value for name, value in self.decoder.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.weights.items()}
        for index, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        with files.replacing(path) as partial:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial, {"step": str(self.step)})

    def restore(self, path: Path) -> None:
        """Go on from `save`'s file."""
        tensors, metadata = weight_files.read(path, "checkpoint")
        self.step = int(metadata["step"])
        self.decoder.load_state_dict(_below(tensors, "student."))
        self.average.restore(_below(tensors, "average."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, "adam.").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})


def train(
    made: DecoderTraining[Network],
    checkpoint: Path | None = None,
    name: str = "decoder",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train to the end, from the checkpoint where there is one. Raises Interrupted once a checkpoint is saved, and Diverged."""
    if checkpoint is not None and checkpoint.exists():
        made.restore(checkpoint)
        say(f"{name}: going on from {made.images_seen:,} images")
    began = told = saved = time.perf_counter()
    start, losses = made.step, []
    while made.step < made.recipe.updates:
        losses.append(made.update())
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
        if checkpoint is not None and (now - saved >= SAVE_SECONDS or interruption.asked()):
            made.save(checkpoint)
            saved = now
        interruption.check()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


# --- what came of it -------------------------------------------------------------------------------------------------


@torch.no_grad()
def decoded(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Pictures (N, 3, fH, fW) in [-1, 1]."""
    return torch.cat([decoder(part).clamp(-1, 1) for part in torch.split(latents, BATCH)])


def psnr(made: Tensor, pictures: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; both (N, 3, H, W) in [-1, 1], so the peak is 2."""
    return float((10 * torch.log10(4 / (made - pictures).square().mean((1, 2, 3)))).mean())
