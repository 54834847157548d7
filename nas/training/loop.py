"""One LightningModule carries any objective. Update i of a trial is a pure function of (seed, i), so a resumed trial
repeats nothing and skips nothing, and no generator state needs saving."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from nas import interruption
from nas.disk import files, weight_files
from nas.errors import InputError
from nas.failures import Diverged
from nas.networks.averages import Average
from nas.objectives import FROZEN, LatentBatch, Objective
from nas.settings.training import Training
from nas.training import block_drop
from nas.training.batches import Batches
from nas.training.encoded import EncodedSet

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
FINITE_CHECK_EVERY = 20  # updates; reading the loss waits for the device


class DenoiserTraining(L.LightningModule):
    """Alternates updates of the objective's critics and its generator; optimisation is manual because critics need it."""

    def __init__(self, objective: Objective, settings: Training, images_seen: int = 0, parts: int = 1):
        """`parts`: pieces of a batch whose gradients are added up before an update."""
        super().__init__()
        self.parts = parts
        self.automatic_optimization = False
        self.objective = objective
        self.settings = settings
        self.step = settings.updates(images_seen)
        self.ema = self._average(objective.generator)
        averaged = {name: critic.network for name, critic in objective.critics.items() if critic.averaged}
        self.averages = nn.ModuleDict({name: self._average(network) for name, network in averaged.items()})
        self.adam = {"generator": self._adamw(objective.generator, 1.0, settings.betas)}
        for name, critic in objective.critics.items():
            self.adam[name] = self._adamw(critic.network, critic.learning_rate, critic.betas or settings.betas)
        self.loss = torch.tensor(math.nan)
        self.heard: Callable[[int], None] = ignored  # told the number of updates after each
        self.log_sums: dict[str, tuple[int, Tensor]] = {}
        self.kept: dict[str, int] = {}  # updates that each block was computed in, where any is left out

    def _average(self, network: nn.Module) -> Average:
        return Average(network, self.settings.ema_decay, warmup=self.settings.init == "scratch")

    def _adamw(self, network: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
        """AdamW whose learning rate is always `rate` times that of the settings, which may change between updates."""
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [{"params": trained, "rate": rate}]
        return torch.optim.AdamW(groups, betas=betas, weight_decay=self.settings.weight_decay)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self.adam.values())

    def training_step(self, batch: LatentBatch, batch_index: int) -> None:
        optimizers = self.optimizers()
        generator, *critics = optimizers if isinstance(optimizers, list) else [optimizers]
        with self._without_blocks(batch):
            for (name, critic), optimizer in zip(self.objective.critics.items(), critics, strict=True):
                for _ in range(critic.updates if self.step % critic.every == 0 else 0):
                    self._update(name, optimizer, critic.loss, batch)
            self.loss = self._update("generator", generator, self.objective.generator_loss, batch)
        self.objective.after_step()
        self._log(self.objective.logged)
        self.objective.logged.clear()
        self.step += 1
        for average, network in self._averaged():
            average.update(network, self.step)
        self.heard(self.step)
        if self.step % FINITE_CHECK_EVERY == 0 and not math.isfinite(self.loss):
            raise Diverged(f"the loss is {self.loss.item()} after {self.step * self.settings.batch:,} images")
        if self.trainer.world_size == 1:  # several devices must agree on it: `nas.full_training.loop`
            interruption.check()

    @cached_property
    def _blocks(self) -> block_drop.Blocks:
        return block_drop.blocks_of(self.objective.generator)

    def _without_blocks(self, batch: LatentBatch) -> AbstractContextManager[Any]:
        """Within it the generator is without the blocks that `block_drop` leaves out of this update."""
        settings = self.settings.block_drop
        if settings is None:
            return nullcontext()
        rise = self._risen(settings.rise_images)
        dropped = block_drop.drawn(len(self._blocks.members), settings.probability * rise, batch.generator)
        self._log({"blocks_dropped": dropped.sum()})
        for name, left_out in zip(self._blocks.names, dropped.tolist(), strict=True):
            self.kept[name] = self.kept.get(name, 0) + (not left_out)
        return block_drop.dropping(self._blocks, dropped)

    def _update(self, role: str, optimizer: Any, loss_of: Any, batch: LatentBatch) -> Tensor:
        (group,) = optimizer.param_groups
        group["lr"] = self.settings.learning_rate * group["rate"] * self._risen(self.settings.warmup_images)
        optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        pieces = batch.split(self.parts)
        for number, piece in enumerate(pieces, 1):
            part: Tensor = loss_of(piece) * (len(piece.latents) / len(batch.latents))
            with nullcontext() if number == len(pieces) else self._unsynchronised():
                self.manual_backward(part)
            loss = loss + part.detach()
        norm = nn.utils.clip_grad_norm_(group["params"], self.settings.gradient_clip)
        optimizer.step()
        self._log({f"{role}_loss": loss, f"{role}_gradient_norm": norm.detach()})
        return loss

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        """Within it gradients stay on their device: other devices get their sum with the last piece's."""
        block = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        found: AbstractContextManager[Any] = block()
        return found

    def _log(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            count, total = self.log_sums.get(name, (0, torch.zeros((), device=value.device)))
            self.log_sums[name] = (count + 1, total + value.float())  # many bf16 numbers do not add up

    def logged(self) -> dict[str, float]:
        """Means since the last call, over the updates that had them: both losses, gradient norms before clipping, and what
        the objective logs."""
        means = {name: float(total / count) for name, (count, total) in self.log_sums.items()}
        self.log_sums.clear()
        return means

    def _risen(self, images: int) -> float:
        """How far a linear rise over so many images has come with this update, of 1."""
        updates = self.settings.updates(images)
        return min(1.0, (self.step + 1) / updates) if updates else 1.0

    def swap_average(self) -> None:
        """Exchange weights with their moving average, the generator's and others' that have one; a second call undoes it."""
        for average, network in self._averaged():
            average.swap(network)

    def _averaged(self) -> list[tuple[Average, nn.Module]]:
        """Every moving average with its network."""
        critics = self.objective.critics
        others = [(cast(Average, average), critics[name].network) for name, average in self.averages.items()]
        return [(self.ema, self.objective.generator), *others]

    @property
    def images_seen(self) -> int:
        return self.step * self.settings.batch

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """All that moves in one safetensors file, replaced atomically: weights that are trained, averaged weights and
        optimiser moments."""
        tensors = {f"ema.{name}": value for name, value in self.ema.weights.items()}
        for role, average in self.averages.items():
            tensors |= {f"average.{role}.{name}": value for name, value in cast(Average, average).weights.items()}
        for role, network in self._moving().items():
            tensors |= {f"{role}.{name}": value for name, value in _state(network, frozen=False).items()}
        for role, adam in self.adam.items():
            for index, state in adam.state_dict()["state"].items():
                tensors |= {f"adam.{role}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        known = {"images_seen": str(self.images_seen)} | ({"kept": json.dumps(self.kept)} if self.kept else {})
        with files.replacing(path) as partial:
            save_file(contiguous, partial, {**metadata, **known})

    def restore(self, path: Path) -> None:
        """Continue from `save`'s file, in a module made as the saved one was."""
        tensors, metadata = weight_files.read(path, "checkpoint")
        self.step = self.settings.updates(int(metadata["images_seen"]))
        self.kept = json.loads(metadata.get("kept", "{}"))
        self.ema.restore(_below(tensors, "ema."))
        for role, average in self.averages.items():
            cast(Average, average).restore(_below(tensors, f"average.{role}."))
        for role, network in self._moving().items():
            network.load_state_dict(_state(network, frozen=True) | _below(tensors, f"{role}."))
        for role, adam in self.adam.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"adam.{role}.").items():
                index, _, name = key.partition(".")
                state.setdefault(int(index), {})[name] = value
            adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})

    def _moving(self) -> dict[str, nn.Module]:
        """The objective's submodules but those that never change."""
        return {role: network for role, network in self.objective.named_children() if role not in FROZEN}


