"""The KL autoencoder of latent diffusion (Rombach et al. 2022), as diffusers' `AutoencoderKL`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from diffusers import AutoencoderKL
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nas.backbones import strictly
from nas.errors import InputError, brief

Width = Annotated[int, Field(ge=1, le=8192)]
DAMAGED = (OSError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, RuntimeError, SafetensorError)
ASSETS = Path(__file__).parents[1] / "assets"
SHIPPED = {"emoji": ASSETS / "autoencoder.safetensors", "scenes": ASSETS / "autoencoder_scenes.safetensors"}


class Settings(BaseModel):
    """Which weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    shipped: Literal["emoji", "scenes"] = "emoji"
    """Which of the autoencoders that ship: that of the emoji pictures (f = 8) or of the scenes (f = 4)."""
    path: Path | None = None
    """Another one: a .safetensors file that make_autoencoder wrote, or a folder in diffusers' format."""


OTHERWISE = "autoencoder.path: a pretrained one in diffusers' format"


def weights(settings: Settings) -> Path:
    """Where they lie."""
    return settings.path or SHIPPED[settings.shipped]


class Sizes(BaseModel):
    """What a configuration may ask for; beyond that it would be built for hours, or past the memory, before it is refused."""

    model_config = ConfigDict(extra="allow")

    block_out_channels: list[Width] = Field([1], min_length=1, max_length=16)
    layers_per_block: int = Field(1, ge=1, le=64)
    latent_channels: Width = 1
    in_channels: Width = 1
    out_channels: Width = 1
    norm_num_groups: Width = 1


class KlAutoencoder:
    """`AutoencoderKL` with latents shifted and scaled, channel by channel, to zero mean and unit variance."""

    def __init__(self, model: AutoencoderKL, mean: Tensor, std: Tensor):
        self.model = model.eval().requires_grad_(False)
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.factor = 2 ** (len(model.config["block_out_channels"]) - 1)
        self.channels = int(model.config["latent_channels"])

    def to(self, device: torch.device) -> Self:
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        for side in images.shape[2:]:
            if side % self.factor:
                raise InputError(f"dataset.image_size: {side} is not divisible by the autoencoder's {self.factor}")
        latents: Tensor = self.model.encode(images.to(self.mean.device)).latent_dist.mean
        return (latents - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.decoder()(latents.to(self.mean.device))
        return images

    def decoder(self) -> nn.Module:
        return Decoder(self.model, self.mean, self.std)


class Decoder(nn.Module):
    """Latents (B, C, H, W) of unit variance -> pictures (B, 3, H f, W f) in [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: AutoencoderKL, mean: Tensor, std: Tensor):
        super().__init__()
        self.convolution, self.network = model.post_quant_conv, model.decoder
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        scaled = latents * self.std + self.mean
        if self.convolution is not None:
            scaled = self.convolution(scaled)
        images: Tensor = self.network(scaled)
        return images.clamp(-1, 1)


def load(settings: Settings) -> KlAutoencoder:
    """The autoencoder. Raises InputError when the weights are not there or not readable."""
    path = weights(settings)
    if path.is_dir():
        return _from_folder(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = AutoencoderKL.from_config(_checked(metadata["config"]))
        model.load_state_dict(tensors)
        shape = (model.config["latent_channels"],)
        mean, std = (torch.tensor(json.loads(metadata[name])).view(shape) for name in ("latent_mean", "latent_std"))
    except DAMAGED as error:
        raise InputError(f"autoencoder.path: {path} cannot be read as autoencoder weights: {brief(error)}") from None
    return KlAutoencoder(model, mean, std)


def _from_folder(path: Path) -> KlAutoencoder:
    """A pretrained diffusers autoencoder: config.json and diffusion_pytorch_model.safetensors, with its scaling factor."""
    if not (path / "config.json").is_file():
        raise InputError(f"autoencoder.path: {path} has no config.json; expected a folder in diffusers' format")
    try:
        _checked((path / "config.json").read_text(encoding="utf-8"))
        model = AutoencoderKL.from_pretrained(path, local_files_only=True)
        shape = (model.config["latent_channels"],)
        mean = torch.full(shape, float(model.config.get("shift_factor") or 0.0))
        std = torch.full(shape, 1 / float(model.config["scaling_factor"]))
    except DAMAGED as error:
        raise InputError(f"autoencoder.path: {path} cannot be read: {brief(error)}") from None
    return KlAutoencoder(model, mean, std)


def _checked(text: str) -> dict[str, Any]:
    """A configuration whose numbers are those of some autoencoder. Raises ValueError: of others a network is not even begun."""
    try:
        config = json.loads(text)
        strictly(Sizes, config)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: {error}") from None
    checked: dict[str, Any] = config
    return checked
