"""An autoencoder with a codebook: VQGAN (Esser et al. 2021, arXiv 2012.09841), and MoVQ (Zheng et al. 2022, arXiv 2209.09002),
whose decoder normalises by the latents at each place, as diffusers' `VQModel`.

Latents are entries of the codebook, or what the encoder puts out before it is replaced by the nearest entry (the latents of
Kandinsky, arXiv 2310.03502), or indices of entries. No weights ship: `nas prepare` trains them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from diffusers import VQModel
from pydantic import Field
from torch import Tensor, nn

from nas.disk import weight_files
from nas.documents.section import Section
from nas.errors import InputError, brief
from nas.networks.autoencoders import Configuration, check_sides

GROUPS = 32  # of every norm: diffusers' spatial one has no other number
MOST_CODES = 2**18
ABSENT = "scratch"
OTHERWISE = "autoencoder.path: one that nas prepare trains, or a pretrained one in diffusers' format"
FIRST = 4096  # pictures, at most, whose latents a new codebook is chosen from
WEIGHTS = "diffusion_pytorch_model.safetensors"

Width = Annotated[int, Field(ge=GROUPS, le=8_192, multiple_of=GROUPS)]
Size = Annotated[int, Field(strict=True, ge=1, le=8_192)]


class Settings(Section):
    """Which weights, what of them is a latent, and what network they are of."""

    path: Path | Literal["scratch"]
    """A .safetensors file, which `nas prepare` makes of the study's pictures, or a folder in diffusers' format. `scratch`: an
    untrained network, which stands in for a file until it is there."""
    latents: Literal["quantised", "unquantised", "indices"] = "quantised"
    """Entries of the codebook; what the encoder puts out, which is decoded as it is; or indices, for networks that draw token by
    token and have as many `codes`."""
    normalisation: Literal["group", "spatial"] = "spatial"
    """In the decoder: group norms alone, or scaled and shifted by the latents position by position (MoVQ)."""
    codes: int = Field(1024, ge=2, le=MOST_CODES)
    """Entries of the codebook."""
    channels: int = Field(4, ge=1, le=8_192)
    """Numbers of an entry: channels of the latents."""
    widths: tuple[Width, ...] = Field((32, 64, 64), min_length=1, max_length=16)
    """Channels at each resolution, the pictures' first; each further one is half as large. Multiples of 32."""
    blocks: int = Field(1, ge=1, le=64)
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    attention: bool = False
    """Whether positions attend to each other at the last resolution too, not in the middle alone."""


class Architecture(Configuration):
    """The arguments of `VQModel`."""

    KIND = "VQModel"

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], ...]
    up_block_types: tuple[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], ...]
    block_out_channels: tuple[Size, ...] = Field(min_length=1, max_length=16)
    layers_per_block: int = Field(1, strict=True, ge=1, le=64)
    act_fn: Literal["silu"] = "silu"
    latent_channels: Size = 3
    sample_size: Size = 32
    num_vq_embeddings: int = Field(256, strict=True, ge=2, le=MOST_CODES)
    norm_num_groups: Literal[32] = 32
    vq_embed_dim: Size | None = None
    scaling_factor: float = Field(0.18215, gt=0, allow_inf_nan=False)
    norm_type: Literal["group", "spatial"] = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
    force_upcast: bool = False

    @classmethod
    def built(cls, settings: Settings) -> Architecture:
        """That of a new network."""
        plain = len(settings.widths) - settings.attention
        return cls(
            down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",) * settings.attention,
            up_block_types=("AttnUpDecoderBlock2D",) * settings.attention + ("UpDecoderBlock2D",) * plain,
            block_out_channels=settings.widths,
            layers_per_block=settings.blocks,
            latent_channels=settings.channels,
            vq_embed_dim=settings.channels,
            num_vq_embeddings=settings.codes,
            norm_type=settings.normalisation,
        )

    @property
    def as_settings(self) -> dict[str, Any]:
        """What the settings say of this network."""
        return {
            "normalisation": self.norm_type,
            "codes": self.num_vq_embeddings,
            "channels": self.vq_embed_dim or self.latent_channels,
            "widths": self.block_out_channels,
            "blocks": self.layers_per_block,
            "attention": "AttnDownEncoderBlock2D" in self.down_block_types,
        }


def weights(settings: Settings) -> Path | None:
    """Where they lie."""
    return settings.path if isinstance(settings.path, Path) else None


def codes(settings: Settings) -> int | None:
    """Entries that latents are indices of."""
    return settings.codes if settings.latents == "indices" else None


def untrained(settings: Settings, seed: int = 0) -> VQModel:
    """The network with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQModel(**Architecture.built(settings).model_dump())


@torch.no_grad()
def start(settings: Settings, pictures: Tensor) -> VQModel:
    """A new network, whose codebook is what it makes of positions of pictures: entries that no position is near never learn."""
    model = untrained(settings)
    rows = torch.cat(
        [model.encode(part).latents.movedim(1, 3).flatten(0, 2) for part in torch.split(pictures[:FIRST], 64)]
    )
    distinct = torch.unique(rows, dim=0)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0))
    model.quantize.embedding.weight.copy_(distinct[order[torch.arange(settings.codes) % len(distinct)]])
    return model


def origin(settings: Settings) -> str:
    """What that is."""
    return "fresh weights"


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices (B, H, W) of the entries of a codebook (K, C) that are nearest to latents (B, C, H, W)."""
    distance = codebook.square().sum(1) - 2 * latents.movedim(1, 3) @ codebook.T  # less what all entries have alike
    return distance.argmin(3)


