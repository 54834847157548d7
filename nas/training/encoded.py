"""Latents and text embeddings of a data set, computed once and cached on disk for every trial of every study."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from nas.datasets import Batch
from nas.disk import files, weight_files
from nas.machine import cores
from nas.networks.autoencoders import Autoencoder
from nas.networks.conditioning import Text, TextEncoder, pictures

TEXT_BATCH = 64
READING = "2"  # how files become pictures and captions; what was encoded of another reading is encoded again


@dataclass(frozen=True)
class Embedded:
    """What a denoiser is told of pictures beside their captions."""

    how: Literal["alone", "with_text"]
    of_picture: Tensor  # (N, E) float32
    null: Tensor  # (1, E): of no picture, for the unconditional branch of guidance


@dataclass(frozen=True)
class EncodedSet:
    """A split as a denoiser sees it. Equal captions share one row of embeddings."""

    latents: Tensor  # (N, C, H, W) float32, unit variance
    caption_of: Tensor  # (N,) int64: row of each image's caption
    captions: tuple[str, ...]  # M different captions; the last is the empty one
    tokens: Tensor  # (M, T, D) float16
    pooled: Tensor  # (M, P) float16
    noise: Tensor | None = None  # (N, C, H, W) float32: what the latents were drawn from, where a network drew them
    embedded: Embedded | None = None  # where the denoiser is conditioned on embeddings of pictures

    def __len__(self) -> int:
        return len(self.latents)

    def words(self, rows: Tensor) -> list[str]:
        """The captions of images `rows` (B,)."""
        return [self.captions[index] for index in self.caption_of[rows]]

    def text(self, rows: Tensor, dropped: Tensor | None = None, image: Tensor | None = None) -> Text:
        """Embeddings for images `rows` (B,); where `dropped` (B,) is true, those of the empty caption, and of no picture.

        `image` (B, E): what stands for the pictures in place of their own embeddings.
        """
        caption = self.caption_of[rows]
        if dropped is not None:
            caption = torch.where(dropped, len(self.captions) - 1, caption)
        words = Text(self.tokens[caption].float(), self.pooled[caption].float())
        if self.embedded is None:
            return words
        image = self.embedded.of_picture[rows] if image is None else image
        if dropped is not None:
            image = torch.where(dropped[:, None], self.embedded.null, image)
        return pictures.joined(self.embedded.how, words, image, self.null_words)

    @property
    def null_words(self) -> Text:
        """The empty caption alone, one row."""
        return Text(self.tokens[-1:].float(), self.pooled[-1:].float())

    @property
    def null(self) -> Text:
        """What guidance leads away from, one row: the empty caption, and the embedding of no picture."""
        words = self.null_words
        return words if self.embedded is None else pictures.joined(self.embedded.how, words, self.embedded.null, words)


def side_by_side() -> int:
    """Batches that are encoded at a time: all cores of this process are free, because workers wait for their data."""
    return max(1, cores() // torch.get_num_threads())


def encode_images(batches: Iterable[Batch], autoencoder: Autoencoder) -> tuple[Tensor, list[str]]:
    """Latents (N, C, H, W) and the N captions.

    Batches are encoded side by side, which changes none of them.
    """
    latents: list[Tensor] = []
    captions: list[str] = []
    begun: deque[Future[Tensor]] = deque()
    count, threads = side_by_side(), (torch.get_num_threads(),)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=threads) as pool:
        for batch in batches:
            begun.append(pool.submit(autoencoder.encode, batch.images))
            captions += batch.captions
            if len(begun) > 2 * count:  # pictures that wait are few
                latents.append(begun.popleft().result().cpu())
        latents += [future.result().cpu() for future in begun]
    return torch.cat(latents).contiguous() if latents else torch.empty(0), captions


def encode_captions(captions: Iterable[str], encoder: TextEncoder) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """The different captions with the empty one last, their tokens (M, T, D) and pooled vectors (M, P), float16.

    Captions are encoded shortest first, so that a batch is padded little.
    """
    different = sorted(set(captions) - {""}, key=lambda caption: (len(caption), caption))
    ordered = (*different, "")
    chunks = [encoder.encode(ordered[i : i + TEXT_BATCH]) for i in range(0, len(ordered), TEXT_BATCH)]
    tokens, pooled = (torch.cat(parts).half().cpu() for parts in zip(*chunks, strict=True))
    return ordered, tokens, pooled


def cache_path(folder: Path, **identity: Mapping[str, Any] | str) -> Path:
    """Where something made from `identity` is cached: equal identities share a file."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"


def load_or_encode(
    path: Path,
    batches: Callable[[], Iterable[Batch]],
    autoencoder: Callable[[], Autoencoder],
    encoder: Callable[[], TextEncoder],
) -> EncodedSet:
    """The cached split at `path`. Only if it is not there yet are the three factories called to make it."""
    if not path.exists():
        _save(path, encode(batches(), autoencoder(), encoder()))
    return _load(path)


def encode(batches: Iterable[Batch], autoencoder: Autoencoder, encoder: TextEncoder) -> EncodedSet:
    """Pictures and their captions, on the CPU whatever the models compute on."""
    latents, image_captions = encode_images(batches, autoencoder)
    captions, tokens, pooled = encode_captions(image_captions, encoder)
    row = {caption: index for index, caption in enumerate(captions)}
    caption_of = torch.tensor([row[caption] for caption in image_captions], dtype=torch.int64)
    return EncodedSet(latents, caption_of, captions, tokens, pooled)


def _save(path: Path, data: EncodedSet) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": data.latents, "caption_of": data.caption_of, "tokens": data.tokens, "pooled": data.pooled}
    with files.replacing(path) as partial:
        save_file(tensors, partial, {"captions": json.dumps(data.captions)})


def _load(path: Path) -> EncodedSet:
    tensors, metadata = weight_files.read(path, "cache")
    captions = tuple(json.loads(metadata["captions"]))
    return EncodedSet(tensors["latents"], tensors["caption_of"], captions, tensors["tokens"], tensors["pooled"])
