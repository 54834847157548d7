"""Frechet distance between the features of generated and real pictures (Heusel et al. 2017).

Called `fid` only with Inception-v3 features, as everyone else computes it; with any other extractor the extractor is part of
the name, and the numbers do not compare.
"""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from nas.disk import weight_files
from nas.documents.section import Section
from nas.errors import InputError, brief
from nas.metrics import Reference
from nas.networks import efficientnet

SIZE = 64  # at which EfficientNet sees pictures
WHERE = (
    "set weights to a local weights-inception-2015-12-05-6726825d.pth (96 MB, of the releases of toshas/torch-fidelity)"
)


class Settings(Section):
    """Which features."""

    features: Literal["efficientnet_lite0", "efficientnet_lite0_112", "inception"] = "efficientnet_lite0"
    """`efficientnet_lite0` (1,280 at 64 px) needs no download; `efficientnet_lite0_112` are those of its stage at stride 16,
    fewer than the pictures of a brief trial, so that two seeds agree better; `inception` is the published FID's network."""
    weights: Path | None = None
    """For inception: weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases; None downloads it."""


def columns(settings: Settings) -> tuple[str, ...]:
    """`fid`, or `fid_<extractor>`."""
    return ("fid" if settings.features == "inception" else f"fid_{settings.features}",)


def check(settings: Settings, captions: Sequence[str]) -> None:
    """Raises InputError, beginning with the setting, for weights that are not there."""
    if settings.weights is not None and not os.path.isfile(settings.weights):
        raise InputError(f"weights: {settings.weights}: no such file")


def build(settings: Settings, reference: Reference) -> FrechetDistance:
    """The metric, with the real pictures' features (10 s for the emoji set on one core, once).

    Raises InputError when the extractor cannot be had, or its features are not finite numbers.
    """
    return FrechetDistance(columns(settings), settings, reference)


def _extractor(settings: Settings) -> nn.Module:
    if settings.features == "inception":
        return _inception(settings.weights)
    return EfficientNet(early=settings.features == "efficientnet_lite0_112")


class FeatureDistance(Metric):
    """Between features of generated pictures (n, D) and real ones (m, D); a subclass says which distance."""

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    unit = "squared feature distance"

    def __init__(self, columns: tuple[str, ...], settings: Settings, reference: Reference):
        super().__init__()
        self.extractor = _extractor(settings)
        self.real = reference.cached(settings.features, lambda: self._of_real_pictures(settings, reference))
        self.columns, self.conditions = columns, {"features": settings.features, "references": len(self.real)}
        self.features: list[Tensor]
        self.add_state("features", default=[], dist_reduce_fx="cat")

    def _of_real_pictures(self, settings: Settings, reference: Reference) -> Tensor:
        found = torch.cat([self.extractor(batch.images) for batch in reference.batches()])
        if not found.isfinite().all():
            raise InputError(
                f"metrics.fid: {settings.features} gives no finite numbers for the real pictures: broken weights?"
            )
        return found

    @abstractmethod
    def distance(self, drawn: Tensor) -> Tensor:
        """To the real pictures' features, of (n, D)."""

    def update(self, images: Tensor, captions: list[str]) -> None:
        self.features.append(self.extractor(images))

    def compute(self) -> dict[str, Tensor]:
        (column,) = self.columns
        if not self.features:
            raise ValueError(f"{column}: no pictures")
        return {column: self.distance(torch.cat(self.features))}


class FrechetDistance(FeatureDistance):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64.

    For n pictures and D features the last term is the sum of the singular values of Xc Yc^T with Xc = (X - m) / sqrt(n - 1),
    which is exact and takes milliseconds instead of the seconds of a D x D matrix root.
    """

    def distance(self, drawn: Tensor) -> Tensor:
        return frechet_distance(drawn, self.real)


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Between the Gaussians fitted to two samples (n, D) and (m, D). ValueError below two rows, and for features that are not
    finite numbers."""
    if min(len(x), len(y)) < 2:
        raise ValueError(f"the Frechet distance needs at least 2 pictures on each side, got {len(x)} and {len(y)}")
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


def _compact(centred: Tensor) -> Tensor:
    """A matrix with the same Z^T Z and at most D rows: singular values of A Z^T depend on no more."""
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    compact: Tensor = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return compact


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
