"""Frechet distance between the features of generated and real pictures (Heusel et al. 2017).

Called `fid` only with Inception-v3 features, as everyone else computes it; with any other extractor the extractor is part of
the name, and the numbers do not compare.
"""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchmetrics import Metric

from nas.disk import weight_files
from nas.documents.section import Section
from nas.errors import InputError, brief
from nas.metrics import Reference
from nas.networks import efficientnet, extractors

SIZE = 64  # at which EfficientNet sees pictures
OWN = ("efficientnet_lite0", "efficientnet_lite0_112", "inception")  # extractors that need no file to be named
WHERE = (
    "set weights to a local weights-inception-2015-12-05-6726825d.pth (96 MB, of the releases of toshas/torch-fidelity)"
)


class Settings(Section):
    """Which features."""

    features: str = "efficientnet_lite0"
    """`efficientnet_lite0` (1,280 at 64 px) needs no download; `efficientnet_lite0_112` are those of its stage at stride 16,
    fewer than the pictures of a brief trial, so that two seeds agree better; `inception` is the published FID's network.
    Or any extractor of your own: a name of timm, such as vit_large_patch14_dinov2, with `weights`, or a TorchScript file that
    takes (B, 3, size, size) in [-1, 1] and gives (B, D)."""
    weights: Path | None = None
    """For inception: weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases; None downloads it. For a name of
    timm: its weights as safetensors or a PyTorch file of nothing but tensors."""
    size: int | None = Field(None, ge=8, le=4096, exclude_if=lambda size: size is None)
    """Pixels along a side at which an extractor of your own sees pictures. None: as timm says, 224 for a file."""

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.size is not None and self.features in OWN:
            raise ValueError(f"size: {self.features} has its own; expected none")
        return self


def column(metric: str, settings: Settings) -> str:
    """What a score of these features is called: `<metric>_<extractor>`."""
    return f"{metric}_{settings.features if settings.features in OWN else extractors.label(settings.features)}"


def columns(settings: Settings) -> tuple[str, ...]:
    """`fid`, or `fid_<extractor>`."""
    return ("fid" if settings.features == "inception" else column("fid", settings),)


def check(settings: Settings, captions: Sequence[str]) -> None:
    """Raises InputError, beginning with the setting, for an extractor or weights that are not there."""
    if settings.weights is not None and not os.path.isfile(settings.weights):
        raise InputError(f"weights: {settings.weights}: no such file")
    if settings.features not in OWN:
        extractors.check(settings.features, settings.weights, OWN)


def build(settings: Settings, reference: Reference) -> FrechetDistance:
    """The metric, with the real pictures' features (10 s for the emoji set on one core, once).

    Raises InputError when the extractor cannot be had, or its features are not finite numbers.
    """
    return FrechetDistance(columns(settings), settings, reference)


def _extractor(settings: Settings) -> nn.Module:
    return _shared(settings.features, settings.weights, settings.size, identity(settings).get("weights"))


@lru_cache(maxsize=2)
def _shared(features: str, weights: Path | None, size: int | None, digest: str | None) -> Remembering:
    """One extractor for all metrics of its features. `digest`: a changed file is read again."""
    if features == "inception":
        return Remembering(_inception(weights))
    if features in OWN:
        return Remembering(EfficientNet(early=features == "efficientnet_lite0_112"))
    return Remembering(Resizing(extractors.load(features, weights, size)))


def identity(settings: Settings) -> dict[str, Any]:
    """What the features depend on, by the names of conditions; of an extractor of one's own a digest of its file is part."""
    if settings.features in OWN:
        return {"features": settings.features}
    found = extractors.digest(settings.features, settings.weights)
    sized = {} if settings.size is None else {"size": settings.size}
    return {"features": extractors.label(settings.features), "weights": found, **sized}


