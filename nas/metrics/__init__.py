"""Scores of generated pictures, one file each. Each provides `Settings` and `build(settings, reference) -> Metric`.

A metric is a `torchmetrics.Metric` with `name` (its column; the extractor is part of it unless it is the field's
standard one), `unit`, `higher_is_better` and `conditions`. `update(images, captions)` takes (B, 3, H, W) float32 in
[-1, 1]; `compute()` gives a scalar. `column(settings)` tells the name without loading anything. Optional: `check(settings)`
raises an InputError that begins with a setting for a file or model that is known not to be there; it loads nothing either.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.datasets import Batch


@dataclass(frozen=True)
class Reference:
    """The real pictures a metric compares with, and a place to keep what is computed from them."""

    batches: Callable[[], Iterable[Batch]]
    captions: list[str] = field(default_factory=list)
    cache: Path | None = None
    """A path prefix of its own for this image set; None keeps nothing."""

    def cached(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` computes, from disk if it was computed before."""
        if self.cache is None:
            return make()
        path = self.cache.with_name(f"{self.cache.stem}-{name}.safetensors")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{id(self)}.tmp")
            save_file({"value": make()}, temporary)
            temporary.replace(path)
        return load_file(path)["value"]