def ignored(count: int) -> None:
    """Whoever is told and does not care."""


def _state(network: nn.Module, frozen: bool) -> dict[str, Tensor]:
    """Frozen parameters, or everything else: parameters that are trained, and buffers."""
    never = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in network.state_dict().items() if (name in never) == frozen}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Pace:
    """How fast a training went."""

    images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Hardware:
    """What a training runs on; the names are Lightning's."""

    devices: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"


def train(module: DenoiserTraining, data: EncodedSet, seed: int, images_seen: int) -> Pace:
    """Train until `images_seen` images in total. Raises Diverged, and Interrupted between two updates."""
    start, stop = module.step, module.settings.updates(images_seen)
    if stop <= start:
        return Pace(0, 0.0)
    if len(data) == 0:
        raise InputError("dataset: the training split is empty")
    began = time.perf_counter()
    fit(module, Batches(data, module.settings, seed, start, stop), stop)
    return Pace((stop - start) * module.settings.batch, time.perf_counter() - began)


def _strategy(hardware: Hardware) -> str | Strategy:
    """Several devices do not send round the averages, which move alike on all of them."""
    return DDPStrategy(broadcast_buffers=False) if hardware.devices > 1 else hardware.strategy


def fit(
    module: DenoiserTraining,
    batches: IterableDataset[LatentBatch],
    stop: int,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Train on the batches, which end before update `stop`. Raises Diverged, and Interrupted between two updates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # few workers, no scheduler: both are meant
        trainer = L.Trainer(
            max_epochs=1,
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy=_strategy(hardware),
            precision="bf16-mixed" if module.settings.precision == "bf16" else "32-true",
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, DataLoader(batches, batch_size=None))
        except SystemExit:  # Lightning's own answer to SIGTERM, where it notices first
            interruption.check()
            raise
    if module.step < stop:
        interruption.check()
    if not math.isfinite(module.loss):
        raise Diverged(f"the loss is {module.loss.item()} after {module.images_seen:,} images")
