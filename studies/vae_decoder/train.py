"""Prunes the shipped autoencoder's decoder, trains it with the encoder frozen, and measures it against its full size.

    python studies/vae_decoder/train.py

Writes results.csv, a row for each cell and repeat, beside this file; rows that are there are not made again. Repeat r
sees the same pictures in every cell, so differences are paired.
"""

import copy
import statistics
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.analysis import ablation
from nas.assets.make_autoencoder import images
from nas.metrics import fid
from nas.networks.autoencoders import kl
from nas.networks.decoders.kl import Config, pruning
from nas.training import decoders, fitting

CELLS = {  # groups of eight that stay, residual blocks of each level
    "full": (8, 2),
    "half the width": (4, 2),
    "half the width, one block": (4, 1),
}
REPEATS = 3
DEPLOY = 8  # the shipped widths times this are SD's, 128 channels at the size of the picture
LATENT_SIZE = 64  # of a 512 px picture
TABLE = Path(__file__).with_name("results.csv")
CACHE = Path("runs/.cache/vae_decoder.safetensors")
GOALS = {"psnr_db": True, "fid_efficientnet_lite0": False}


def main() -> None:
    torch.set_num_threads(1)
    autoencoder = kl.load(kl.Settings())
    full = pruning.of_autoencoder(autoencoder.model)
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    missing = [
        (r, c) for r in range(REPEATS) for c in CELLS if not any(x["repeat"] == r and x["cell"] == c for x in rows)
    ]
    if missing:
        pictures = {split: images(split) for split in ("train", "held_out")}
        latents = cached_latents(autoencoder, pictures)
        judge = fid.EfficientNet()
        real = judge(pictures["held_out"])
    before: dict[str, dict[str, float]] = {}
    for repeat, cell in missing:
        groups, blocks = CELLS[cell]
        decoder = copy.deepcopy(full) if cell == "full" else pruning.pruned(full, groups, blocks)
        row = {"cell": cell, "factor.decoder": cell, "repeat": repeat, "state": "complete"}
        if cell not in before:
            before[cell] = scores(decoder, latents, pictures, judge, real)
        row |= {f"{name}_before": value for name, value in before[cell].items()}
        recipe = decoders.Recipe(images_seen=1_600, learning_rate=5e-4, seed=repeat)
        loss = partial(loss_of, decoder, latents["train"], pictures["train"])
        training = decoders.DecoderTraining(decoder, len(latents["train"]), recipe, weight_decay=1e-4)
        began = time.process_time()
        fitting.train(training, loss)
        decoder.eval()  # as trained: the average of its weights is not used
        row |= {"images_seen": recipe.images_seen, "train_cpu_s": time.process_time() - began}
        row |= scores(decoder, latents, pictures, judge, real) | speed(decoder) | costs(decoder.config)
        rows.append(row)
        pd.DataFrame(rows).to_csv(TABLE, index=False, float_format="%.6g")
        print(row, flush=True)
    show(pd.DataFrame(rows))


def loss_of(decoder: nn.Module, latents: Tensor, pictures: Tensor, rows: Tensor) -> Tensor:
    return decoders.to_pictures(decoder, latents[rows], pictures[rows])


def cached_latents(autoencoder: kl.KlAutoencoder, pictures: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the decoder reads for every picture: the posterior's mean after the frozen 1x1 convolution."""
    if not CACHE.exists():
        made = {split: encoded(autoencoder, all_) for split, all_ in pictures.items()}
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        save_file(made, CACHE)
    return load_file(CACHE)


@torch.no_grad()
def encoded(autoencoder: kl.KlAutoencoder, pictures: Tensor) -> Tensor:
    model = autoencoder.model
    parts = torch.split(pictures, decoders.BATCH)
    return torch.cat([model.post_quant_conv(model.encode(part).latent_dist.mean) for part in parts]).contiguous()


def scores(
    decoder: nn.Module, latents: dict[str, Tensor], pictures: dict[str, Tensor], judge: nn.Module, real: Tensor
) -> dict[str, float]:
    """Of all held-out pictures, reconstructed: PSNR, and the Frechet distance to the pictures themselves."""
    made = decoders.decoded(decoder, latents["held_out"])
    distance = fid.frechet_distance(judge(made), real)
    return {"psnr_db": decoders.psnr(made, pictures["held_out"]), "fid_efficientnet_lite0": float(distance)}


def deployed(config: Config) -> Config:
    """The decoder at the widths that are deployed."""
    levels = tuple(replace(level, channels=level.channels * DEPLOY) for level in config.levels)
    return replace(config, levels=levels, groups=config.groups * 4)


def costs(config: Config) -> dict[str, float]:
    """On paper: at deploy scale for 512 px, and as trained for 64 px."""
    deploy, proxy = asdict(deployed(config).cost(LATENT_SIZE)), asdict(config.cost(8))
    names = ("params", "macs")
    return {name: deploy[name] for name in names} | {f"proxy_{name}": proxy[name] for name in names}


@torch.no_grad()
def speed(decoder: nn.Module) -> dict[str, float]:
    """Median CPU time of one thread to decode one 64 px picture, in ms: as trained, and at deploy widths."""
    latents = torch.randn(1, decoder.config.latent_channels, 8, 8)
    return {
        "proxy_cpu_ms": cpu_ms(decoder, latents, 30),
        "cpu_ms": cpu_ms(deployed(decoder.config).build(), latents, 5),
    }


def cpu_ms(network: nn.Module, latents: Tensor, times: int) -> float:
    network(latents)
    taken = []
    for _ in range(times):
        began = time.process_time()
        network(latents)
        taken.append(1000 * (time.process_time() - began))
    return statistics.median(taken)


def show(table: pd.DataFrame) -> None:
    table.attrs["conditions"] = {column: {"higher_is_better": better} for column, better in GOALS.items()}
    for column in [*GOALS, "cpu_ms", "proxy_cpu_ms"]:
        seen = ablation.read(table, column, {"decoder": "full"})
        for kind in (ablation.cells, ablation.differences):
            print(f"\n{column}\n{ablation.render(kind(seen), 'markdown')}")


if __name__ == "__main__":
    main()
