"""Autoencoders between pictures and latents, one file per kind: `Settings`, and `load(settings) -> Autoencoder`."""

from typing import Protocol, Self

import torch
from torch import Tensor, nn


class Autoencoder(Protocol):
    """What the rest relies on. Latents have unit variance; encoding is deterministic (the posterior's mean)."""

    factor: int  # picture pixels per latent position along one side
    channels: int  # of the latents

    def to(self, device: torch.device) -> Self:
        """The autoencoder itself, moved to a device; so are pictures and latents that it is given."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, channels, H / factor, W / factor)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The way back."""
        ...

    def decoder(self) -> nn.Module:
        """The way back as a module, for formats that hold one network: latents -> pictures, as `decode`."""
        ...
