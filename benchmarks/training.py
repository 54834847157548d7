"""What the framework costs a trial: images/s of `nas.training.loop.train` beside a bare PyTorch loop, in one run.

    python benchmarks/training.py [--updates 30] [--repeats 7]

Both train the proxy of the MobileDiffusion preset on the same random latents and text in one thread, with the same AdamW,
clipping, moving average and random draws. They alternate; the medians and the median of the pairwise ratios are printed,
in CPU time, which other programs on the machine disturb less than wall time.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from nas.diffusion.schedule import Settings
from nas.networks.backbones import Proxy
from nas.networks.backbones.unet import presets
from nas.objectives.denoising import Objective
from nas.settings import training
from nas.training import batches, loop
from nas.training.encoded import EncodedSet

PROXY = Proxy(width_divisor=16, latent_channels=8, text_width=96, pooled_width=128)


def data(size: int = 2048) -> EncodedSet:
    generator = torch.Generator().manual_seed(0)
    return EncodedSet(
        latents=torch.randn(size, 8, 8, 8, generator=generator),
        caption_of=torch.arange(size),
        captions=tuple(map(str, range(size))) + ("",),
        tokens=torch.randn(size + 1, 20, 96, generator=generator).half(),
        pooled=torch.randn(size + 1, 128, generator=generator).half(),
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return presets()["mobilediffusion"].scaled(PROXY).build()


def framework(encoded: EncodedSet, settings: training.Training, updates: int) -> None:
    module = loop.DenoiserTraining(Objective(network(), None, Settings()), settings)
    loop.train(module, encoded, 0, updates * settings.batch)


def bare(encoded: EncodedSet, settings: training.Training, updates: int) -> None:
    net = network()
    objective = Objective(net, None, Settings())
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    average = [p.detach().clone() for p in net.parameters()]
    for batch in batches.Batches(encoded, settings, 0, 0, updates):
        loss = objective.generator_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings.gradient_clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoded, settings = data(), training.Training()
    seconds: dict[str, list[float]] = {"nas": [], "bare": []}
    for repeat in range(arguments.repeats + 1):
        for name, run in (("nas", framework), ("bare", bare)):
            began = time.process_time()
            run(encoded, settings, arguments.updates)
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - began)
    images = arguments.updates * settings.batch
    for name, values in seconds.items():
        print(f"{name:<5} {images / statistics.median(values):8.1f} images/s (CPU time, median of {len(values)})")
    ratio = statistics.median(b / n for n, b in zip(seconds["nas"], seconds["bare"], strict=True))
    print(f"nas / bare: {ratio:.3f}")


if __name__ == "__main__":
    main()
