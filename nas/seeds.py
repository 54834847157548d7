"""Seeds that depend on what is trained, not on who trains it when."""

from __future__ import annotations

from hashlib import sha256


def trial_seed(seed: int, key: str, repeat: int) -> int:
    """A 63-bit seed from (study seed, architecture key, repeat): workers and order don't matter."""
    return int.from_bytes(sha256(f"{seed}/{key}/{repeat}".encode()).digest()[:8], "big") >> 1
