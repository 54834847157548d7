"""What a distance between sets of pictures says when the sets are small: FID, KID and MIND on the same features.

    python benchmarks/distances.py            # about six minutes on one core

For each number n of pictures: the distance of n fresh real pictures of the scenes to 4,096 others (the floor: 0 would be right),
its standard deviation over sets, and how many of these deviations three spoilt copies of the same pictures are away from it:
through the shipped autoencoder, blurred a little, and with every fourth picture a repetition of one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.datasets import BATCH, scenes
from nas.metrics import fid, kid, mind
from nas.networks.autoencoders import kl

REFERENCES = 4_096
SIZES = (64, 128, 256, 512, 1024)
Distance = Callable[[Tensor], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=6, help="of each size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    extractor = fid.EfficientNet()
    world = scenes.load(scenes.Settings(), "train")
    real = features(extractor, pictures(world, 0, REFERENCES))
    fresh = pictures(world, 10**6, arguments.sets * max(SIZES))
    kinds = {name: features(extractor, spoil(fresh)) for name, spoil in SPOILT.items()}
    print(f"{'distance':<10}{'n':>6}{'floor':>12}{'sd':>10}" + "".join(f"{name:>16}" for name in list(kinds)[1:]))
    for title, distance in distances(real).items():
        for n in SIZES:
            found = {
                name: [distance(part) for part in some[: arguments.sets * n].split(n)] for name, some in kinds.items()
            }
            floor, spread = statistics.mean(found["real"]), statistics.stdev(found["real"])
            away = [(statistics.mean(values) - floor) / spread for values in list(found.values())[1:]]
            print(f"{title:<10}{n:>6}{floor:>12.4g}{spread:>10.3g}" + "".join(f"{value:>13.1f} sd" for value in away))


def distances(real: Tensor) -> dict[str, Distance]:
    onto = mind.directions(real.shape[1])
    ordered = mind.projected(real, onto)
    return {
        "fid": lambda drawn: float(fid.frechet_distance(drawn, real)),
        "kid": lambda drawn: 1000 * float(kid.kernel_distance(drawn, real)),
        "mind": lambda drawn: real.shape[1] * float(mind.sliced_distance(mind.projected(drawn, onto), ordered)),
    }


def pictures(world: scenes.Scenes, first: int, count: int) -> Tensor:
    return torch.cat([world.batch(first + at, BATCH).images for at in range(0, count, BATCH)])


@torch.no_grad()
def features(extractor: fid.EfficientNet, images: Tensor) -> Tensor:
    return torch.cat([extractor(part) for part in images.split(BATCH)])


def autoencoded(images: Tensor) -> Tensor:
    autoencoder = kl.load(kl.Settings(shipped="scenes"))
    return torch.cat([autoencoder.decode(autoencoder.encode(part)) for part in images.split(BATCH)])


def blurred(images: Tensor) -> Tensor:
    return 0.8 * images + 0.2 * F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


def repeated(images: Tensor) -> Tensor:
    copies = images.clone()
    copies[::4] = images[0]
    return copies


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "real": lambda images: images,
    "autoencoded": autoencoded,
    "blurred": blurred,
    "repeated": repeated,
}


if __name__ == "__main__":
    main()
