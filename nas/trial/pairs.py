"""Pairs of noise and what the base draws from it, for objectives that learn from them: drawn once, then kept.

They lie in `runs/.cache`, named by a hash of everything that went into them: the base's weights, the captions, the plan, how many
and the seed. Every trial of a study that asks for the same pairs learns from the same ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from nas import interruption, menu, seeds
from nas.diffusion import solvers
from nas.diffusion.pairs import Pairs
from nas.disk import files, weight_files
from nas.failures import Diverged
from nas.networks import conditioning
from nas.networks.conditioning import Text
from nas.training import encoded
from nas.training.encoded import EncodedSet
from nas.trial import base_model
from nas.weights import parts

if TYPE_CHECKING:
    from nas.trial.bench import Bench

BATCH = 64  # drawn at a time
STREAM = 3  # of the study's seed


def load(bench: Bench, settings: Pairs) -> EncodedSet:
    """The pairs as a training split: `latents` are what the base drew from `noise` under each caption.

    Draws them unless they are there. Raises Diverged where the base draws no numbers.
    """
    path = cache_path(bench, settings)
    if not path.exists():
        _draw(bench, settings, path)
    found, _ = weight_files.read(path, "cache")
    latents, noise, caption_of = (found[name] for name in ("latents", "noise", "caption_of"))
    whole = bench.train_data
    embedded = None if whole.embedded is None else replace(whole.embedded, of_picture=found["embeddings"])
    return replace(whole, latents=latents, noise=noise, caption_of=caption_of, embedded=embedded)


def cache_path(bench: Bench, settings: Pairs) -> Path:
    """Where the pairs lie, or will once they are drawn."""
    resolved = bench.study.resolved()
    identity = parts.latents_of(bench.study) | {"seed": resolved["seed"]}
    identity["conditioning"] = conditioning.identity(bench.study.conditioning)
    drawer = hashlib.sha256(base_model.weights_path(bench).read_bytes()).hexdigest()
    plan = {"objective": resolved["base"]["objective"], **settings.model_dump(mode="json")}
    return encoded.cache_path(bench.cache / "pairs", base=drawer, pairs=plan, reading=encoded.READING, **identity)


def _draw(bench: Bench, settings: Pairs, path: Path) -> None:
    data, network = bench.train_data, base_model.network(bench)
    assert bench.study.base is not None
    entry = bench.study.base.objective
    schedule = menu.pick("objectives", entry.name).noise_schedule(entry.settings("objectives")).config
    generator = torch.Generator().manual_seed(seeds.stream_seed(bench.study.seed, STREAM))
    rows = torch.randperm(len(data), generator=generator)
    rows = rows.repeat(-(-settings.count // len(rows)))[: settings.count]
    noise = torch.randn((settings.count, *data.latents.shape[1:]), generator=generator)
    drawn = []
    for start in range(0, settings.count, BATCH):
        interruption.check()
        some = slice(start, start + BATCH)
        text: Text = data.text(rows[some])
        drawn.append(solvers.sample(network, settings.sampling, schedule, noise[some], text, data.null))
    latents = torch.cat(drawn)
    if not latents.isfinite().all():
        raise Diverged("the pairs that the base draws are not finite numbers")
    own = {} if data.embedded is None else {"embeddings": data.embedded.of_picture[rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        save_file({"latents": latents, "noise": noise, "caption_of": data.caption_of[rows], **own}, partial)
