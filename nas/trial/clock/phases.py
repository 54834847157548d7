"""Where the time of a trial went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Timings:
    """Seconds by phase, those of a phase inside another not counted twice; what no phase claims is overhead."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began, known = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            inside = sum(self.seconds.values()) - known
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began - inside
