"""A structure adapter: a small network beside a frozen denoiser that makes its pictures follow an edge map.

As T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): the map is unshuffled to the size of the latents, and one feature map for
every resolution is added where the denoiser goes down, the same at all times, so it is computed once per picture. As
ControlNet (Zhang et al. 2023, arXiv 2302.05543), the last convolutions start at zero, so a new adapter changes nothing. The
denoiser itself is not touched, so an adapter of a base model plugs into whatever was fine-tuned from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from nas.diffusion.schedule import denoising_error
from nas.disk import weight_files
from nas.errors import InputError
from nas.seeds import stream_seed
from nas.training.encoded import EncodedSet

if TYPE_CHECKING:
    from nas.networks.backbones.unet.network import UNet


class Adapter(nn.Module):
    """Edge maps (B, 1, fH, fW) -> one feature map (B, C, h, w) for each of the denoiser's `places`."""

    def __init__(self, network: UNet, factor: int, width: int = 32):
        super().__init__()
        self.factor = factor
        self.stem = nn.Conv2d(factor * factor, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in places(network))
        self.outputs = nn.ModuleList(_zeroed(nn.Conv2d(width, place.out_channels, 1)) for place in places(network))

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Raises InputError for maps that the autoencoder's factor does not divide."""
        if any(side % self.factor for side in maps.shape[2:]):
            raise InputError(f"adapter: maps of {tuple(maps.shape[2:])} pixels, expected multiples of {self.factor}")
        x, features = self.stem(F.pixel_unshuffle(maps, self.factor)), []
        for index, (block, output) in enumerate(zip(self.blocks, self.outputs, strict=True)):
            x = F.avg_pool2d(x, 2) if index else x
            x = x + block(F.silu(x))
            features.append(output(x))
        return features


def places(network: nn.Module) -> list[nn.Conv2d]:
    """The layers whose outputs features are added to: the first convolution, and every one that halves the size."""
    unet = cast("UNet", network)
    halving = [cast(Any, level).downsample for level in unet.levels]
    return [unet.conv_in, *(layer for layer in halving if layer is not None)]


@contextmanager
def plugged(network: nn.Module, features: Sequence[Tensor]) -> Iterator[None]:
    """Within it the network adds the features, (B, C, h, w) each, to its own; its batch is B rows, once or several times."""

    def adding(feature: Tensor) -> Any:
        return lambda layer, inputs, output: output + feature.repeat(len(output) // len(feature), 1, 1, 1)

    pairs = zip(places(network), features, strict=True)
    handles = [place.register_forward_hook(adding(feature)) for place, feature in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained."""

    images: int = 4_096
    """Pictures seen."""
    batch: int = 64
    learning_rate: float = 2e-3
    """AdamW's; falls to zero as half a cosine."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one; the map stays."""
    seed: int = 0


def train(adapter: Adapter, network: nn.Module, schedule: Any, data: EncodedSet, maps: Tensor, recipe: Recipe) -> None:
    """Train in place by the denoising loss of a frozen network on pictures with their edge maps (N, 1, fH, fW)."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    updates, steps = math.ceil(recipe.images / recipe.batch), schedule.config["num_train_timesteps"]
    for update in range(updates):
        generator = torch.Generator().manual_seed(stream_seed(recipe.seed, update))
        rows = torch.randint(len(data), (recipe.batch,), generator=generator)
        time = torch.randint(steps, (recipe.batch,), generator=generator)
        noise = torch.randn((recipe.batch, *data.latents.shape[1:]), generator=generator)
        dropped = torch.rand(recipe.batch, generator=generator) < recipe.caption_dropout
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * update / updates))
        with plugged(network, adapter(maps[rows])):
            text = data.text(rows, dropped)
            loss = denoising_error(network, schedule, data.latents[rows], text, time, noise).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()


def save(adapter: Adapter, path: Path, metadata: dict[str, str]) -> None:
    """The adapter's weights alone, as safetensors."""
    save_file({name: value.detach().contiguous() for name, value in adapter.state_dict().items()}, path, metadata)


def load(adapter: Adapter, path: Path) -> None:
    """Read `save`'s file. Raises InputError when it is another network's adapter."""
    held = weight_files.read(path, "adapter").tensors
    try:
        adapter.load_state_dict(held)
    except RuntimeError as error:
        raise InputError(f"{path}: not an adapter of this network: {' '.join(str(error).split())[:160]}") from None


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
