"""How far a trial has come within its rung: a number that its worker leaves in its folder, for whoever looks on."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

FILE = "headway"
EVERY_S = 2.0


class Headway:
    """Writes the share of a rung's work that is done, at most every EVERY_S. Work is counted in forward passes of one image."""

    def __init__(self, folder: Path, images: int, pictures: int, calls: int, losses: int, passes: float = 3):
        """Images to train on, with passes for each; pictures to draw, with calls of the network for each; passes for the
        denoising loss."""
        self._path, self._next, self._calls, self._passes = folder / FILE, 0.0, calls, passes
        self._training = passes * images
        self._total = max(1, self._training + pictures * calls + losses)

    def trained(self, images: int) -> None:
        """So many images were trained on in this rung."""
        self._write(self._passes * images)

    def drawn(self, pictures: int) -> None:
        """So many pictures were drawn."""
        self._write(self._training + pictures * self._calls)

    def _write(self, done: float) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_S
        partial = self._path.with_name(f"{FILE}.tmp")
        partial.write_text(f"{min(1.0, done / self._total):.4f}", encoding="utf-8")
        os.replace(partial, self._path)

    def over(self) -> None:
        """The rung is done."""
        self._path.unlink(missing_ok=True)


def read(folder: Path) -> float:
    """The share of the running rung that is done; 0 where nothing was told."""
    try:
        share = float((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0
    return share if math.isfinite(share) else 0.0
