"""How often the rule-based judge is right about real pictures of the scenes, as they are and spoilt, on every rung.

    python benchmarks/scene_judge.py          # some three minutes on one core

Rows: clean, blurred (Gaussian, 0.7 px), noisy (5 % of the range), after the shipped autoencoder; and the chance level: the same
pictures with the captions of others. Columns: prompt accuracy, then each atom's. Also: pictures made and judged a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from nas.datasets import BATCH, Batch, scenes
from nas.datasets.scenes import grammar
from nas.metrics import scene_accuracy, scores
from nas.networks.autoencoders import kl

FIRST = 10**6  # far from the pictures that anything was trained on
RUNGS = {
    "one object": scenes.Settings(),
    "one or two": scenes.Settings(objects=(1, 2)),
    "one to three, counts": scenes.Settings(objects=(1, 2, 3), counts=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2_048, help="of each rung")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    autoencoder = kl.load(kl.Settings(shipped="scenes"))
    spoilt: dict[str, Callable[[Tensor], Tensor]] = {
        "clean": lambda images: images,
        "blurred": lambda images: gaussian_blur(images, 7, 0.7),
        "noisy": lambda images: images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
        "autoencoded": lambda images: autoencoder.decode(autoencoder.encode(images)),
    }
    for name, settings in RUNGS.items():
        world = scenes.load(settings, "train")
        began = time.process_time()
        batches = [world.batch(FIRST + at, BATCH) for at in range(0, arguments.pictures, BATCH)]
        made = arguments.pictures / (time.process_time() - began)
        captions = [caption for batch in batches for caption in batch.captions]
        for how, spoil in spoilt.items():
            print(f"{name:<22}{how:<13}{_told(judged(batches, captions, spoil))}")
        print(f"{name:<22}{'chance':<13}{_told(judged(batches, captions[BATCH + 1 :] + captions, spoilt['clean']))}")
        print(f"{name:<22}{made:,.0f} pictures made a second, {_pace(batches, captions):,.0f} judged")


def judged(batches: list[Batch], captions: list[str], spoil: Callable[[Tensor], Tensor]) -> dict[str, float]:
    drawn = [grammar.parse(caption) for caption in captions]
    metric = scene_accuracy.SceneAccuracy(drawn, drawn)
    shown = ((spoil(one.images), captions[at * BATCH : (at + 1) * BATCH]) for at, one in enumerate(batches))
    return scores([metric], shown)


def _pace(batches: list[Batch], captions: list[str]) -> float:
    began = time.process_time()
    judged(batches, captions, lambda images: images)
    return len(captions) / (time.process_time() - began)


def _told(found: dict[str, float]) -> str:
    return "  ".join(f"{column.removesuffix('_accuracy')} {100 * value:.2f}" for column, value in found.items())


if __name__ == "__main__":
    main()