class Decoder(nn.Module):
    """Latents (B, C, H, W), as the settings have them -> pictures (B, 3, H f, W f) in [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: VQModel, kind: str, mean: Tensor, std: Tensor):
        super().__init__()
        self.codebook, self.convolution, self.network = model.quantize.embedding, model.post_quant_conv, model.decoder
        self.kind, self.spatial = kind, model.config["norm_type"] == "spatial"
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        if self.kind == "indices":
            found = latents.squeeze(1).round().long().clamp(0, self.codebook.num_embeddings - 1)
            entries = self.codebook(found).movedim(3, 1)
        else:
            entries = latents * self.std + self.mean
        if self.kind == "quantised":  # with the gradient of what it replaces
            near = self.codebook(nearest(entries, self.codebook.weight)).movedim(3, 1)
            entries = entries + (near - entries).detach()
        images: Tensor = self.network(self.convolution(entries), entries if self.spatial else None)
        return images.clamp(-1, 1)


class VqAutoencoder:
    """`VQModel` with latents shifted and scaled, channel by channel, unless they are indices. By the numbers of a file that
    `nas prepare` made unquantised latents have zero mean and unit variance, quantised ones nearly; a folder has none.
    """

    def __init__(self, model: VQModel, kind: str, mean: Tensor, std: Tensor):
        self.model, self.kind = model.eval().requires_grad_(False), kind
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.factor = 2 ** (len(model.config["block_out_channels"]) - 1)
        self.channels = 1 if kind == "indices" else self.mean.shape[1]

    def to(self, device: torch.device) -> Self:
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        check_sides(images, self.factor)
        latents: Tensor = self.model.encode(images.to(self.mean.device)).latents
        if self.kind == "unquantised":
            return (latents - self.mean) / self.std
        codebook = self.model.quantize.embedding
        found = nearest(latents, codebook.weight)
        if self.kind == "indices":
            return found[:, None].float()
        entries: Tensor = codebook(found).movedim(3, 1)
        return (entries - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.decoder()(latents.to(self.mean.device))
        return images

    def decoder(self) -> nn.Module:
        return Decoder(self.model, self.kind, self.mean, self.std)

    @torch.no_grad()
    def used(self, images: Tensor) -> Tensor:
        codebook = self.model.quantize.embedding.weight
        found = nearest(self.model.encode(images.to(codebook.device)).latents, codebook)
        return torch.bincount(found.flatten(), minlength=len(codebook))


def load(settings: Settings) -> VqAutoencoder:
    """The autoencoder. Raises InputError when the weights are not there, not readable, or of another network than is named."""
    if not isinstance(settings.path, Path):
        plain = torch.zeros(settings.channels)
        return VqAutoencoder(untrained(settings), settings.latents, plain, torch.ones_like(plain))
    path = settings.path
    where = f"autoencoder.path: {path} cannot be read as weights of a VQ autoencoder"
    config, tensors, scale = _from_folder(path) if path.is_dir() else _from_file(path, where)
    named = Architecture.of(config, f"{where}: its config")
    _check_same(settings, named)
    try:
        model = VQModel(**named.model_dump(exclude_unset=True))
        model.load_state_dict({name: value.float() for name, value in tensors.items()})
        given = (json.loads(scale[name]) if scale else [one] * settings.channels for name, one in SCALE.items())
        mean, std = (torch.tensor(numbers).view(settings.channels) for numbers in given)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:  # RecursionError is a RuntimeError
        raise InputError(f"{where}: {brief(error)}") from None
    return VqAutoencoder(model, settings.latents, mean, std)


SCALE = {"latent_mean": 0.0, "latent_std": 1.0}  # of a file's metadata, and what Kandinsky takes for them


def _from_file(path: Path, where: str) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Its configuration, its tensors, and the scale of its latents."""
    held = weight_files.read(path, "autoencoder.path")
    if missing := {"config", *SCALE} - held.metadata.keys():
        raise InputError(f"{where}: it does not say its {min(missing)}; expected a file that nas prepare wrote")
    return held.metadata["config"], held.tensors, held.metadata


def _from_folder(path: Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """The same of a folder in diffusers' format."""
    if not (path / "config.json").is_file():
        raise InputError(f"autoencoder.path: {path} has no config.json; expected a folder in diffusers' format")
    text = (path / "config.json").read_text(encoding="utf-8", errors="replace")
    return text, weight_files.read(path / WEIGHTS, "autoencoder.path").tensors, {}


def _check_same(settings: Settings, named: Architecture) -> None:
    """Raises InputError where weights are of another network than the settings describe."""
    for name, held in named.as_settings.items():
        if (wanted := getattr(settings, name)) != held:
            spelled, own = (list(value) if isinstance(value, tuple) else value for value in (held, wanted))
            raise InputError(f"autoencoder.{name}: {own}, but {settings.path} has {spelled}; expected {spelled}")
