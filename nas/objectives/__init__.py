"""Training objectives, one file each. The training loop never names one.

A file provides

- `Settings`: a frozen pydantic model;
- `noise_schedule(settings)`: the diffusers scheduler whose configuration a sampler must use;
- `Objective(generator, teacher, settings)`: an `nn.Module` with `requires` (a frozenset of `INPUTS` that a study must
  supply; what is not among them is refused before anything is trained), `schedule_config` (that scheduler's
  configuration), `generator_loss(batch) -> scalar`, `critics` (the other networks that learn, by name: a discriminator, a
  fake score; {} for none), `logged` (detached scalars of the last losses, by name), and `after_step()`.

What an objective trains or moves is a submodule, and is saved with a checkpoint; only `teacher`, which never changes, is
not. Randomness comes from the batch's generator, and what depends on the update's number from the batch's `update`, so
that a resumed training is the uninterrupted one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from nas.networks.conditioning import Text


@dataclass(frozen=True)
class LatentBatch:
    """What one update sees. `generator` is the only source of randomness an objective may use."""

    latents: Tensor  # (B, C, H, W), unit variance
    text: Text  # tokens (B, T, D), pooled (B, P); already replaced by the null caption where dropped
    generator: Generator
    update: int = 0  # number of this update, from 0

    def to(self, device: torch.device | str) -> "LatentBatch":
        """The batch on another device; the generator stays, so that every device sees the same numbers."""
        text = Text(self.text.tokens.to(device), self.text.pooled.to(device))
        return LatentBatch(self.latents.to(device), text, self.generator, self.update)

    def split(self, parts: int) -> "list[LatentBatch]":
        """The batch in at most `parts` pieces of about the same size, which draw from its generator one after the other."""
        if parts == 1:
            return [self]
        latents, tokens, pooled = (torch.chunk(value, parts) for value in (self.latents, *self.text))
        return [
            LatentBatch(one, Text(*text), self.generator, self.update)
            for one, *text in zip(latents, tokens, pooled, strict=True)
        ]

    def draw(self, steps: int) -> tuple[Tensor, Tensor]:
        """Uniform random times (B,) in 0 .. steps - 1, and noise of the latents' shape."""
        time = torch.randint(steps, self.latents.shape[:1], generator=self.generator)
        return time.to(self.latents.device), self.noise()

    def noise(self) -> Tensor:
        """Fresh noise of the latents' shape."""
        return torch.randn(self.latents.shape, generator=self.generator).to(self.latents.device)


INPUTS = {"teacher": "the trained network that a `base` section names"}  # what a study can supply


@dataclass(frozen=True)
class Critic:
    """A network that learns beside the generator, and how. It is a submodule of the objective."""

    network: nn.Module
    loss: Callable[[LatentBatch], Tensor]
    updates: int = 1  # its updates in a row, each before a generator update
    every: int = 1  # generator updates from one turn of its to the next
    learning_rate: float = 1.0  # times the generator's
    betas: tuple[float, float] | None = None  # AdamW's; None: the generator's


class Objective(Protocol):
    """What the training loop relies on (see the module docstring)."""

    requires: frozenset[str]
    logged: dict[str, Tensor]

    @property
    def generator(self) -> nn.Module: ...

    @property
    def critics(self) -> Mapping[str, Critic]: ...

    @property
    def schedule_config(self) -> dict[str, Any]: ...

    def generator_loss(self, batch: LatentBatch) -> Tensor: ...

    def after_step(self) -> None: ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...
