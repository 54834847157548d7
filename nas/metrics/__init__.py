"""Scores of generated pictures, one file each. Each provides `Settings` and `build(settings, reference) -> Metric`.

A metric is a `torchmetrics.Metric` with `name` (its column; the extractor is part of it unless it is the field's standard one),
`unit`, `higher_is_better` and `conditions`. `update(images, captions)` takes (B, 3, H, W) float32 in [-1, 1]; `compute()` gives a
scalar. `reference` is a callable that gives the batches of real pictures, called at most once per study and process.
`column(settings)` tells the name without loading anything.
"""

from collections.abc import Callable, Iterable

from nas.datasets import Batch

Reference = Callable[[], Iterable[Batch]]
