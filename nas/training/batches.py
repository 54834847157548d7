"""What an update learns from: update i of a trial is a pure function of (seed, i)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from nas.objectives import LatentBatch
from nas.seeds import stream_seed
from nas.settings.training import Training
from nas.training.encoded import EncodedSet


class Batches(IterableDataset[LatentBatch]):
    """Updates `start` .. `stop` - 1. An epoch is a fresh permutation; all that is random derives from (seed, update)."""

    def __init__(self, data: EncodedSet, settings: Training, seed: int, start: int, stop: int):
        self.data, self.settings, self.seed, self.start, self.stop = data, settings, seed, start, stop

    def __iter__(self) -> Iterator[LatentBatch]:
        for update in range(self.start, self.stop):
            rows = shuffled_rows(len(self.data), self.settings.batch, update, self.seed)
            generator = torch.Generator().manual_seed(stream_seed(self.seed, update))
            yield drawn(self.data, rows, self.settings.caption_dropout, generator, update)


def drawn(
    data: EncodedSet, rows: Tensor, caption_dropout: float, generator: torch.Generator, update: int
) -> LatentBatch:
    """The batch of these rows (B,), some of its captions dropped."""
    dropped = torch.rand(len(rows), generator=generator) < caption_dropout
    start = None if data.noise is None else data.noise[rows]
    return LatentBatch(data.latents[rows], data.text(rows, dropped), data.null, generator, update, start)


def shuffled_rows(size: int, batch: int, update: int, seed: int) -> Tensor:
    """Row numbers (batch,) of an update: the next entries of the endless sequence of permutations of `size` rows."""
    first = update * batch
    epochs = range(first // size, (first + batch - 1) // size + 1)
    sequence = torch.cat([_permutation(size, stream_seed(seed, -1 - epoch)) for epoch in epochs])
    offset = first - epochs[0] * size
    return sequence[offset : offset + batch]


def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
