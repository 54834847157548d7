"""Pictures of any number as updates: read in order, pass after pass, encoded by the frozen models window by window.

A window is what `nas.training.encoded` makes of a whole data set, of the next few thousand pictures instead. Updates draw
from a random
permutation of it, and the next one is encoded in a thread meanwhile. A data set that fits one window is encoded once. Update i
is a function of (seed, i, devices), so a resumed training repeats nothing: it reads over the pictures before its window
without decoding them. Of several devices each decodes and encodes its own share, but all read everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from nas import interruption
from nas.datasets import BATCH, Batch, Captioned, Pictures, groups
from nas.errors import InputError
from nas.networks.autoencoders import Autoencoder
from nas.networks.conditioning import TextEncoder
from nas.objectives import LatentBatch
from nas.seeds import stream_seed
from nas.training.batches import drawn, shuffled_rows
from nas.training.encoded import EncodedSet, encode


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Place:
        """As torch.distributed says."""
        group = torch.distributed
        if not (group.is_available() and group.is_initialized()):
            return cls()
        return cls(group.get_rank(), group.get_world_size())


@dataclass(frozen=True)
class Frozen:
    """The models between pictures and a denoiser."""

    autoencoder: Autoencoder
    encoder: TextEncoder

    def to(self, device: torch.device) -> Frozen:
        return Frozen(self.autoencoder.to(device), self.encoder.to(device))


@dataclass(frozen=True)
class Reading:
    """How pictures become batches."""

    batch: int
    """Of an update, over all devices."""
    caption_dropout: float
    seed: int
    window: int
    """Pictures, over all devices; the next multiple of the batch is taken."""
    threads: int = 1
    """That decode."""

    @property
    def updates(self) -> int:
        """Updates that draw from one window."""
        return max(1, -(-self.window // self.batch))

    @property
    def size(self) -> int:
        """Pictures of a window."""
        return self.updates * self.batch


class Stream(IterableDataset[LatentBatch]):
    """Updates `start` .. `stop` - 1 of this process's share. `device` is asked once the training has moved there."""

    def __init__(
        self,
        pictures: Pictures,
        frozen: Frozen,
        reading: Reading,
        start: int,
        stop: int,
        device: Callable[[], torch.device] = lambda: torch.device("cpu"),
    ):
        self.pictures, self.frozen, self.reading = pictures, frozen, reading
        self.start, self.stop, self.device = start, stop, device

    def __iter__(self) -> Iterator[LatentBatch]:
        how, place = self.reading, Place.here()
        if fits(self.pictures.items, how.size):
            data = self._encoded(list(self.pictures.items), place)
            yield from (self._update(data, update, update, how.seed, place) for update in range(self.start, self.stop))
            return
        first = self.start // how.updates
        for window, data in enumerate(self._windows(first, place), first):
            begins = window * how.updates
            for update in range(max(begins, self.start), min(begins + how.updates, self.stop)):
                yield self._update(data, update, update - begins, stream_seed(how.seed, -1 - window), place)

    def _update(self, data: EncodedSet, update: int, position: int, seed: int, place: Place) -> LatentBatch:
        """Number `update`, which takes rows from `position` shares on."""
        how = self.reading
        own = stream_seed(seed, place.rank) if place.rank else seed
        rows: Tensor = shuffled_rows(len(data), how.batch // place.world, position, own)
        generator = torch.Generator().manual_seed(stream_seed(how.seed, update * place.world + place.rank))
        return drawn(data, rows, how.caption_dropout, generator, update)

    def _windows(self, first: int, place: Place) -> Iterator[EncodedSet]:
        """Windows `first` .. that of the last update, each encoded while updates draw from the one before."""
        how = self.reading
        items = passes(self.pictures.items, first * how.size)
        left = (self.stop - 1) // how.updates - first + 1
        with ThreadPoolExecutor(1, "encode") as ahead:
            coming = ahead.submit(self._encoded, list(islice(items, how.size)), place)
            for number in range(left):
                data = coming.result()
                if number + 1 < left:
                    coming = ahead.submit(self._encoded, list(islice(items, how.size)), place)
                yield data

    def _encoded(self, items: list[Captioned], place: Place) -> EncodedSet:
        frozen = self.frozen.to(self.device())
        with ThreadPoolExecutor(self.reading.threads, "decode") as pool:
            batches = self._decoded(items[place.rank :: place.world], pool, place.world == 1)
            data = encode(batches, frozen.autoencoder, frozen.encoder)
        if len(data) == 0:
            raise InputError("dataset: no readable picture in the training split, or fewer than devices")
        return data

    def _decoded(self, items: list[Captioned], pool: ThreadPoolExecutor, alone: bool) -> Iterator[Batch]:
        for group in groups(items, BATCH):
            if alone:  # several processes must agree on when to stop
                interruption.check()
            pairs = [pair for pair in pool.map(self.pictures.decoded, group) if pair is not None]
            if pairs:
                images = torch.stack([image for image, _ in pairs])
                yield Batch(images, [item.caption for _, item in pairs], [item.key for _, item in pairs])


def fits(items: Iterable[Captioned], size: int) -> bool:
    """Whether there are at most `size` items."""
    return sum(1 for _ in islice(iter(items), size + 1)) <= size


def passes(items: Iterable[Captioned], skip: int) -> Iterator[Captioned]:
    """The items over and over, without the first `skip`. What is skipped is read at most twice. InputError if there are none."""
    passed = 0
    while True:
        length = 0
        for item in items:
            length += 1
            if passed + length > skip:
                yield item
        if length == 0:
            raise InputError("dataset: the training split is empty")
        passed += length * max(1, (skip - passed) // length)
