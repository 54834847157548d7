"""Scores the lines of reference (nas.analysis.reference_lines) in a worker: once for equal conditions, then from the cache."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas import failures, seeds
from nas.datasets import Batch
from nas.disk import files
from nas.networks import backbones
from nas.networks.backbones import Backbone
from nas.runs import pictures
from nas.runs.pictures import save_grid
from nas.seeds import trial_seed
from nas.settings.study import Study
from nas.training import encoded
from nas.trial import base_model, rung
from nas.trial.bench import GRID_COLUMNS, SHOWN, Bench, Captioned, fresh
from nas.weights import parts

DATA = ("dataset", "autoencoder", "conditioning", "evaluation", "metrics")  # sections that decide what pictures score
NETWORK = (*DATA, "proxy", "objective", "sampling", "deploy", "prior")  # and what a network draws
LINE = "line.json"
TRAINED = (*NETWORK, "training", "stopping", "space", "seed")
Found = dict[str, Any]  # a line's text, scores and cost


def measure(run: Path, settings: dict[str, Any], architecture: dict[str, Any], train: bool) -> dict[str, Found]:
    """In a worker: every line by name. Grids of the pictures go below `run`.

    `settings`: replaced in the study by path. `architecture`: the network that is untrained, and with `train` also the base
    that gets a trial's training.
    """
    bench = rung.bench().variant(settings)
    bench.prepare()
    config = backbones.from_dict(architecture)
    made: dict[str, tuple[tuple[str, ...], Callable[[Path], Found]]] = {
        "real": (DATA, lambda folder: _real(bench, folder)),
        "held_out": (DATA, lambda folder: _held_out(bench)),
        "autoencoded": (DATA, lambda folder: _autoencoded(bench, folder)),
        "untrained": (NETWORK, lambda folder: _untrained(bench, config, folder)),
    }
    if train:
        made["base"] = (TRAINED, lambda folder: _base(bench, config, folder))
    found = {}
    for name, (sections, make) in made.items():
        folder = _folder(bench.study, bench.cache, name, sections, architecture)
        found[name] = _kept(folder, make)
        _show(folder / "samples.png", pictures.picture(run, name))
    return {name: line for name, line in found.items() if line}


def known(study: Study, cache: Path, architecture: dict[str, Any]) -> bool:
    """Whether the lines of an untrained network and of all pictures were measured before."""
    of_pictures = [_folder(study, cache, name, DATA, architecture) for name in ("real", "held_out", "autoencoded")]
    folders = [*of_pictures, _folder(study, cache, "untrained", NETWORK, architecture)]
    return all((folder / LINE).exists() for folder in folders)


def _folder(study: Study, cache: Path, name: str, sections: tuple[str, ...], architecture: dict[str, Any]) -> Path:
    """Where a line is kept: what was measured under equal conditions has the same place."""
    resolved = study.resolved()
    identity: dict[str, Any] = {section: resolved[section] for section in sections if section in resolved}
    if made := parts.fingerprints(study):
        identity |= {"parts": made}
    if sections != DATA:
        identity |= {"architecture": architecture}
    if sections == TRAINED:
        identity |= {"start": base_model.digest(study, study.training.init)}
    return encoded.cache_path(cache / "lines", line=name, **identity).with_suffix("")


def _kept(folder: Path, make: Callable[[Path], Found]) -> Found:
    """What `make` found, kept in the folder; {}: the line does not apply."""
    path = folder / LINE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            line = make(folder)
        except failures.Diverged as error:
            line = {"told": f"no scores: {error}", "scores": {}}
        finite = {column: value for column, value in line.get("scores", {}).items() if math.isfinite(value)}
        files.write_json(path, {**line, "scores": finite} if line else {})
        (folder / rung.CHECKPOINT).unlink(missing_ok=True)
    return files.read_object(path)


def _show(picture: Path, place: Path) -> None:
    if picture.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, place)


def _real(bench: Bench, folder: Path) -> Found:
    split, rows = bench.study.evaluation.split, bench.rows
    first = {int(row): place for place, row in enumerate(rows[:SHOWN])}
    grid: dict[int, Tensor] = {}

    def noted() -> Iterator[Captioned]:
        for images, captions, numbers in _at(bench.images(split), rows):
            grid.update({first[n]: image for n, image in zip(numbers, images, strict=True) if n in first})
            yield images, captions

    scores = bench.rate(noted())
    save_grid(torch.stack([grid[place] for place in sorted(grid)]), folder / "samples.png", GRID_COLUMNS)
    note = "; they are among those a distance compares with" if split == "train" else ""
    return {"told": f"the {len(rows):,} real pictures of the captions that trials draw{note}", "scores": scores}


def _held_out(bench: Bench) -> Found:
    """Does not apply where trials draw held-out captions anyway, or too few pictures are held out: fewer score otherwise."""
    evaluation, size = bench.study.evaluation, len(bench.held_out_data)
    if evaluation.split == "held_out" or size < evaluation.images:
        return {}
    generator = torch.Generator().manual_seed(seeds.stream_seed(evaluation.seed, 3))
    rows = torch.randperm(size, generator=generator)[: evaluation.images]
    scores = bench.rate((images, captions) for images, captions, _ in _at(bench.images("held_out"), rows))
    return {"told": f"{len(rows):,} real pictures held out of training, with their own captions", "scores": scores}


def _autoencoded(bench: Bench, folder: Path) -> Found:
    latents = bench.data(bench.study.evaluation.split).latents[bench.rows]
    copies = (bench.autoencoder.decode(part) for part in torch.split(latents, 64))
    told = (
        "the real pictures of the captions that trials draw, encoded and decoded: what no trial can pass but by chance"
    )
    return {"told": told, "scores": bench.rate(bench.captioned(copies), picture=folder / "samples.png")}


def _untrained(bench: Bench, config: Backbone, folder: Path) -> Found:
    seed = trial_seed(bench.study.seed, config.key, 0)
    network = fresh(bench.scaled(config.to_dict()), seed)
    schedule = bench.objective(network, seed).schedule_config
    scores = bench.score(network.eval(), schedule, picture=folder / "samples.png").metrics
    return {
        "told": "a network with random weights, drawn as trials are",
        "scores": scores,
        "cost": _cost(bench, config),
    }


def _base(bench: Bench, config: Backbone, folder: Path) -> Found:
    """Trained as a trial of this architecture, rung by rung; its checkpoint lies in the folder until it is done."""
    study, seed = bench.study, trial_seed(bench.study.seed, config.key, 0)
    last = len(study.stopping.rungs) - 1
    images = round(study.stopping.rungs[last] * study.training.images_seen)
    job = rung.Job(-1, config.to_dict(), seed, last, images, folder)
    scores = rung.run_on(bench, job)["rung"]["metrics"]
    told = f"the base network of the space after a trial's training ({images:,} images)"
    return {"told": told, "scores": scores, "cost": _cost(bench, config)}


def _cost(bench: Bench, config: Backbone) -> dict[str, float]:
    costs = bench.study.deploy.costs(config)
    return {name: float(value) for name, value in costs.items() if isinstance(value, int | float)}


def _at(batches: Iterable[Batch], rows: Tensor) -> Iterator[tuple[Tensor, list[str], list[int]]]:
    """The pictures at these rows of a data set, in its order: images (B, 3, H, W), captions, row numbers."""
    wanted, start = set(rows.tolist()), 0
    for batch in batches:
        places = [place for place in range(len(batch.captions)) if start + place in wanted]
        if places:
            captions = [batch.captions[place] for place in places]
            yield batch.images[places], captions, [start + place for place in places]
        start += len(batch.captions)
