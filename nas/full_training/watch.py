"""What happens beside the updates of `nas train`: lines, the log, checkpoints, and one answer of all devices to SIGTERM."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from nas import interruption, machine
from nas.deploy.contents.export_folder import LOG
from nas.full_training.job import Job
from nas.numbers import trained
from nas.training.loop import DenoiserTraining

REPORT_SECONDS = 30.0
Say = Callable[[str], None]


def is_first() -> bool:
    """Whether this process is rank 0: Lightning knows before and after the processes are joined."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def save(made: Job, module: DenoiserTraining, stage: int) -> None:
    if is_first():
        module.save(made.checkpoint, {"stage": str(stage)})


class Watch(L.Callback):
    """What happens beside the updates: lines, checkpoints, and one answer of all processes to SIGTERM."""

    def __init__(self, made: Job, stage: int, stop: int, say: Say):
        self.made, self.stage, self.stop, self.say = made, stage, stop, say
        self.last_line = self.last_save = time.perf_counter()
        self.last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interruption.install_in_trainer()  # in place of Lightning's, which does not wait for the end of an update
        self.last_line = self.last_save = time.perf_counter()
        self.last_step = _training(pl_module).step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        module, now = _training(pl_module), time.perf_counter()
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(interruption.asked(), all=False):
            interruption.ask()
            trainer.should_stop = True
        if now - self.last_line >= REPORT_SECONDS:
            self.report(module)
        if now - self.last_save >= 60 * self.made.recipe.checkpoint_minutes:
            save(self.made, module, self.stage)
            self.last_save = time.perf_counter()

    def report(self, module: DenoiserTraining) -> None:
        """One line for people, and one in log.csv."""
        now, logged = time.perf_counter(), module.logged()
        if module.step == self.last_step or not is_first():
            return
        pace = (module.step - self.last_step) * module.settings.batch / max(now - self.last_line, 1e-9)
        memory = machine.peak_memory_mib()
        row: dict[str, Any] = {
            "stage": self.stage + 1,
            "image_size": self.made.recipe.stages[self.stage].image_size,
            "images_seen": module.images_seen,
            "loss": logged["generator_loss"],
            "gradient_norm": logged["generator_gradient_norm"],
            "images_per_s": pace,
            "peak_memory_mib": memory,
            "devices": self.made.hardware.devices,
            "device": machine.computing_device(),
        }
        _append(self.made.out / LOG, row)
        self.say(
            f"stage {row['stage']} ({row['image_size']} px)  "
            f"{trained(module.images_seen, self.stop * module.settings.batch, pace)}  "
            f"loss {row['loss']:.4f}  {memory / 1024:.2f} GiB"
        )
        self.last_line, self.last_step = now, module.step


def _training(module: L.LightningModule) -> DenoiserTraining:
    assert isinstance(module, DenoiserTraining)
    return module


def _append(path: Path, row: Mapping[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
