"""Scorers of pictures and captions that learnt what people choose, from files of one's own.

imscore has their forward passes. Its constructors ask a hub for weights; what they call for that is answered from the files
instead, so nothing is fetched and no Python in a folder runs. Of its others, `ImageReward` and `PickScorer` do not run with
transformers 5, and `VQAScore` begins with a T5 of 11 billion parameters by its name in the hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from nas.errors import InputError, brief
from nas.networks.conditioning import clip

SIZE = 224  # pixels along a side, of all of them
PICKSCORE = "huggingface.co/yuvalkirstain/PickScore_v1"
PICKSCORE_READS = "huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICKSCORE_FILES = {
    "config.json": PICKSCORE,
    "model.safetensors": PICKSCORE,
    "preprocessor_config.json": PICKSCORE_READS,
    "tokenizer.json": PICKSCORE_READS,
}
HPS = "HPS_v2.1_compressed.pt of huggingface.co/xswu/HPSv2"


class Scorer:
    """A frozen scorer of imscore's, and the file that decides its scores."""

    def __init__(self, network: nn.Module, weights: Path):
        self.network, self.weights = network.eval().requires_grad_(False), weights

    @torch.no_grad()
    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """(B, 3, 224, 224) in [-1, 1] with their captions -> (B,)."""
        found: Tensor = self.network.score(images / 2 + 0.5, captions)  # type: ignore[operator]
        return found

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """The library, and a digest of the weights, twelve hex digits."""
        with self.weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        return {"library": f"imscore {metadata.version('imscore')}", "weights": digest}


def check_pickscore(weights: Path | None) -> None:
    """Raises InputError, beginning with the setting, for a file that is not there. Loads nothing."""
    _installed()
    if weights is None:
        raise InputError(
            f"weights: none; expected a folder with config.json and model.safetensors of {PICKSCORE}, "
            f"preprocessor_config.json and tokenizer.json of {PICKSCORE_READS}"
        )
    for name, source in PICKSCORE_FILES.items():
        if not (weights / name).is_file():
            raise InputError(f"weights: {weights / name}: no such file; put there {name} of {source}")


def pickscore(weights: Path) -> Scorer:
    """PickScore (Kirstain et al. 2023, arXiv 2305.01569, equation 1): a CLIP's scaled cosine, from a folder of transformers'."""
    check_pickscore(weights)
    from imscore.preference import model

    def made() -> nn.Module:
        kind = json.loads((weights / "config.json").read_text(encoding="utf-8"))["model_type"]
        if kind != "clip":
            raise ValueError(f"config.json: model_type: expected clip, got {kind}")
        with (
            patch.object(model, "AutoModel", _Local(model.AutoModel)),
            patch.object(model, "AutoProcessor", _Local(model.AutoProcessor)),
        ):
            network: nn.Module = model.CLIPPreferenceScorer(str(weights))
        return network

    return Scorer(_made(made, weights), weights / "model.safetensors")


def check_hps(weights: Path | None) -> None:
    """Raises InputError, beginning with the setting, for a file that is not there. Loads nothing."""
    _installed()
    if weights is None:
        raise InputError(f"weights: none; expected the path of {HPS}, or a folder of open_clip's")
    if not (weights / clip.WEIGHTS if weights.is_dir() else weights).is_file():
        raise InputError(f"weights: {weights}: no such file; put there {HPS}")


def hps(weights: Path) -> Scorer:
    """HPS v2 (Wu et al. 2023, arXiv 2306.09341): a ViT-H-14's cosine, from its checkpoint or a folder of open_clip's."""
    check_hps(weights)
    from imscore.hps import model

    if weights.is_dir():
        network, tokenizer = clip.load(weights)
        network.output_dict = True
    else:
        network, tokenizer = clip.load("ViT-H-14", str(weights))

    def made() -> nn.Module:
        with (
            patch.object(model, "create_model_and_transforms", lambda *_, **__: (network, None, None)),
            patch.object(model, "get_tokenizer", lambda name: tokenizer),
        ):
            scorer: nn.Module = model.HPSv2()
        return scorer

    return Scorer(_made(made, weights), weights / clip.WEIGHTS if weights.is_dir() else weights)


class _Local:
    """An Auto class of transformers that reads a folder's data and nothing else, and all of its weights."""

    def __init__(self, auto: Any):
        self.auto = auto

    def from_pretrained(self, folder: str) -> Any:
        data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if self.auto.__name__ != "AutoModel":
            return self.auto.from_pretrained(folder, **data)
        network, told = self.auto.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **data)
        if absent := sorted(told["missing_keys"]):
            raise ValueError(f"model.safetensors: {len(absent)} tensors are not in it, {absent[0]} first")
        return network


def _made(make: Callable[[], nn.Module], weights: Path) -> nn.Module:
    """What `make` gives. Raises InputError for whatever the files lead it to."""
    try:
        network = make()
        network.eval().score(torch.zeros(1, 3, SIZE, SIZE), ["a caption"])  # type: ignore[operator]
    except Exception as error:  # transformers, open_clip and safetensors raise many kinds
        raise InputError(f"weights: {weights}: cannot be read: {brief(error)}") from None
    return network


def _installed() -> None:
    if util.find_spec("imscore") is None:
        raise InputError("needs the package imscore: pip install 'nas[preference]'")
