"""Training objectives, one file each. The training loop never names one.

A file provides

- `Settings`: a frozen pydantic model;
- `Objective(generator, teacher, settings)`: an `nn.Module` with `requires` (a frozenset of what a study must supply:
  "teacher", "prompts", "pairs"), `schedule_config` (the diffusers scheduler configuration a sampler must use), and
  `generator_loss(batch) -> scalar`. Optional: `critic` (a second network, or None), `critic_loss(batch)`,
  `critic_updates` per generator update, and `after_step()`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from nas.conditioning import Text


@dataclass(frozen=True)
class LatentBatch:
    """What one update sees. `generator` is the only source of randomness an objective may use."""

    latents: Tensor  # (B, C, H, W), unit variance
    text: Text  # tokens (B, T, D), pooled (B, P); already replaced by the null caption where dropped
    generator: Generator

    def to(self, device: torch.device | str) -> "LatentBatch":
        """The batch on another device; the generator stays, so that every device sees the same numbers."""
        text = Text(self.text.tokens.to(device), self.text.pooled.to(device))
        return LatentBatch(self.latents.to(device), text, self.generator)

    def draw(self, steps: int) -> tuple[Tensor, Tensor]:
        """Uniform random times (B,) in 0 .. steps - 1, and noise of the latents' shape."""
        time = torch.randint(steps, self.latents.shape[:1], generator=self.generator)
        noise = torch.randn(self.latents.shape, generator=self.generator)
        return time.to(self.latents.device), noise.to(self.latents.device)


class Objective(Protocol):
    """What the training loop relies on (see the module docstring)."""

    requires: frozenset[str]
    critic_updates: int

    @property
    def generator(self) -> nn.Module: ...

    @property
    def critic(self) -> nn.Module | None: ...

    @property
    def schedule_config(self) -> dict[str, Any]: ...

    def generator_loss(self, batch: LatentBatch) -> Tensor: ...

    def critic_loss(self, batch: LatentBatch) -> Tensor: ...

    def after_step(self) -> None: ...
