"""What metrics of pictures say when the pictures are few: every one of the menu that works on features, on the same features.

    python benchmarks/metrics.py --csv benchmarks/metrics.csv     # about fifteen minutes on one core

For each number n of pictures: what the metric says of n fresh real pictures of the scenes beside 4,096 others (a distance should
say 0), its standard deviation over sets, and how many of these deviations spoilt copies of the same pictures are away from it:
through the shipped autoencoder, blurred a little, with every fourth picture a repetition of one, and with every fourth copied
from the 4,096.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nas import menu
from nas.datasets import BATCH, Batch, scenes
from nas.disk import files
from nas.metrics import Reference
from nas.metrics.fid import OfFeatures
from nas.networks.autoencoders import kl

REFERENCES = 4_096
SIZES = (64, 128, 256, 512, 1024)
METRICS = ("fid", "kid", "mind", "precision_recall", "density_coverage", "vendi", "memorisation")
FRESH = 10**6  # the first picture of the world that is none of the references


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=6, help="of each size")
    parser.add_argument("--csv", type=Path, help="where to write the rows as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = scenes.load(scenes.Settings(), "train")
    fresh = pictures(world, FRESH, arguments.sets * max(SIZES))
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(lambda: batches(world, 0, REFERENCES), cache=Path(folder) / "reference")
        metrics = [built(name, reference) for name in METRICS]
    kinds = {name: features(metrics[0].extractor, spoil(fresh, world)) for name, spoil in SPOILT.items()}
    rows = [row for metric in metrics for n in SIZES for row in rows_of(metric, kinds, n, arguments.sets)]
    for row in rows:
        print(
            "  ".join(
                f"{value:.4g}".rjust(11) if isinstance(value, float) else f"{value!s:<32}" for value in row.values()
            )
        )
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        files.write_csv(arguments.csv, rows)


def built(name: str, reference: Reference) -> OfFeatures:
    module = menu.pick("metrics", name)
    settings = {} if "features" not in module.Settings.model_fields else {"features": "efficientnet_lite0"}
    metric: OfFeatures = module.build(module.Settings(**settings), reference)
    return metric


def rows_of(metric: OfFeatures, kinds: dict[str, Tensor], n: int, sets: int) -> list[dict[str, object]]:
    """What a metric says of sets of n pictures: a row for each of its columns."""
    found = {
        kind: [[float(value) for value in metric.found(part)] for part in some[: sets * n].split(n)]
        for kind, some in kinds.items()
    }
    return [
        row(column, n, {kind: [set_[place] for set_ in of] for kind, of in found.items()})
        for place, column in enumerate(metric.columns)
    ]


def row(column: str, n: int, values: dict[str, list[float]]) -> dict[str, object]:
    real, spread = statistics.mean(values["real"]), statistics.stdev(values["real"])
    away = {
        kind: (statistics.mean(some) - real) / spread if spread else math.nan
        for kind, some in values.items()
        if kind != "real"
    }
    return {"column": column, "pictures": n, "real": real, "sd": spread, **away}


def batches(world: scenes.Scenes, first: int, count: int) -> Iterable[Batch]:
    return (world.batch(first + at, BATCH) for at in range(0, count, BATCH))


def pictures(world: scenes.Scenes, first: int, count: int) -> Tensor:
    return torch.cat([batch.images for batch in batches(world, first, count)])


@torch.no_grad()
def features(extractor: torch.nn.Module, images: Tensor) -> Tensor:
    return torch.cat([extractor(part) for part in images.split(BATCH)])


def autoencoded(images: Tensor, world: scenes.Scenes) -> Tensor:
    autoencoder = kl.load(kl.Settings(shipped="scenes"))
    return torch.cat([autoencoder.decode(autoencoder.encode(part)) for part in images.split(BATCH)])


def blurred(images: Tensor, world: scenes.Scenes) -> Tensor:
    return 0.8 * images + 0.2 * F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


def repeated(images: Tensor, world: scenes.Scenes) -> Tensor:
    copies = images.clone()
    copies[::4] = images[0]
    return copies


def copied(images: Tensor, world: scenes.Scenes) -> Tensor:
    copies, places = images.clone(), len(images[::4])
    copies[::4] = pictures(world, 0, REFERENCES)[torch.arange(places) % REFERENCES]
    return copies


SPOILT: dict[str, Callable[[Tensor, scenes.Scenes], Tensor]] = {
    "real": lambda images, world: images,
    "autoencoded": autoencoded,
    "blurred": blurred,
    "repeated": repeated,
    "copied": copied,
}


if __name__ == "__main__":
    main()
