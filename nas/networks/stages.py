"""What the stages of a network put out (`nas.networks.backbones.Staged`), for one network to learn from another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nas.networks.backbones import Backbone, Staged
from nas.networks.conditioning import Text

Shapes = dict[str, tuple[int, ...]]  # of what each stage puts out for one picture, without the batch


@contextmanager
def heard(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within it, what each stage put out when the network was called last, by name; {} of a network that names no stages."""
    found: dict[str, Tensor] = {}

    def hear(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
            found[name] = output

        return module.register_forward_hook(keep)

    handles = [hear(*stage) for stage in network.stages.items()] if isinstance(network, Staged) else []
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def shapes(network: nn.Module, config: Backbone, side: int) -> Shapes:
    """What the stages put out for latents of this side. The network is `config`'s, without storage (the meta device)."""
    with torch.device("meta"):
        text = Text(torch.empty(1, 1, config.text_width), torch.empty(1, config.pooled_width or 1))
        given = (torch.empty(1, config.latent_channels, side, side), torch.zeros(1), text)
    with heard(network) as found, torch.no_grad():
        network(*given)
    return {name: tuple(output.shape[1:]) for name, output in found.items()}
