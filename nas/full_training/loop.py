"""A network trained at deploy scale on the user's own pictures, in a folder that `nas sample` and `nas export` read.

    training.yaml            what is trained and how: the same command goes on, another one is refused
    checkpoint.safetensors   where it stands
    log.csv                  loss, pictures a second and memory on the way
    export.yaml, ...         the export, written anew at the end of every stage

Several devices: each is a process of Lightning's that runs the same command; rank 0 alone writes and prints.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import nn

from nas import failures, interruption, menu
from nas.deploy import drawer, export
from nas.deploy.contents import standalone
from nas.deploy.contents.export_folder import LOG, MANIFEST, SETTINGS
from nas.deploy.contents.model_card import write_card
from nas.disk import files, lock, weight_files
from nas.documents import yaml_text
from nas.errors import InputError
from nas.full_training import job, recipe
from nas.full_training.job import Job
from nas.full_training.recipe import Recipe
from nas.full_training.watch import Say, Watch, is_first, save
from nas.networks import autoencoders, conditioning
from nas.networks.backbones import Backbone, Proxy
from nas.seeds import stream_seed
from nas.training import loop
from nas.training.loop import DenoiserTraining, Hardware
from nas.training.streaming import Frozen, Reading, Stream
from nas.trial.bench import fresh
from nas.weights import checkpoints

PIPELINE = ("conditioning", "autoencoder", "objective", "sampling")


def run(made: Job, say: Say) -> Path:
    """Train, or go on with it, and return the folder. Raises InputError, and Interrupted once a checkpoint is saved."""
    say = say if is_first() else _silent
    _check_folder(made)
    interruption.install_in_trainer()
    frozen = _frozen(made.recipe)
    network = _network(made, frozen)
    new = not made.out.exists()
    try:
        with _recorded(made):
            _train(made, network, frozen, say)
    except InputError:
        if new and is_first() and not (made.checkpoint.exists() or (made.out / LOG).exists()):
            shutil.rmtree(made.out, ignore_errors=True)  # found while reading the data: leave nothing behind
        raise
    return made.out


def _train(made: Job, network: nn.Module, frozen: Frozen, say: Say) -> None:
    """Go through the stages that are left."""
    parameters = sum(p.numel() for p in network.parameters())
    say(f"{made.name}: {parameters:,} parameters, {len(made.recipe.stages)} stages, in {made.out}")
    stage = _stage_reached(made)
    if stage == len(made.recipe.stages):
        say("trained to the end already")
        return
    module = _module(made, network, stage)
    if made.checkpoint.exists():
        module.restore(made.checkpoint)
        say(f"going on from {module.images_seen:,} images of stage {stage + 1}")
    for current in range(stage, len(made.recipe.stages)):
        _enter(module, made, current)
        _train_stage(made, module, frozen, current, say)
        _finish_stage(made, module, network, frozen, current, say)


def _silent(line: str) -> None:
    """Of a process that is not rank 0."""


def _check_folder(made: Job) -> None:
    """Raises InputError when the folder holds something else than a part of this training."""
    if not made.checkpoint.exists():
        if (made.out / MANIFEST).exists():
            raise InputError(
                f"{made.out}: holds an export that nas train did not write; choose another folder with --out"
            )
        return
    found, wanted = yaml.safe_load((made.out / SETTINGS).read_text(encoding="utf-8")), made.settings()
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise InputError(
                f"{made.out}: holds a training with {name} {_brief(found.get(name))}, not {_brief(wanted[name])}; "
                "choose another folder with --out"
            )


def _recorded(made: Job) -> AbstractContextManager[Any]:
    """The folder with its settings, held by rank 0. Raises InputError when another process trains in it."""
    if not is_first():
        return nullcontext()
    made.out.mkdir(parents=True, exist_ok=True)
    held = lock.hold(made.out, "another process is training in it; wait for it or choose another folder with --out")
    _check_folder(made)  # again: the process that held it may have left a checkpoint
    files.write_yaml(made.out / SETTINGS, made.settings())
    return held


def _brief(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 120 else f"{text[:117]}..."


def _frozen(given: Recipe) -> Frozen:
    entry = given.autoencoder
    assert entry is not None and given.conditioning is not None
    autoencoder: autoencoders.Autoencoder = menu.pick("autoencoders", entry.name).load(entry.settings("autoencoders"))
    return Frozen(autoencoder, conditioning.load(given.conditioning))


def scaled(made: Job, frozen: Frozen) -> Backbone:
    """The network that is trained: the architecture with the ends its frozen models need. InputError where a width does not
    divide, or a stage's pictures do not."""
    encoder, autoencoder = frozen.encoder, frozen.autoencoder
    proxy = Proxy(made.recipe.width_divisor, autoencoder.channels, encoder.width, encoder.pooled_width)
    try:
        config = made.architecture.scaled(proxy)
    except ValueError as error:
        raise InputError(f"width_divisor: {error}") from None
    for number, stage in enumerate(made.recipe.stages):
        side, rest = divmod(stage.image_size, autoencoder.factor)
        try:
            if rest:
                raise ValueError(f"expected a multiple of {autoencoder.factor}, the autoencoder's factor")
            config.cost(side, encoder.length)
        except ValueError as error:
            raise InputError(f"stages.{number}.image_size: {stage.image_size}: {error}") from None
    return config


