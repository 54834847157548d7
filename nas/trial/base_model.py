"""The base model of a study: trained once, before any trial, and kept for every study that would train the same one.

It lies in `runs/.cache`, named by a hash of everything that went into it: architecture, data, proxy, objective, training,
seed, and the weights it started from. An interrupted training goes on from its last tenth. All trials share one base, so
intervals over repeats say nothing about what another base would have given.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import nn

from nas.disk import files
from nas.errors import InputError
from nas.networks import conditioning
from nas.networks.backbones import Backbone
from nas.seeds import trial_seed
from nas.settings import design
from nas.settings.study import Base, Study
from nas.training import encoded, loop
from nas.weights import inheritance, parts, supernet
from nas.weights.checkpoints import checkpoint_file, load_weights

if TYPE_CHECKING:
    from nas.trial.bench import Bench

PARTS = 10  # times a training is saved on its way


def base_of(study: Study) -> Base:
    """The `base` section. Raises InputError when something needs a base and the study has none."""
    if study.base is None:
        raise InputError("base: required, but not given: training.init or the objective needs a base model")
    return study.base


def as_study(study: Study) -> Study:
    """The study as its base is trained: the base's architecture, objective and training in place of its own."""
    base = base_of(study)
    architecture = base.architecture if base.architecture is not None else study.architecture
    sections = {"architecture": architecture, "objective": base.objective.model_dump()}
    return design.changed(study, {**sections, "training": base.training.model_dump()})


def architecture(study: Study) -> Backbone:
    """The base's canonical network at deploy scale."""
    return design.base_architecture(as_study(study)).canonical()


def bench_of(bench: Bench) -> Bench:
    """The bench on which the base is trained and drawn."""
    own = as_study(bench.study)
    return bench.variant({"objective": own.objective.model_dump(), "training": own.training.model_dump()})


def weights_path(bench: Bench) -> Path:
    """Where the base's weights are, or will be once it is trained."""
    study = bench.study
    base = base_of(study)
    if base.checkpoint is not None:
        return checkpoint_file(base.checkpoint)
    resolved = study.resolved()
    identity = parts.latents_of(bench.study) | {name: resolved[name] for name in ("proxy", "seed")}
    identity["conditioning"] = conditioning.identity(study.conditioning)
    identity |= {"objective": resolved["base"]["objective"], "training": resolved["base"]["training"]}
    started_from = digest(study, base.training.init)
    return encoded.cache_path(
        bench.cache / "base", architecture=architecture(study).to_dict(), started_from=started_from, **identity
    )


def digest(study: Study, init: str) -> str:
    """What a training starts from: a hash of the file `init` points to, or the word itself."""
    if init == "scratch":
        return init
    return hashlib.sha256(supernet.weights_path(init, study.space, study.dataset.name).read_bytes()).hexdigest()


def train(bench: Bench) -> Path:
    """Train the base unless it is there, and return the path of its weights (the moving average). Raises failures.Diverged.

    Given as a checkpoint, it is only checked: InputError when it belongs to another architecture.
    """
    path = weights_path(bench)
    if not path.exists():
        _train(bench_of(bench), bench.scaled(architecture(bench.study).to_dict()), path)
    network(bench)
    return path


def _train(bench: Bench, proxy: Backbone, path: Path) -> None:
    settings = bench.study.training
    seed = trial_seed(bench.study.seed, "base", 0)
    trained = bench.network(proxy, seed)
    module = loop.DenoiserTraining(bench.objective(trained, bench.study.seed), settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = path.with_suffix(".checkpoint")
    if checkpoint.exists():
        module.restore(checkpoint)
    for part in range(1, PARTS + 1):
        loop.train(module, bench.train_data, seed, round(settings.images_seen * part / PARTS))
        module.save(checkpoint, {})
    module.swap_average()
    weights = {name: value.detach().cpu().contiguous() for name, value in trained.state_dict().items()}
    with files.replacing(path) as partial:
        save_file(weights, partial, {"images_seen": str(module.images_seen)})
    checkpoint.unlink(missing_ok=True)  # two studies may share a base


def initialise(bench: Bench, network: nn.Module, proxy: Backbone) -> None:
    """Give a network, of this proxy, the base's weights, as `training.init` says. Raises InputError where they do not fit."""
    if bench.study.training.init == "base":
        load_weights(network, weights_path(bench), "training.init: base")
    else:
        own = bench.scaled(architecture(bench.study).to_dict())
        inheritance.inherit(network, bench.teacher, inheritance.sources(proxy, own))


def network(bench: Bench) -> nn.Module:
    """The trained base, frozen. Raises InputError when a checkpoint belongs to another architecture."""
    made: nn.Module = bench.scaled(architecture(bench.study).to_dict()).build()
    load_weights(made, weights_path(bench), "base.checkpoint")
    return made.eval().requires_grad_(False)
