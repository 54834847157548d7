"""Seeds that depend on what is trained, not on who trains it when, and the noise of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np


def trial_seed(seed: int, key: str, repeat: int) -> int:
    """A 63-bit seed from (study seed, architecture key, repeat): workers and order don't matter."""
    return int.from_bytes(sha256(f"{seed}/{key}/{repeat}".encode()).digest()[:8], "big") >> 1


class Noise:
    """Gaussian numbers of a stream that starts at some 32-bit words. NumPy has frozen it, so an export's draw.py, which has
    no torch, draws the same.
    """

    def __init__(self, words: Sequence[int]):
        self._stream = np.random.RandomState(list(words))

    @classmethod
    def of_picture(cls, seed: int, index: int) -> Noise:
        """That of picture `index` drawn from a seed."""
        return cls([index, *divmod(seed % 2**64, 2**32)])

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        """The next numbers, float32 of this shape."""
        numbers: np.ndarray = self._stream.standard_normal(tuple(shape)).astype(np.float32)
        return numbers


def stream_seed(seed: int, position: int) -> int:
    """Independent 63-bit seeds for the positions of a stream (splitmix64's finaliser)."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1
