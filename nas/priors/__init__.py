"""Priors, one file each: from an embedded caption to the embedding of a picture of it (Kandinsky, Razzhigaev et al. 2023, arXiv
2310.03502; unCLIP, Ramesh et al. 2022, arXiv 2204.06125).

B rows, T tokens of width D, P the width of the pooled vector, E that of a picture's embedding. A file provides

- `Settings`: a frozen pydantic model;
- `Prior(settings, sizes)`: an `nn.Module` whose weights and buffers are all that `fit` finds, with
  `fit(lessons, seed, heard)`, which trains it in one go: a function of the lessons and the seed alone. `heard` is told how many
  embeddings were seen, of how many;
  `sample(text, noise)`: embeddings (B, E) of captions, a function of text and noise (B, E) alone, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from nas import interruption, menu
from nas.cost import traced
from nas.documents.section import Section
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.seeds import stream_seed

Heard = Callable[[int, int], None]
PARTS = 10  # times a training says how far it is


@dataclass(frozen=True)
class Sizes:
    """What a prior is built for."""

    tokens: int  # T
    width: int  # D
    pooled: int  # P
    image: int  # E


@dataclass(frozen=True)
class Lessons:
    """Training pictures' embeddings, and their captions; equal captions share a row."""

    captions: Text  # M different captions; the last is the empty one
    caption_of: Tensor  # (N,) int64
    images: Tensor  # (N, E)

    def text(self, rows: Tensor, dropped: Tensor | None = None) -> Text:
        """The captions of pictures `rows` (B,); where `dropped` (B,) is true, the empty one."""
        caption = self.caption_of[rows]
        if dropped is not None:
            caption = torch.where(dropped, len(self.captions.pooled) - 1, caption)
        return Text(self.captions.tokens[caption].float(), self.captions.pooled[caption].float())

    @property
    def sizes(self) -> Sizes:
        _, tokens, width = self.captions.tokens.shape
        return Sizes(tokens, width, self.captions.pooled.shape[1], self.images.shape[1])


class Learning(Section):
    """How a prior that is no closed form is trained: AdamW, the learning rate falling to 0 by a cosine."""

    images_seen: int = Field(131_072, ge=1, le=10**9)
    """Embeddings seen."""
    batch: int = Field(128, ge=1, le=2**20)
    """Embeddings an update."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """AdamW's, of the first update."""
    weight_decay: float = Field(0.01, ge=0, le=10)
    """AdamW's."""

    @property
    def updates(self) -> int:
        return -(-self.images_seen // self.batch)


class Prior(Protocol):
    """What the rest relies on (see the module docstring)."""

    def fit(self, lessons: Lessons, seed: int, heard: Heard) -> None: ...

    def sample(self, text: Text, noise: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def build(name: str, settings: Any, sizes: Sizes) -> Any:
    """A prior of the menu, untrained; nothing outside it is moved."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return menu.pick("priors", name).Prior(settings, sizes).eval()


def load(name: str, settings: Any, sizes: Sizes, weights: dict[str, Tensor], where: str) -> Any:
    """A prior with weights that were trained. Raises InputError for those of another one, or of other widths."""
    made = build(name, settings, sizes)
    wanted = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise InputError(
                f"prior: {where}: weights of another prior or width: {key} is {found.get(key, 'not there')}, expected "
                f"{wanted.get(key, 'none')} for embeddings of width {sizes.image}"
            )
    made.load_state_dict(weights)
    return made


def macs(prior: Prior, sizes: Sizes) -> int:
    """Multiply-adds of the embedding of one caption, all calls of a prior's network together."""
    caption = Text(torch.ones(1, sizes.tokens, sizes.width), torch.ones(1, sizes.pooled))
    return traced.flops(lambda: prior.sample(caption, torch.zeros(1, sizes.image))) // 2


def ignored(done: int, total: int) -> None:
    """Whoever is told and does not care."""


def learn(
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    lessons: Lessons,
    settings: Learning,
    seed: int,
    heard: Heard = ignored,
) -> None:
    """Train what of a network needs gradients to make `loss(rows, generator)` small, `rows` (B,) of the lessons.

    Raises Interrupted between two updates.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.updates)
    network.train()
    for update in range(settings.updates):
        interruption.check()
        generator = torch.Generator().manual_seed(stream_seed(seed, update))
        rows = torch.randint(len(lessons.images), (settings.batch,), generator=generator)
        adam.zero_grad()
        loss(rows, generator).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        falling.step()
        if (update + 1) * PARTS // settings.updates > update * PARTS // settings.updates:
            heard((update + 1) * settings.batch, settings.updates * settings.batch)
    network.eval()
