"""A table of block latencies: the time of a network is the sum of its blocks'."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from nas.disk import files
from nas.errors import InputError

VERSION = 2  # 1: tokens contiguous, skips already concatenated
COLUMN = "latency_ms"
Clock = Literal["cpu", "wall"]
Fields = tuple[tuple[str, Any], ...]  # names of fields and their values


class Block(NamedTuple):
    """One piece of a denoiser, by everything its speed depends on."""

    kind: str  # conv | projections | transformer | downsample | upsample | ends
    side: int  # of the image it takes
    inputs: tuple[int, ...]  # widths of its concatenated inputs
    channels: int  # width it puts out
    settings: Fields  # fields of Level and Config it reads, sorted

    @property
    def name(self) -> str:
        """As a table spells it."""
        told = " ".join(f"{name}={value}" for name, value in self.settings)
        return f"{self.kind} {self.side}px {'+'.join(map(str, self.inputs))}->{self.channels} {told}".strip()


class Blocks(Protocol):
    """A network that is made of blocks."""

    def blocks(self, latent_size: int, text_tokens: int) -> Mapping[Block, int]:
        """The blocks of one call on latents of side `latent_size`, and how often each runs."""


@dataclass(frozen=True)
class Table:
    """Milliseconds by block, and where they were measured."""

    milliseconds: dict[str, float]
    latent_size: int
    text_tokens: int
    threads: int
    clock: Clock
    rounds: int
    runtime: str
    device: str
    fingerprint: str

    def latency_ms(self, network: Blocks) -> float:
        """The sum over the blocks of a network. Raises InputError naming a block that was not measured."""
        total = 0.0
        for block, times in network.blocks(self.latent_size, self.text_tokens).items():
            if block.name not in self.milliseconds:
                raise InputError(
                    f"deploy.latency: the table lacks the block {block.name!r}; measure it again: nas latency SPACE --blocks FILE"
                )
            total += times * self.milliseconds[block.name]
        return total

    def save(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps({"version": VERSION, **asdict(self)}, indent=1))


@lru_cache(maxsize=8)
def load(path: Path) -> Table:
    """The table at `path`. Raises InputError for another file or another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("version")
        if version != VERSION:
            raise InputError(f"{path}: version {version}, expected {VERSION}; measure it again")
        return Table(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a latency table ({error}); expected what nas latency --blocks wrote") from None
