"""What an adversary of a generator is made of: a copy of a denoiser, or small heads on its features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from nas.errors import InputError
from nas.networks.conditioning import Text

MIDDLE = 0.5  # what computing to the middle costs of a pass, and back from it of a backward pass


def discriminator(denoiser: nn.Module) -> nn.Module:
    """A trainable copy of the denoiser whose last layer is zero, so that it starts undecided."""
    critic = deepcopy(denoiser).float().requires_grad_(True)
    for parameter in _named(critic, "output").parameters():
        nn.init.zeros_(parameter)
    return critic


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it the network passes gradients to its input but takes none."""
    taking = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in taking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in taking:
            parameter.requires_grad_(True)


def features(denoiser: nn.Module, latents: Tensor, time: Tensor, text: Text) -> Tensor:
    """What the denoiser's `middle` puts out, as (B, width, positions), float32. What comes after it is not computed."""

    def stop(layer: nn.Module, inputs: object, output: Tensor) -> None:
        raise _Reached(output)

    handle = _named(denoiser, "middle").register_forward_hook(stop)
    try:
        denoiser(latents, time, text)
    except _Reached as reached:
        found = reached.output
    finally:
        handle.remove()
    tokens = found.transpose(1, 2) if found.dim() == 3 else found.flatten(2)  # (B, N, D) or (B, C, H, W)
    return tokens.float()


class _Reached(Exception):  # noqa: N818 (not an error)
    """The layer that was asked for put something out."""

    def __init__(self, output: Tensor):
        self.output = output


class Head(nn.Module):
    """Logits (B, positions) of features (B, width, positions) of a denoiser's `middle`: two pointwise layers.

    It starts undecided, its last layer being zero, and the same in every training. Positions are all that the middle puts out,
    a transformer's text tokens too where it joins them. Raises InputError for a denoiser that does not name its middle.
    """

    def __init__(self, denoiser: nn.Module, seed: int = 0):
        super().__init__()
        _named(denoiser, "middle")
        width = int(denoiser.middle_width)  # type: ignore[arg-type]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Sequential(nn.GroupNorm(1, width), nn.Conv1d(width, width, 1), nn.SiLU())
            self.last = nn.Conv1d(width, 1, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, found: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(found)).squeeze(1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class ConditionedHead(nn.Module):
    """Logits (B, positions) of features (B, width, positions) from any network, which may know conditions (B, D).

    Two pointwise layers, and the inner product of what the first gives with a projection of the conditions (Miyato and Koyama
    2018, arXiv 1802.05637, eq. 3). It starts undecided, and the same in every training. D may be 0.
    """

    def __init__(self, width: int, conditions: int, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Sequential(nn.GroupNorm(1, width), nn.Conv1d(width, width, 1), nn.SiLU())
            self.last = nn.Conv1d(width, 1, 1)
            self.project = nn.Linear(conditions, width, bias=False) if conditions else None
        for layer in filter(None, (self.last, self.project)):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, found: Tensor, conditions: Tensor) -> Tensor:
        hidden = self.first(found)
        logits: Tensor = self.last(hidden).squeeze(1)
        if self.project is not None:
            logits = logits + (self.project(conditions)[:, :, None] * hidden).sum(1)
        return logits.float()


def _named(denoiser: nn.Module, name: str) -> nn.Module:
    layer = getattr(denoiser, name, None)
    if not isinstance(layer, nn.Module):
        raise InputError(f"objective: the backbone {type(denoiser).__name__} does not name its layer `{name}`")
    return layer
