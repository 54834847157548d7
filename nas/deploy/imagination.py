"""The prior in an export: from an embedded caption to what a denoiser reads that is told of pictures by their embeddings.

prior/weights.safetensors holds the prior (`prior.*`), the embedding of no picture (`null`), and the projection from a picture's
features to its embedding (`mean`, `directions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from nas import priors
from nas.deploy.shown import read
from nas.disk import files, weight_files
from nas.errors import ArgumentError, InputError
from nas.networks.conditioning import Conditioning, Text, TextEncoder, pictures
from nas.networks.conditioning.pictures import Projection
from nas.priors import Sizes
from nas.settings.entries import Entry
from nas.trial import imagined

if TYPE_CHECKING:
    from nas.trial.bench import Bench

FOLDER, WEIGHTS = "prior", "weights.safetensors"
PRIOR = "prior."


@dataclass(frozen=True)
class Imagination:
    """A prior, and how what it makes is joined to a caption. E is the width of an embedding."""

    how: Literal["alone", "with_text"]
    prior: Any
    null: Tensor  # (1, E)
    projection: Projection
    image_size: int  # of the pictures whose embeddings it was trained on

    @property
    def width(self) -> int:
        """E."""
        return self.null.shape[1]

    def text(self, words: Text, noise: Tensor, empty: Text) -> Text:
        """Captions with the embeddings that the prior makes of them and of noise (B, E); `empty` is the empty caption."""
        return self.told(words, self.prior.sample(words, noise), empty)

    def told(self, words: Text, image: Tensor, empty: Text) -> Text:
        """Captions with embeddings (B, E)."""
        return pictures.joined(self.how, words, image, empty)

    def fused(self, shown: Sequence[Path], weights: Sequence[float] = ()) -> Tensor:
        """The weighted sum (1, E) of pictures' embeddings, of one picture its own; without weights their mean.

        Raises InputError for what is no picture, and where weights are not one a picture.
        """
        if weights and len(weights) != len(shown):
            raise InputError(
                f"--weight: {len(weights)} given for {len(shown)} of --picture; expected one a picture, or none"
            )
        shares = weights or [1 / len(shown)] * len(shown)
        found = self.projection(pictures.features(read(path, self.image_size, "--picture")[None] for path in shown))
        return (torch.tensor(shares)[:, None] * found).sum(0, keepdim=True)

    def unconditional(self, empty: Text) -> Text:
        """What guidance leads away from, one row."""
        return self.told(empty, self.null, empty)


def asked(pipeline: Mapping[str, Any]) -> bool:
    """Whether what is drawn by a pipeline is conditioned on embeddings of pictures."""
    return bool(pipeline["conditioning"].get("image", "none") != "none")


def check_formats(pipeline: Mapping[str, Any], formats: Iterable[str]) -> None:
    """Raises InputError for formats of graphs, which have none for a prior."""
    if asked(pipeline) and (graphs := list(formats)):
        raise ArgumentError(
            f"format: {graphs[0]} has no graph for the prior of conditioning.image; expected yaml, safetensors"
        )


def write(bench: Bench, folder: Path) -> Path:
    """The prior of a study into an export's folder; trained again where the cache lost it."""
    data, onto = bench.train_data, imagined.projection(bench)
    assert data.embedded is not None
    own = {f"{PRIOR}{name}": value for name, value in imagined.prior(bench).state_dict().items()}
    tensors = {**own, "null": data.embedded.null, "mean": onto.mean, "directions": onto.directions}
    path = folder / FOLDER / WEIGHTS
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as partial, torch.no_grad():
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial)
    return path


def load(folder: Path, pipeline: Mapping[str, Any], encoder: TextEncoder) -> Imagination | None:
    """That of an export; None where its pictures are drawn from captions alone. Raises InputError for weights that are not there,
    or of another prior or width."""
    settings = Conditioning(**pipeline["conditioning"])
    if settings.image == "none":
        return None
    path = folder / FOLDER / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{path}: not there, and pictures are drawn from a prior's embeddings; export again with --format safetensors"
        )
    held = weight_files.read(path, "prior").tensors
    parts = {name: held.get(name) for name in ("null", "mean", "directions")}
    null, mean, directions = parts.values()
    if null is None or mean is None or directions is None or null.shape != (1, settings.image_width):
        found = "none" if null is None else str(tuple(null.shape))
        raise InputError(
            f"{path}: the embedding of no picture is {found}, expected (1, {settings.image_width}) by conditioning.image_width"
        )
    entry = Entry(**pipeline.get("prior", {"name": "none"}))
    sizes = Sizes(encoder.length, encoder.width, encoder.pooled_width, settings.image_width)
    weights = {name.removeprefix(PRIOR): value for name, value in held.items() if name.startswith(PRIOR)}
    prior = priors.load(entry.name, entry.settings("priors"), sizes, weights, str(path))
    return Imagination(settings.image, prior, null, Projection(mean, directions), pipeline["image_size"])
