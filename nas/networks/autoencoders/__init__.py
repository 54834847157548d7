"""Autoencoders between pictures and latents, one file per kind:

- `Settings`, and `load(settings) -> Autoencoder`;
- `weights(settings)`, where they lie, and `OTHERWISE`, what to use in their place (`nas.weights.worlds`);
- `start(settings, pictures)`, the network that `nas prepare` trains on with pictures (N, 3, H, W), and `origin(settings)`, what
  it was before, in words;
- `codes(settings)`, how many entries a codebook has of which latents are indices, as numbers; None where they are no indices;
- `ABSENT`, the `path` of a study that is looked at before its own is there.
"""

from __future__ import annotations

import json
from typing import ClassVar, Protocol, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from nas.documents import strict
from nas.documents.section import Section
from nas.errors import InputError, brief


class Autoencoder(Protocol):
    """What the rest relies on. Latents have unit variance, unless they are indices; encoding is deterministic (the posterior's
    mean)."""

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

    def used(self, images: Tensor) -> Tensor | None:
        """How often each entry of the codebook stands in pictures (B, 3, H, W), (K,) int64; None where there is no codebook."""
        ...


class Configuration(Section):
    """What is read of diffusers' configuration: the arguments of one class, and nothing that would load anything else."""

    KIND: ClassVar[str]  # diffusers' class

    @classmethod
    def of(cls, text: str | bytes, where: str) -> Self:
        """From JSON, without diffusers' own notes, which begin with `_`.

        Raises InputError, beginning with `where`, for a key that is not named here.
        """
        try:
            content = dict(json.loads(text))
            if (kind := content.get("_class_name", cls.KIND)) != cls.KIND:
                raise InputError(f"{where}: _class_name: expected {cls.KIND}, got {kind!r}")
            own = {key: value for key, value in content.items() if not key.startswith("_")}
            named: Self = strict.validated(cls, own)
            return named
        except ValidationError as error:
            raise InputError(f"{where}: {strict.first_wrong(cls, error)}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{where}: {brief(error)}") from None


def check_sides(images: Tensor, factor: int) -> None:
    """Raises InputError for pictures (B, 3, H, W) whose sides a factor does not divide."""
    for side in images.shape[2:]:
        if side % factor:
            raise InputError(f"dataset.image_size: {side} is not divisible by the autoencoder's {factor}")
