"""Trains the shipped supernet: `python -m nas.assets.make_supernet` (about an hour on one core; resumable).

It uses the data, text encoder, autoencoder and proxy of a study (the quickstart's unless named), and draws members of the
study's space that are within its budget: what is over budget is never trained in a study either. The learning rate falls
in three stages; the moving average of the weights is shipped in half precision.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch

from nas import settings, training
from nas.assets import FOLDER
from nas.backbones.unet import Config
from nas.settings import Study
from nas.space import SearchSpace
from nas.study import over_budget
from nas.supernet import Sandwich, Supernet
from nas.trial import Bench

POOL = 400  # members that are trained, drawn once
STAGES = ((0.7, 1.0), (0.9, 0.3), (1.0, 0.1))  # (share of the images, factor on the learning rate)
SAVE_EVERY = 12_800  # images
SEED = 7


def pool(study: Study, space: SearchSpace) -> list[Config]:
    """Members within budget, at deploy scale: the preset the space starts from, and random ones."""
    rng = random.Random(SEED)
    found = {space.base.canonical().key: space.base.canonical()}
    while len(found) < POOL:
        config = space.architecture(space.sample(rng))
        cost = asdict(config.cost(study.deploy.latent_size, study.deploy.text_tokens))
        if not over_budget(cost, study.budget):
            found[config.key] = config
    return list(found.values())


def train(study: Study, images: int, learning_rate: float, out: Path) -> None:
    space = SearchSpace.load(str(study.space))
    bench = Bench(study, Path("runs/.cache"))
    proxy, data = bench.proxy, bench.train_data
    supernet = Supernet.of(space, proxy, SEED)
    objective = Sandwich(supernet, [config.scaled(proxy) for config in pool(study, space)])
    plain = training.Settings(images_seen=images, learning_rate=learning_rate, warmup_images=12_800, ema_decay=0.9995)
    module = training.DenoiserTraining(objective, plain)
    partial = out.with_suffix(".partial")
    if partial.exists():
        module.restore(partial)
    began, first = time.time(), module.images_seen
    while module.images_seen < images:
        factor = next(factor for share, factor in STAGES if module.images_seen < share * images)
        module.settings = plain.model_copy(update={"learning_rate": learning_rate * factor})
        pace = training.train(module, data, SEED, min(images, module.images_seen + SAVE_EVERY))
        module.save(partial, {})
        left = (time.time() - began) / (module.images_seen - first) * (images - module.images_seen)
        print(
            f"{module.images_seen:,}/{images:,} images, loss {module.loss.item():.4f}, {pace.images_per_s:.0f} images/s, "
            f"about {left / 60:.0f} min left",
            flush=True,
        )
    metadata = {
        "space": str(study.space),
        "proxy": json.dumps(asdict(proxy)),
        "quality": json.dumps({"images_seen": module.images_seen, "seed": SEED, "pool": POOL}),
        "made_by": "python -m nas.assets.make_supernet",
        "licence": "Apache-2.0; trained on the pictures named in NOTICE",
    }
    supernet.save(out, module.ema.average, metadata)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart/study.yaml"))
    parser.add_argument("--images", type=int, default=900_000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, help="default nas/assets/supernet_SPACE.safetensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = settings.load(arguments.study)
    out = arguments.out or FOLDER / f"supernet_{study.space}.safetensors"
    train(study, arguments.images, arguments.learning_rate, out)


if __name__ == "__main__":
    main()
