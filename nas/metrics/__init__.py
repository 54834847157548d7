"""Scores of generated pictures, one file each. Each provides `Settings` and `build(settings, reference) -> Metric`.

A metric is a `torchmetrics.Metric` with `columns` (an extractor is part of a name unless it is the field's standard one),
`unit`, `higher_is_better` and `conditions`. `update(images, captions)` takes (B, 3, H, W) float32 in [-1, 1]; `compute()` gives a
scalar by column. `columns(settings)` tells the names without loading anything; a metric has those that its captions ask for.
Optional: `CAPTIONED = True`: it needs captions; its metric's `enough(count)` raises ValueError unless so many pictures can be
scored; `check(settings, captions)` raises an InputError that begins with a setting for a file or model that is known not to be
there, or for captions that it does not take; it loads nothing either.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import Metric

from nas.datasets import Batch
from nas.disk import files, weight_files


@dataclass(frozen=True)
class Reference:
    """The real pictures a metric compares with, and a place to keep what is computed from them."""

    batches: Callable[[], Iterable[Batch]]
    captions: list[str] = field(default_factory=list)
    cache: Path | None = None
    """A path prefix of its own for this image set; None keeps nothing."""
    drawn: list[str] = field(default_factory=list)
    """The captions that will be drawn and scored."""

    def cached(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` computes, from disk if it was computed before."""
        if self.cache is None:
            return make()
        path = self.cache.with_name(f"{self.cache.stem}-{name}.safetensors")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as partial:
                save_file({"value": make()}, partial)
        return weight_files.read(path, "cache").tensors["value"]


def scores(metrics: Sequence[Metric], pictures: Iterable[tuple[Tensor, list[str]]]) -> dict[str, float]:
    """What the metrics find in batches of pictures with their captions, by column."""
    for metric in metrics:
        metric.reset()
    for images, captions in pictures:
        for metric in metrics:
            metric.update(images, captions)
    return {column: float(value) for metric in metrics for column, value in metric.compute().items()}