def _network(made: Job, frozen: Frozen) -> nn.Module:
    network = fresh(scaled(made, frozen), made.recipe.seed)
    if made.recipe.start is not None:
        checkpoints.load_weights(network, checkpoints.checkpoint_file(made.recipe.start, "start"), "start")
    return network


def _stage_reached(made: Job) -> int:
    if not made.checkpoint.exists():
        return 0
    return int(weight_files.metadata(made.checkpoint, "checkpoint")["stage"])


def _module(made: Job, network: nn.Module, stage: int) -> DenoiserTraining:
    entry = made.recipe.objective
    objective = menu.pick("objectives", entry.name).Objective
    teacher = copy.deepcopy(network).eval().requires_grad_(False) if "teacher" in objective.requires else None
    module = DenoiserTraining(objective(network, teacher, entry.settings("objectives")), made.recipe.training(stage))
    if module.objective.critics and made.hardware.devices > 1:
        raise InputError(f"--devices {made.hardware.devices}: objective {entry.name} has a critic; expected 1 device")
    return module


def _enter(module: DenoiserTraining, made: Job, stage: int) -> None:
    """Give the module a stage's settings, as it would have been built with them."""
    module.settings = made.recipe.training(stage)
    module.ema.warmup = module.settings.init == "scratch"
    now = made.recipe.stages[stage]
    share = now.batch // made.hardware.devices
    module.parts = -(-share // (now.micro_batch or share))


def _train_stage(made: Job, module: DenoiserTraining, frozen: Frozen, stage: int, say: Say) -> None:
    given, settings = made.recipe, module.settings
    stop = settings.updates(given.stages[stage].images)
    if module.step >= stop:
        return
    reading = Reading(
        settings.batch, settings.caption_dropout, stream_seed(given.seed, stage), given.window, given.readers
    )
    stream = Stream(given.data(stage), frozen, reading, module.step, stop, lambda: module.device)
    watch = Watch(made, stage, stop, say)
    try:
        with interruption.computing():
            loop.fit(module, stream, stop, made.hardware, [watch])
    except interruption.Interrupted:
        watch.report(module)
        save(made, module, stage)
        say(
            f"told to end: saved at {module.images_seen:,} images of stage {stage + 1}; the same command goes on from there"
        )
        raise
    except failures.Diverged as error:
        raise InputError(
            f"{made.out}: {error} of stage {stage + 1}; try a lower learning_rate in another folder (--out)"
        ) from None
    watch.report(module)
    save(made, module, stage)  # before the export: a folder without a checkpoint is not nas train's


def _finish_stage(
    made: Job, module: DenoiserTraining, network: nn.Module, frozen: Frozen, stage: int, say: Say
) -> None:
    """Write the export, then the checkpoint that the next stage begins with."""
    if is_first():
        module.swap_average()
        write(made, network, frozen, stage)
        module.swap_average()
    module.step = 0
    save(made, module, stage + 1)
    size = made.recipe.stages[stage].image_size
    say(f"stage {stage + 1} ({size} px) is done; draw with: nas sample {made.out} 'a caption'")


# --- the folder ------------------------------------------------------------------------------------------------------


def write(made: Job, network: nn.Module, frozen: Frozen, stage: int) -> None:
    """The export of a network that was trained to the end of a stage."""
    config = scaled(made, frozen)
    size = made.recipe.stages[stage].image_size
    folder = made.out / checkpoints.TRAINED
    folder.mkdir(exist_ok=True)
    images = sum(one.images for one in made.recipe.stages[: stage + 1])
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "weights.safetensors", {"images_seen": str(images)})
    files.write_yaml(folder / "config.yaml", config.to_dict())
    pipeline = {**{section: made.settings()[section] for section in PIPELINE}, "image_size": size}
    files.write_yaml(made.out / "pipeline.yaml", pipeline)
    side = size // frozen.autoencoder.factor
    deploy = {
        "from": {"trained": made.name},
        "key": made.architecture.key,
        "architecture": made.architecture.to_dict(),
        "cost": asdict(config.cost(side, frozen.encoder.length)),
        "images_seen": images,
        "stages": stage + 1,
        "seed": made.recipe.seed,
    }
    files.write_yaml(made.out / "deploy.yaml", deploy)
    latents = (frozen.autoencoder.channels, side, side)
    held = {"denoiser": export.entry_of(made.out, folder / "weights.safetensors")}
    formats = {"safetensors": {"fp32": {"networks": held}}}
    standalone.write(made.out, frozen.encoder, latents, pipeline, formats)
    manifest = {"version": drawer.VERSION, "formats": formats, "latents": list(latents)}
    files.write_yaml(made.out / MANIFEST, manifest)
    write_card(made.out)


def start(
    what: str,
    path: Path | None,
    overrides: Sequence[str],
    data: str | None,
    out: Path | None,
    hardware: Hardware,
    dry_run: bool,
    say: Say,
) -> None:
    """`nas train`; a dry run prints the recipe, as a file that `--recipe` reads."""
    with recipe.opened(path, overrides, data) as given:
        made = job.load(what, given, out, hardware)
        if dry_run:
            shown = {name: value for name, value in made.settings().items() if name != "architecture"}
            return say(yaml_text.written(shown).rstrip())
        run(made, say)
