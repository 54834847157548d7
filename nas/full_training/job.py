"""What `nas train` trains: an architecture, a recipe, a folder and the hardware, checked before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nas import menu
from nas.deploy import drawer
from nas.deploy.contents import export_folder
from nas.deploy.contents.export_folder import CHECKPOINT
from nas.errors import InputError
from nas.full_training.recipe import Recipe
from nas.networks import conditioning, lora
from nas.networks.backbones import Backbone
from nas.objectives import check_drawing
from nas.settings.entries import Entry
from nas.space import published
from nas.training.loop import Hardware
from nas.weights import checkpoints, supernet

STRATEGIES = ("auto", "ddp")
SUPPLIED = {"teacher"}  # of what objectives ask for: the network that a training starts from


@dataclass(frozen=True)
class Job:
    """A training: what, how, and where it lies."""

    name: str
    architecture: Backbone
    """At deploy scale."""
    recipe: Recipe
    """With its autoencoder and text encoder filled in."""
    out: Path
    hardware: Hardware

    def settings(self) -> dict[str, Any]:
        """Everything that decides the weights, as plain values; not what it runs on."""
        plain = self.recipe.model_dump(mode="json")
        for section in ("dataset", "autoencoder", "objective"):
            plain[section] = dict(getattr(self.recipe, section))
        for section in ("readers", "checkpoint_minutes"):
            del plain[section]
        found: dict[str, Any] = yaml.safe_load(yaml.safe_dump({"architecture": self.architecture.to_dict(), **plain}))
        return found

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT


def load(what: str, given: Recipe, out: Path | None, hardware: Hardware) -> Job:
    """The training of an export's architecture, or of a preset's or YAML file's. Raises InputError for what cannot be."""
    folder = Path(what)
    found = _of_export(folder) if folder.is_dir() else {}
    architecture = found.get("architecture") or published.architecture(what)
    filled = given.model_copy(
        update={
            "conditioning": given.conditioning or found.get("conditioning") or conditioning.Conditioning(),
            "autoencoder": given.autoencoder or found.get("autoencoder") or Entry(name="kl"),
        }
    )
    name = folder.resolve().name if found else Path(what).stem
    made = Job(name, architecture, filled, out or Path("runs/train") / name, hardware)
    _check(made)
    return made


def _of_export(folder: Path) -> dict[str, Any]:
    drawer.read(folder)
    pipeline = export_folder.pipeline(folder)
    return {
        "architecture": export_folder.architecture(folder / export_folder.DEPLOY, "architecture"),
        "conditioning": conditioning.Conditioning(**pipeline["conditioning"]),
        "autoencoder": Entry(**pipeline["autoencoder"]),
    }


def _check(made: Job) -> None:
    """What can be known to be wrong before any model is loaded."""
    hardware, given = made.hardware, made.recipe
    if hardware.strategy not in STRATEGIES:
        raise InputError(
            f"--strategy: unknown strategy {hardware.strategy!r}{menu.nearest(hardware.strategy, list(STRATEGIES))} "
            "(weights are whole on every device, which the moving average and checkpoints rely on)"
        )
    for number, stage in enumerate(given.stages):
        if stage.batch % hardware.devices:
            raise InputError(f"stages.{number}.batch: {stage.batch} does not divide by --devices {hardware.devices}")
    objective = menu.pick("objectives", given.objective.name).Objective
    requires = objective.requires
    if objective.finishes:
        raise InputError(
            f"objective: {given.objective.name} makes its network at the end, of more than one that nas train keeps; expected "
            "another objective, or a study"
        )
    if strange := sorted(requires - SUPPLIED):
        raise InputError(
            f"objective: {given.objective.name} needs {' and '.join(strange)}, which nas train does not have"
        )
    if requires and given.start is None:
        raise InputError(f"start: required by objective {given.objective.name}, which learns from a trained network")
    check_drawing(given.objective.name, given.sampling)
    for setting, adapters in lora.inside(given.objective.settings("objectives"), "objective"):
        lora.targets(supernet.skeleton(made.architecture), adapters, setting)
    _check_files(given)


def _check_files(given: Recipe) -> None:
    """Whether the pictures and the models are there, and go together."""
    assert given.autoencoder is not None and given.conditioning is not None
    if given.start is not None:
        checkpoints.checkpoint_file(given.start, "start")
    conditioning.check(given.conditioning, [])
    if given.conditioning.image != "none":
        raise InputError(
            f"conditioning.image: {given.conditioning.image}: nas train reads pictures as they come and embeds none of them; "
            "expected none"
        )
    chosen, settings = menu.pick("autoencoders", given.autoencoder.name), given.autoencoder.settings("autoencoders")
    if chosen.codes(settings) is not None:
        raise InputError(
            "autoencoder.latents: nas train learns numbers, and these are indices; expected quantised or unquantised"
        )
    autoencoder = chosen.load(settings)
    for number, stage in enumerate(given.stages):
        if stage.image_size % autoencoder.factor:
            raise InputError(
                f"stages.{number}.image_size: {stage.image_size}: expected a multiple of {autoencoder.factor}, "
                "the autoencoder's factor"
            )
    pictures = getattr(given.data(0), "items", None)
    if pictures is None:
        assert given.dataset is not None
        raise InputError(
            f"dataset: {given.dataset.name} makes its pictures as they are asked for, and nas train reads files; expected "
            "folder, webdataset or coco"
        )
    if next(iter(pictures), None) is None:
        raise InputError("dataset: no picture to train with")
