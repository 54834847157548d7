"""Embeddings of a study's pictures, and the prior that makes them of captions: each computed once, then kept in `runs/.cache`.

A file there is named by a hash of everything that went into it. A prior is trained in one go on the training split, and is
shared by all trials: intervals over repeats say nothing about what another prior would have given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nas import interruption, priors, seeds
from nas.disk import files, weight_files
from nas.errors import InputError
from nas.networks import conditioning
from nas.networks.conditioning import Text, pictures
from nas.networks.conditioning.pictures import Projection
from nas.training import encoded
from nas.training.encoded import Embedded, EncodedSet

if TYPE_CHECKING:
    from nas.trial.bench import Bench

STREAM = 6  # of a seed: what priors start from


def embedded(bench: Bench, data: EncodedSet, split: str) -> EncodedSet:
    """The split with the embeddings of its pictures, where the study asks for any."""
    how = bench.study.conditioning.image
    if how == "none":
        return data
    found = _embeddings(bench, split)
    return replace(data, embedded=Embedded(how, found["embeddings"], found["null"]))


def projection(bench: Bench) -> Projection:
    """From a picture's features to its embedding, fitted to the training split."""
    found = _embeddings(bench, "train")
    return Projection(found["mean"], found["directions"])


def _embeddings(bench: Bench, split: str) -> dict[str, Tensor]:
    """Of a split's pictures (N, E) and of no picture (1, E); of the training split also its projection."""
    path = encoded.cache_path(
        bench.cache / "embeddings",
        split=split,
        reading=encoded.READING,
        dataset=bench.study.resolved()["dataset"],
        width=str(bench.study.conditioning.image_width),
    )
    return _kept(path, lambda: _embed(bench, split))


def _embed(bench: Bench, split: str) -> dict[str, Tensor]:
    def watched() -> Any:
        for batch in bench.images(split):
            interruption.check()
            yield batch.images

    found = pictures.features(watched())
    if split == "train":
        onto = Projection.fitted(found, bench.study.conditioning.image_width)
        own = {"mean": onto.mean, "directions": onto.directions}
    else:
        onto, own = projection(bench), {}
    return {"embeddings": onto(found), "null": onto(pictures.features([pictures.blank()])), **own}


def prepare(bench: Bench) -> None:
    """Make what the study's trials share, where the denoiser is told of pictures."""
    if bench.study.conditioning.image != "none":
        prior(bench)


def prior(bench: Bench) -> Any:
    """The study's prior (`nas.priors`), trained on first use. Raises Interrupted."""
    entry, lessons = bench.study.prior, _lessons(bench)
    settings = entry.settings("priors")

    def trained() -> dict[str, Tensor]:
        made = priors.build(entry.name, settings, lessons.sizes)
        made.fit(lessons, seeds.stream_seed(bench.study.seed, STREAM), _told(entry.name))
        return dict(made.state_dict())

    path = _prior_path(bench)
    return priors.load(entry.name, settings, lessons.sizes, _kept(path, trained), str(path))


def _lessons(bench: Bench) -> priors.Lessons:
    """What a prior is trained on: the training pictures' embeddings and captions."""
    data = bench.train_data
    assert data.embedded is not None
    return priors.Lessons(Text(data.tokens, data.pooled), data.caption_of, data.embedded.of_picture)


def _prior_path(bench: Bench) -> Path:
    resolved, study = bench.study.resolved(), bench.study
    identity = {name: resolved[name] for name in ("dataset", "seed")}
    identity["prior"] = {"name": study.prior.name, **study.prior.settings("priors").model_dump(mode="json")}
    words, width = conditioning.identity(conditioning.of_text(study.conditioning)), study.conditioning.image_width
    return encoded.cache_path(
        bench.cache / "priors", reading=encoded.READING, conditioning=words, width=str(width), **identity
    )


def costs(bench: Bench) -> dict[str, int]:
    """Multiply-adds of the prior for one picture, where the denoiser is told of pictures; else nothing."""
    if bench.study.conditioning.image == "none":
        return {}
    return {"prior_macs": priors.macs(prior(bench), _lessons(bench).sizes)}


def text(bench: Bench, data: EncodedSet, rows: Tensor, seed: int) -> Text:
    """What a denoiser reads where it draws the captions of `rows` (B,): with embeddings that the prior makes of them.

    Row i depends on the seed and its own place alone.
    """
    if data.embedded is None:
        return data.text(rows)
    own, width = seeds.stream_seed(seed, STREAM), data.embedded.of_picture.shape[1]
    drawn = [torch.from_numpy(seeds.Noise.of_picture(own, place).draw((width,))) for place in range(len(rows))]
    caption = data.caption_of[rows]
    words = Text(data.tokens[caption].float(), data.pooled[caption].float())
    image = prior(bench).sample(words, torch.stack(drawn))
    if not image.isfinite().all():
        raise InputError(
            f"prior: {bench.study.prior.name}: its embeddings are not finite numbers; expected a smaller learning_rate"
        )
    return data.text(rows, image=image)


def _kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` computes, from disk if it was computed before."""
    if not path.exists():
        tensors = {name: value.detach().cpu().contiguous() for name, value in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as partial:
            save_file(tensors, partial)
    return weight_files.read(path, "cache").tensors


def _told(name: str) -> priors.Heard:
    def heard(done: int, total: int) -> None:
        print(f"prior {name}: {done:,} of {total:,} embeddings", file=sys.stderr, flush=True)

    return heard
