"""The KL autoencoder of latent diffusion (Rombach et al. 2022), as diffusers' `AutoencoderKL`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from diffusers import AutoencoderKL
from pydantic import Field
from torch import Tensor, nn

from nas import assets
from nas.disk import weight_files
from nas.documents.section import Section
from nas.errors import InputError, brief
from nas.networks.autoencoders import Configuration, check_sides
from nas.networks.decoders.kl import stored

SHIPPED = {
    "emoji": assets.FOLDER / "autoencoder.safetensors",
    "scenes": assets.FOLDER / "autoencoder_scenes.safetensors",
}


class Settings(Section):
    """Which weights."""

    shipped: Literal["emoji", "scenes"] = "emoji"
    """Which of the autoencoders that ship: that of the emoji pictures (f = 8) or of the scenes (f = 4)."""
    path: Path | None = None
    """Another one: a .safetensors file that make_autoencoder wrote, or a folder in diffusers' format."""
    decoder: Path | None = Field(None, exclude_if=lambda path: path is None)
    """Another decoder of its latents: a .safetensors file that `nas decoder` wrote. None: its own."""


OTHERWISE = "autoencoder.path: one that nas prepare trains, or a pretrained one in diffusers' format"
ABSENT = None


def weights(settings: Settings) -> Path:
    """Where they lie."""
    return settings.path or SHIPPED[settings.shipped]


Size = Annotated[int, Field(strict=True, ge=1, le=8_192)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Architecture(Configuration):
    """The arguments of `AutoencoderKL`."""

    KIND = "AutoencoderKL"

    in_channels: Size = 3
    out_channels: Size = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ...]
    up_block_types: tuple[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], ...]
    block_out_channels: tuple[Size, ...] = Field(min_length=1, max_length=16)
    layers_per_block: int = Field(1, strict=True, ge=1, le=64)
    act_fn: str = "silu"
    latent_channels: Size = 4
    norm_num_groups: Size = 32
    sample_size: Size | tuple[Size, Size] | None = None
    scaling_factor: float = Field(0.18215, gt=0, allow_inf_nan=False)
    shift_factor: Number | None = None
    latents_mean: tuple[Number, ...] | None = None
    latents_std: tuple[Number, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


class KlAutoencoder:
    """`AutoencoderKL` with latents shifted and scaled, channel by channel, to zero mean and unit variance."""

    def __init__(self, model: AutoencoderKL, mean: Tensor, std: Tensor):
        self.model = model.eval().requires_grad_(False)
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.convolution, self.network = model.post_quant_conv, model.decoder
        self.factor = 2 ** (len(model.config["block_out_channels"]) - 1)
        self.channels = int(model.config["latent_channels"])

    def to(self, device: torch.device) -> Self:
        self.model.to(device)
        for module in filter(None, (self.convolution, self.network)):
            module.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        check_sides(images, self.factor)
        latents: Tensor = self.model.encode(images.to(self.mean.device)).latent_dist.mean
        return (latents - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.decoder()(latents.to(self.mean.device))
        return images

    def decoder(self) -> nn.Module:
        return Decoder(self.convolution, self.network, self.mean, self.std)

    def used(self, images: Tensor) -> None:
        return None

    def fingerprint(self) -> str:
        """Twelve hex digits of its own decoder and of the scale of its latents: what another decoder of them was made for."""
        model, digest = self.model, hashlib.sha256()
        own = [*model.decoder.state_dict().values(), *(model.post_quant_conv or nn.Identity()).state_dict().values()]
        for tensor in (*own, self.mean, self.std):
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def decode_by(self, path: Path) -> None:
        """Decode by what a file of `nas decoder` holds. Raises InputError for one of other latents."""
        held = stored.read(path, "autoencoder.decoder")
        if held.autoencoder != self.fingerprint():
            raise InputError(
                f"autoencoder.decoder: {path}: reads the latents of autoencoder {held.autoencoder}, and this one is "
                f"{self.fingerprint()}; expected a decoder that nas decoder made from it"
            )
        self.convolution, self.network = held.convolution, held.network


class Decoder(nn.Module):
    """Latents (B, C, H, W) of unit variance -> pictures (B, 3, H f, W f) in [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, convolution: nn.Module | None, network: nn.Module, mean: Tensor, std: Tensor):
        """`convolution`: over the latents, before the network."""
        super().__init__()
        self.convolution, self.network = convolution, network
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        return self.unbounded(latents).clamp(-1, 1)

    def unbounded(self, latents: Tensor) -> Tensor:
        """What the network puts out, of which a picture's pixels are the part in [-1, 1]."""
        scaled = latents * self.std + self.mean
        if self.convolution is not None:
            scaled = self.convolution(scaled)
        images: Tensor = self.network(scaled)
        return images


def load(settings: Settings) -> KlAutoencoder:
    """The autoencoder. Raises InputError when the weights are not there, not readable, or those of another's decoder."""
    found = _own(settings)
    if settings.decoder is not None:
        found.decode_by(settings.decoder)
    return found


def codes(settings: Settings) -> None:
    """There is no codebook."""


def start(settings: Settings, pictures: Tensor) -> AutoencoderKL:
    """The shipped one's network."""
    return load(Settings(shipped=settings.shipped)).model


def origin(settings: Settings) -> str:
    """What that is."""
    return f"autoencoder of {settings.shipped}"


def _own(settings: Settings) -> KlAutoencoder:
    path = weights(settings)
    if path.is_dir():
        return _from_folder(path)
    held = weight_files.read(path, "autoencoder.path")
    where = f"autoencoder.path: {path} cannot be read as autoencoder weights"
    try:
        named = Architecture.of(held.metadata["config"], f"{where}: its config")
        model = AutoencoderKL(**named.model_dump(exclude_unset=True))
        model.load_state_dict({name: value.float() for name, value in held.tensors.items()})
        shape = (named.latent_channels,)
        given = (json.loads(held.metadata[name]) for name in ("latent_mean", "latent_std"))
        mean, std = (torch.tensor(numbers).view(shape) for numbers in given)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:  # RecursionError is a RuntimeError
        raise InputError(f"{where}: {brief(error)}") from None
    return KlAutoencoder(model, mean, std)


def _from_folder(path: Path) -> KlAutoencoder:
    """A pretrained diffusers autoencoder: config.json and diffusion_pytorch_model.safetensors, with its scaling factor."""
    if not (path / "config.json").is_file():
        raise InputError(f"autoencoder.path: {path} has no config.json; expected a folder in diffusers' format")
    Architecture.of((path / "config.json").read_bytes(), f"autoencoder.path: {path}/config.json")
    try:
        model = AutoencoderKL.from_pretrained(path, local_files_only=True, use_safetensors=True)
    except Exception as error:  # safetensors' own class among many
        raise InputError(f"autoencoder.path: {path} cannot be read: {brief(error)}") from None
    shape = (model.config["latent_channels"],)
    mean = torch.full(shape, float(model.config.get("shift_factor") or 0.0))
    return KlAutoencoder(model, mean, torch.full(shape, 1 / float(model.config["scaling_factor"])))
