"""A decoder in a file: its weights, what network they are of, and which autoencoder's latents it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nas.disk import files, weight_files
from nas.errors import InputError, brief
from nas.networks.decoders.kl import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.networks.decoders.kl.network import Decoder


SAID = ("config", "autoencoder", "ratio", "images_seen", "psnr_db")  # of every file


class Stored(NamedTuple):
    """What a file holds."""

    convolution: nn.Module | None
    """1x1, over the latents, before the network."""
    network: Decoder
    autoencoder: str
    """The fingerprint of the autoencoder whose latents it reads."""
    about: dict[str, str]
    """How it was made: `ratio`, `images_seen`, `psnr_db`, as words."""


def write(path: Path, held: Stored) -> None:
    """Raises OSError."""
    from safetensors.torch import save_file

    parts: dict[str, nn.Module] = {"network": held.network}
    if held.convolution is not None:
        parts["convolution"] = held.convolution
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    config = json.dumps(held.network.config.to_dict())
    with files.replacing(path) as partial:
        save_file(tensors, partial, {**held.about, "config": config, "autoencoder": held.autoencoder})


def about(path: Path, setting: str) -> dict[str, str]:
    """What a file says of itself; its weights are not read. Raises InputError, beginning with `setting`, for any other."""
    metadata = weight_files.metadata(path, setting)
    if not set(SAID) <= set(metadata):
        raise InputError(f"{setting}: {path}: holds no decoder; expected a .safetensors file that nas decoder wrote")
    return metadata


def read(path: Path, setting: str) -> Stored:
    """The decoder of a file, frozen. Raises InputError, beginning with `setting`, for any other file."""
    import torch
    from torch import nn

    metadata = about(path, setting)
    tensors = weight_files.read(path, setting).tensors
    try:
        config = Config.from_dict(json.loads(metadata["config"]))
        with torch.device("meta"):  # what is not in the file takes no memory
            network, convolution = config.build(), nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        network.load_state_dict(_below(tensors, "network."), assign=True)
        if own := _below(tensors, "convolution."):
            convolution.load_state_dict(own, assign=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{setting}: {path}: cannot be read as a decoder: {brief(error)}") from None
    made = {name: value for name, value in metadata.items() if name not in ("config", "autoencoder")}
    first = convolution.eval().requires_grad_(False) if own else None
    return Stored(first, network.eval().requires_grad_(False), metadata["autoencoder"], made)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
