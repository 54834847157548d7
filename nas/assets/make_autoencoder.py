"""Trains the shipped KL autoencoders: `python -m nas.assets.make_autoencoder` for the emoji set (about 25 minutes, one core),
and with `--data scenes --factor 4 --batch 32` for the world of scenes (about 25 minutes).

The loss is that of `nas.training.autoencoders`.
`--factor 4` trains the compared variant: 32 px pictures, the same 8x8 latents. `--channels` sets those of the latents, and
`--start FILE` begins with another autoencoder's weights, all but the layers that touch the latents.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.disk import files
from nas.errors import InputError, brief
from nas.training.autoencoders import loss_of

WIDTHS = {  # by picture set and factor; for emoji f=4 keeps f=8's widths at equal resolutions below the image
    ("emoji", 8): (16, 32, 64, 96),
    ("emoji", 4): (32, 64, 96),
    ("scenes", 4): (24, 48, 64),
}
IMAGE_SIZE = {8: 64, 4: 32}
LATENT_CHANNELS = 8  # MobileDiffusion's choice
AT_LATENTS = (
    "encoder.conv_out.",
    "quant_conv.",
    "post_quant_conv.",
    "decoder.conv_in.",
)  # layers that read or write them
EMA_DECAY = 0.998
CHECK_EVERY = 200


def images(data: str, split: str) -> Tensor:
    """All pictures of a split, (N, 3, S, S) in [-1, 1]: emoji at 64 px, or every rung of the scenes at 32 px."""
    from nas.datasets import emoji, scenes

    if data == "emoji":
        return torch.cat([batch.images for batch in emoji.load(emoji.Settings(), split)])
    rungs = scenes.Settings(objects=(1, 2, 3), counts=True, unseen=())
    return torch.cat([batch.images for batch in scenes.load(rungs, split)])


def network(
    factor: int, channels: int = LATENT_CHANNELS, start: Path | None = None, data: str = "emoji"
) -> AutoencoderKL:
    """The autoencoder before training. `start` gives all layers but those at the latents; InputError if they do not fit."""
    widths = WIDTHS[data, factor]
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE[factor],
    )
    if start is not None:
        _begin(model, start)
    return model


def _begin(model: AutoencoderKL, start: Path) -> None:
    own: dict[str, Tensor] = model.state_dict()
    try:
        given = {name: value.float() for name, value in load_file(start).items() if not name.startswith(AT_LATENTS)}
    except (OSError, SafetensorError) as error:
        raise InputError(f"--start {start}: cannot be read as weights: {brief(error)}") from None
    for name in own | given:
        here, there = (side[name].shape if name in side else None for side in (own, given))
        if here != there and not name.startswith(AT_LATENTS):
            raise InputError(f"--start {start}: another autoencoder: {name} does not fit")
    model.load_state_dict(own | given)


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: Tensor, factor: int) -> float:
    """Mean over pictures of the PSNR at their own size (peak-to-peak 2), reconstructing from the posterior mean."""
    values = []
    for x in torch.split(pictures, 64):
        y = model.decode(model.encode(shrink(x, factor)).latent_dist.mean).sample.clamp(-1, 1)
        y = F.interpolate(y, size=x.shape[-1], mode="bicubic", antialias=True).clamp(-1, 1)
        values.append(10 * torch.log10(4 / (y - x).square().mean((1, 2, 3))))
    return float(torch.cat(values).mean())


def shrink(x: Tensor, factor: int) -> Tensor:
    """Pictures at the size this factor's autoencoder takes."""
    if IMAGE_SIZE[factor] == x.shape[-1]:
        return x
    return F.interpolate(x, size=IMAGE_SIZE[factor], mode="area")


def train(
    factor: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    out: Path,
    channels: int = LATENT_CHANNELS,
    start: Path | None = None,
    data: str = "emoji",
) -> None:
    """Resumable: `<out>.partial` holds weights, moments and the step every CHECK_EVERY steps."""
    torch.manual_seed(seed)
    train_set, held_out = images(data, "train"), images(data, "held_out")
    model = network(factor, channels, start, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = _resume(out, model, optimizer, average)
    began = time.time()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(train_set), (batch,), generator=generator)
        x = shrink(train_set[rows], factor)
        x = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x.flip(-1), x)
        warm, progress = min(1.0, (step + 1) / 100), step / steps
        optimizer.param_groups[0]["lr"] = (
            learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )
        loss = loss_of(model, x, generator, bf16=True)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], 1 - decay)
        if (step + 1) % CHECK_EVERY == 0:
            _suspend(out, model, optimizer, average, step + 1)
            print(f"step {step + 1}/{steps} loss {loss.item():.4f} {time.time() - began:.0f} s", flush=True)
    model.load_state_dict(average, strict=False)
    facts: dict[str, float] = {"steps": steps, "images": steps * batch, "seed": seed}
    _finish(model.eval(), factor, data, train_set, held_out, out, facts)


def _finish(
    model: AutoencoderKL,
    factor: int,
    data: str,
    train_set: Tensor,
    held_out: Tensor,
    out: Path,
    facts: dict[str, float],
) -> None:
    with torch.no_grad():
        latents = torch.cat([model.encode(shrink(x, factor)).latent_dist.mean for x in torch.split(train_set, 64)])
    facts |= {
        "held_out_psnr_db": round(psnr(model, held_out, factor), 3),
        "train_psnr_db": round(psnr(model, train_set[:570], factor), 3),
    }
    metadata = {
        "config": json.dumps({key: value for key, value in model.config.items() if not key.startswith("_")}),
        "latent_mean": json.dumps(latents.mean((0, 2, 3)).tolist()),
        "latent_std": json.dumps(latents.std((0, 2, 3)).tolist()),
        "quality": json.dumps(facts),
        "made_by": _command(factor, int(model.config["latent_channels"]), data),
        "made_for": data,
        "licence": "Apache-2.0; trained on the pictures named in NOTICE",
    }
    save_file({name: p.half().contiguous() for name, p in model.state_dict().items()}, out, metadata)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB {facts}")


def _command(factor: int, channels: int, data: str) -> str:
    command = f"python -m nas.assets.make_autoencoder --factor {factor}"
    command = command if data == "emoji" else f"{command} --data {data} --batch 32"
    return command if channels == LATENT_CHANNELS else f"{command} --channels {channels}"


def _suspend(
    out: Path, model: AutoencoderKL, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
    with files.replacing(out.with_suffix(".partial")) as partial:
        save_file({"step": torch.tensor(step), **tensors}, partial)


def _resume(out: Path, model: AutoencoderKL, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    partial = out.with_suffix(".partial")
    if not partial.exists():
        return 0
    tensors = load_file(partial)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    average |= {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(tensors["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["emoji", "scenes"], default="emoji")
    parser.add_argument("--factor", type=int, choices=sorted(IMAGE_SIZE), default=8)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, default=LATENT_CHANNELS)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.data, arguments.factor) not in WIDTHS:
        parser.error(f"--data {arguments.data}: no autoencoder of --factor {arguments.factor}")
    if arguments.out is None:
        name = "autoencoder" if arguments.data == "emoji" else f"autoencoder_{arguments.data}"
        arguments.out = Path(__file__).parent / f"{name}.safetensors"
    torch.set_num_threads(1)
    train(**vars(arguments))


if __name__ == "__main__":
    main()
