"""The moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Average(nn.Module):
    """Exponential moving average of a network's trained parameters, in buffers: it goes from device to device as they do.

    With `warmup` its decay rises from 0.2 to `decay`, so that fresh weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = False):
        super().__init__()
        self.decay, self.warmup = decay, warmup
        for name, parameter in _trained(network).items():
            self.register_buffer(_stored(name), parameter.detach().clone())

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by the network's names."""
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int = 0) -> None:
        """Move towards the network; `step`, how many updates it had, matters to a warm-up alone."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        current = [parameter.detach() for parameter in _trained(network).values()]
        torch._foreach_lerp_(list(self.buffers()), current, 1 - decay)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these averages, by the network's names."""
        for name, buffer in self.weights.items():
            buffer.copy_(weights[name])

    def swap(self, network: nn.Module) -> None:
        """Exchange the network's weights with the average; a second call undoes it."""
        for name, parameter in _trained(network).items():
            parameter.data, self._buffers[_stored(name)] = self.get_buffer(_stored(name)), parameter.data

    def call(self, network: nn.Module, *inputs: Any) -> Tensor:
        """The network's prediction with the averaged weights."""
        prediction: Tensor = functional_call(network, self.weights, inputs)
        return prediction


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def _stored(name: str) -> str:
    """A parameter's name as a buffer's, in which a dot is not allowed."""
    return name.replace(".", "/")
