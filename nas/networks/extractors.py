"""Feature extractors that a person brings: a model of timm with its weights, or a TorchScript file."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas import menu
from nas.disk import weight_files
from nas.errors import InputError, brief, shown

PROGRAMS = (".pt", ".pth", ".ts", ".jit", ".torchscript")  # endings of TorchScript files
REFUSED = (".pt2", ".pkl", ".onnx")  # torch.export's reader unpickles what it finds
SIZE = 224  # pixels along a side for a file, unless it is said


class Extractor(nn.Module):
    """(B, 3, size, size) float32 in [-1, 1] -> (B, D) float32."""

    def __init__(self, network: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]):
        """`mean` and `std`: of pixels in [0, 1], by channel, as the network was trained with."""
        super().__init__()
        self.network, self.size = network, size
        self.shift, self.scale = (2 * torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.shift -= 1

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network((images - self.shift) / self.scale)
        return features


def label(features: str) -> str:
    """The extractor's part of a column's name: a file's name without its ending, or timm's name."""
    return re.sub(r"\W+", "_", Path(features).stem if _is_file(features) else features)


def digest(features: str, weights: Path | None) -> str:
    """Of the file that decides the features, twelve hex digits. Raises InputError as `check`."""
    check(features, weights)
    with open(features if weights is None else weights, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def check(features: str, weights: Path | None, others: Sequence[str] = ()) -> None:
    """Raises InputError, beginning with the setting, for a file that is not there or no extractor, and for a name that neither
    `others` nor timm has. Loads nothing."""
    if _is_file(features):
        if features.endswith(REFUSED):
            raise InputError(f"features: {features}: expected a TorchScript file ({', '.join(PROGRAMS)})")
        if not os.path.isfile(features):
            raise InputError(f"features: {features}: no such file; expected a TorchScript file, or a name of timm")
        return
    import timm

    if not timm.is_model(features):
        raise InputError(f"features: unknown extractor {shown(features)}{_nearest(features, others)}")
    if weights is None:
        config = timm.get_pretrained_cfg(features)
        of = f" (of huggingface.co/{config.hf_hub_id})" if config and config.hf_hub_id else ""
        raise InputError(f"weights: {features} needs them: set weights to a local model.safetensors{of}")
    if not os.path.isfile(weights):
        raise InputError(f"weights: {weights}: no such file")


def load(features: str, weights: Path | None, size: int | None) -> Extractor:
    """The frozen extractor. Raises InputError for a file that is none, or weights of another network."""
    check(features, weights)
    if _is_file(features):
        extractor = Extractor(_program(features), size or SIZE, [0.5] * 3, [0.5] * 3)
    else:
        assert weights is not None
        extractor = _of_timm(features, weights, size)
    extractor = extractor.eval().requires_grad_(False)
    _probe(extractor, features)
    return extractor


def _is_file(features: str) -> bool:
    return features.endswith((*PROGRAMS, *REFUSED)) or os.sep in features


def _nearest(name: str, others: Sequence[str]) -> str:
    import difflib

    import timm

    close = difflib.get_close_matches(name[: menu.LONGEST], [*others, *timm.list_models()], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} expected one of: {', '.join(others)}, a name of timm or a TorchScript file"


def _program(path: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is no longer developed
            program: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # RuntimeError, and what a damaged archive leads it to
        raise InputError(f"metrics.features: {path}: not a TorchScript file: {brief(error)}") from None
    return program


def _of_timm(name: str, weights: Path, size: int | None) -> Extractor:
    """Its pooled features before the classifier, at its own size unless another is given. No key may be missing or too much."""
    import timm

    given: dict[str, Any] = {"state_dict": weight_files.checkpoint(weights, "metrics.weights")}
    known = timm.get_pretrained_cfg(name)
    resized = {"img_size": size} if size is not None and known is not None and known.fixed_input_size else {}
    try:
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=given, **resized)
        network.reset_classifier(0)
    except Exception as error:  # timm raises many kinds for a state dict that does not fit
        raise InputError(f"metrics.weights: {weights}: not weights of timm's {name}: {brief(error)}") from None
    used = network.pretrained_cfg
    return Extractor(network, size or used["input_size"][-1], used["mean"], used["std"])


def _probe(extractor: Extractor, features: str) -> None:
    """Raises InputError unless two pictures give two rows of numbers."""
    try:
        found = extractor(torch.zeros(2, 3, extractor.size, extractor.size))
    except Exception as error:
        raise InputError(f"metrics.features: {features} at {extractor.size} px: {brief(error)}") from None
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        raise InputError(f"metrics.features: {features}: gives {shape} for two pictures, expected (2, D)")
