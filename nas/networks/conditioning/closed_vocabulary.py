"""A frozen text encoder for a closed vocabulary: every word has a fixed vector of signs, every place another.

Nothing is trained and nothing is stored: the signs come from numpy's Philox generator, so they are the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import InputError
from nas.menu import nearest
from nas.networks.conditioning import Text, tokenizer_file
from nas.networks.conditioning.tokenizer_file import TokenizerFile
from nas.networks.conditioning.towers import WordTower

WIDTH = 96
PLACE = 0.5  # size of a place's vector beside a word's


class ClosedVocabulary:
    """A token is its word's vector and its place's; pooled is the sum of the words' over the root of their number."""

    width = pooled_width = WIDTH

    def __init__(self, words: Sequence[str], length: int):
        self.words, self.length = list(words), length
        self.examples: Sequence[str] = [" ".join(self.words[number : 2 * number]) for number in range(1, 6)]
        self.number = {word: number for number, word in enumerate(words, 1)}  # 0 is no word
        self._network = WordTower(signs(len(words), seed=1), PLACE * signs(length, seed=2))

    def to(self, device: torch.device) -> Self:
        self._network.to(device)
        return self

    def encode(self, captions: Sequence[str]) -> Text:
        ids = self.tokenise(captions)["input_ids"].to(self._network.words.device)
        return Text(*self._network(ids))

    def tokenise(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Raises InputError naming a word that is not in the vocabulary."""
        ids = torch.zeros((len(captions), self.length), dtype=torch.int64)
        for row, caption in enumerate(captions):
            numbers = self._numbers(caption)[: self.length]
            ids[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return {"input_ids": ids}

    def _numbers(self, caption: str) -> list[int]:
        found = re.findall(r"\w+", caption.lower())
        unknown = next((word for word in found if word not in self.number), None)
        if unknown is not None:
            raise InputError(f"caption {caption!r}: unknown word {unknown!r}{nearest(unknown, self.words)}")
        return [self.number[word] for word in found]

    def tokenizer_file(self) -> TokenizerFile:
        return tokenizer_file.of_words(self.words, self.length)

    def network(self) -> nn.Module:
        return self._network

    def token_count(self, caption: str) -> int:
        return len(self._numbers(caption))


def signs(rows: int, seed: int) -> Tensor:
    """Vectors (rows, WIDTH) of -1 and 1, the same on every machine."""
    drawn = np.random.Generator(np.random.Philox(key=seed)).integers(0, 2, (rows, WIDTH))
    return torch.from_numpy(drawn).float() * 2 - 1