class Remembering(nn.Module):
    """An extractor that knows its last pictures again, which several metrics are given one after the other."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor
        self._last: tuple[Tensor, int, Tensor] | None = None  # pictures, how often they were written, features

    def forward(self, images: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not images or self._last[1] != images._version:
            self._last = images, images._version, self.extractor(images)
        return self._last[2]


class OfFeatures(Metric):
    """A score of generated pictures' features (n, D); a subclass says which, a number for each of its columns."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, columns: tuple[str, ...], settings: Settings):
        super().__init__()
        self.extractor = _extractor(settings)
        self.columns, self.conditions = columns, identity(settings)
        self.features: list[Tensor]
        self.add_state("features", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def found(self, drawn: Tensor) -> tuple[Tensor, ...]:
        """A number for each column, of (n, D). ValueError for too few pictures."""

    def enough(self, count: int) -> None:
        """Raises ValueError unless so many pictures can be scored."""

    def update(self, images: Tensor, captions: list[str]) -> None:
        self.features.append(self.extractor(images))

    def compute(self) -> dict[str, Tensor]:
        if not self.features:
            raise ValueError(f"{self.columns[0]}: no pictures")
        return dict(zip(self.columns, self.found(torch.cat(self.features)), strict=True))


class AgainstReal(OfFeatures):
    """One that compares with the features of real pictures (m, D)."""

    def __init__(self, columns: tuple[str, ...], settings: Settings, reference: Reference):
        super().__init__(columns, settings)
        self.place = "-".join(map(str, identity(settings).values()))
        self.real = reference.cached(self.place, lambda: self._of_real_pictures(settings, reference))
        self.conditions = {**self.conditions, "references": len(self.real)}

    def _of_real_pictures(self, settings: Settings, reference: Reference) -> Tensor:
        found = torch.cat([self.extractor(batch.images) for batch in reference.batches()])
        if not found.isfinite().all():
            raise InputError(
                f"metrics.fid: {settings.features} gives no finite numbers for the real pictures: broken weights?"
            )
        return found


class FeatureDistance(AgainstReal):
    """A distance between features of generated pictures and real ones."""

    higher_is_better = False
    unit = "squared feature distance"

    @abstractmethod
    def distance(self, drawn: Tensor) -> Tensor:
        """To the real pictures' features, of (n, D)."""

    def found(self, drawn: Tensor) -> tuple[Tensor, ...]:
        return (self.distance(drawn),)


class FrechetDistance(FeatureDistance):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64.

    For n pictures and D features the last term is the sum of the singular values of Xc Yc^T with Xc = (X - m) / sqrt(n - 1),
    which is exact and takes milliseconds instead of the seconds of a D x D matrix root.
    """

    def enough(self, count: int) -> None:
        _two_each(count, len(self.real))

    def distance(self, drawn: Tensor) -> Tensor:
        return frechet_distance(drawn, self.real)


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Between the Gaussians fitted to two samples (n, D) and (m, D). ValueError below two rows, and for features that are not
    finite numbers."""
    _two_each(len(x), len(y))
    bad = [int((~z.isfinite()).any(1).sum()) for z in (x, y)]
    if any(bad):
        raise ValueError(
            f"the Frechet distance needs finite features; {bad[0]} of {len(x)} and {bad[1]} of {len(y)} pictures have others"
        )
    x, y = x.double(), y.double()
    centred = [(z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y)]
    traces = sum(z.square().sum() for z in centred)
    small, large = sorted(centred, key=len)
    cross = torch.linalg.svdvals(small @ _compact(large).T).sum()
    distance: Tensor = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * cross
    return distance


def _two_each(drawn: int, real: int) -> None:
    if min(drawn, real) < 2:
        raise ValueError(f"the Frechet distance needs at least 2 pictures on each side, got {drawn} and {real}")


def _compact(centred: Tensor) -> Tensor:
    """A matrix with the same Z^T Z and at most D rows: singular values of A Z^T depend on no more."""
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    compact: Tensor = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return compact


class Resizing(nn.Module):
    """An extractor of one's own on pictures of any size."""

    def __init__(self, extractor: extractors.Extractor):
        super().__init__()
        self.extractor = extractor

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.extractor(resized(images, self.extractor.size))
        return features


class EfficientNet(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, 1280), or (B, 112) of an earlier stage, at 64 px."""

    def __init__(self, early: bool = False) -> None:
        super().__init__()
        self.model = efficientnet.load()
        self.read = efficientnet.early_features if early else efficientnet.features

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.model, resized(images, SIZE))


def resized(images: Tensor, size: int) -> Tensor:
    """Square pictures at another size, antialiased bicubic."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def _inception(weights: Path | None) -> nn.Module:
    """torch-fidelity's Inception-v3 up to the 2048 pooled features, as torchmetrics uses it."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    tensors = _inception_tensors(weights)
    file = io.BytesIO()  # torch-fidelity would unpickle whatever a path names; this it may
    torch.save(tensors, file)
    file.seek(0)
    try:
        network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], file)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise InputError(f"metrics.fid.weights: {weights}: not Inception's weights ({brief(error)}); {WHERE}") from None
    return _Inception(network)


def _inception_tensors(weights: Path | None) -> dict[str, Tensor]:
    """From a file, or by download, whose checksum is part of its name. Raises InputError saying what to put where."""
    if weights is not None and not weights.is_file():
        raise InputError(f"metrics.fid.weights: {weights} does not exist; {WHERE}")
    if weights is not None:
        try:
            return weight_files.checkpoint(weights, "metrics.fid.weights")
        except InputError as error:
            raise InputError(f"{error}; {WHERE}") from None
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        found: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            URL_INCEPTION_V3, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # urllib raises many kinds when a download fails
        raise InputError(f"metrics.fid: the Inception weights could not be had ({brief(error)}); {WHERE}") from None
    return found


class _Inception(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        return features
