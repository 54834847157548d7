"""Moving averages of a network's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Ema:
    """Exponential moving average of a network's trained parameters, held in fp32."""

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.network = network
        self.average = {name: p.detach().clone() for name, p in self._trained()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        current = [p.detach() for _, p in self._trained()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    def follow(self) -> None:
        """Move the average to where the network is: the Trainer moves parameters to the GPU and back, but not these."""
        for name, parameter in self._trained():
            self.average[name] = self.average[name].to(parameter.device)

    def swap(self) -> None:
        """Exchange the network's weights with the average; a second call undoes it."""
        self.follow()
        for name, parameter in self._trained():
            parameter.data, self.average[name] = self.average[name], parameter.data


class Average(nn.Module):
    """The moving average of a network's trained parameters, as buffers, called through the network itself."""

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        for name, parameter in _trained(network).items():
            self.register_buffer(name.replace(".", "/"), parameter.detach().clone())  # a dot is not allowed in a name

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        for name, parameter in _trained(network).items():
            self.get_buffer(name.replace(".", "/")).lerp_(parameter, 1 - self.decay)

    def call(self, network: nn.Module, *inputs: Any) -> Tensor:
        """The network's prediction with the averaged weights."""
        averaged = {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}
        prediction: Tensor = functional_call(network, averaged, inputs)
        return prediction


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
