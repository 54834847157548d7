"""What a UFOGen update costs beside a denoising update of the same network, in one run.

    python benchmarks/one_step.py [--updates 10] [--repeats 5] [--only TEXT] [--divisor 16]

Both train the proxy of the MobileDiffusion preset on the same random latents and text in one thread, through
`nas.training.loop.train`. They alternate; printed are medians of the CPU time of an update, which other programs on the machine
disturb less than wall time, and the median of the pairwise ratios.

Passes, in units of F, one forward of the network on one batch (a backward to weights and input costs 2 F, to the input alone
1 F; a denoising update is forward and backward, 3 F):

    generator update    G forward 1, D forward 1, D backward to its input 1, G backward 2        5 F
    discriminator's     G forward 1, D forward on fake and real 2, D backward on both 4           7 F
    a distilled target  one more forward (distill, ema_distill)                                   1 F

so with the discriminator every second update (5 + 7 / 2) / 3 = 2.83, every update 4.00, and distilled 3.17. What does not
grow with the passes (AdamW's 1.5 steps, the averages, data) is in both times.

Measured with `--updates 2 --repeats 3` on 2 cores shared with other work: ufogen 2.64 x denoising, distill 3.53,
ema_distill 3.13, D every update 3.68; with R1 every turn 3.38 (`--repeats 5`).
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from training import data  # benchmarks/training.py

from nas.diffusion import schedule
from nas.networks.backbones import Proxy
from nas.networks.backbones.unet import presets
from nas.objectives import denoising, ufogen
from nas.settings import training
from nas.training import loop
from nas.training.encoded import EncodedSet

VARIANTS: dict[str, dict[str, Any]] = {
    "ufogen": {},
    "ufogen, distill": {"reconstruction": "distill"},
    "ufogen, ema_distill": {"reconstruction": "ema_distill"},
    "ufogen, D every update": {"critic_every": 1},
    "ufogen, R1 every turn": {"gradient_penalty": 1.0, "gradient_penalty_every": 1},
}
EXPECTED = dict(zip(VARIANTS, (2.83, 3.17, 3.17, 4.00, None), strict=True))  # by the passes; R1 differentiates twice


def network(divisor: int) -> torch.nn.Module:
    torch.manual_seed(0)
    proxy = Proxy(width_divisor=divisor, latent_channels=8, text_width=96, pooled_width=128)
    return presets()["mobilediffusion"].scaled(proxy).build()


def denoise(divisor: int) -> Any:
    return denoising.Objective(network(divisor), None, schedule.Settings())


def adversarial(divisor: int, options: dict[str, Any]) -> Any:
    teacher = network(divisor)
    return ufogen.Objective(copy.deepcopy(teacher), teacher.requires_grad_(False), ufogen.Settings(**options))


def seconds_per_update(make: Callable[[], Any], encoded: EncodedSet, updates: int) -> float:
    settings = training.Training()
    module = loop.DenoiserTraining(make(), settings)
    loop.train(module, encoded, 0, 2 * settings.batch)  # the optimisers' moments are made here
    began = time.process_time()
    loop.train(module, encoded, 0, (2 + updates) * settings.batch)
    return (time.process_time() - began) / updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10, help="per repeat; even, so that D has its half")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="the variants whose name contains this")
    parser.add_argument("--divisor", type=int, default=16, help="of the network's widths")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoded, divisor = data(), arguments.divisor
    makers: dict[str, Callable[[], Any]] = {"denoising": lambda: denoise(divisor)}
    for name, options in VARIANTS.items():
        if arguments.only not in name:
            continue
        makers[name] = lambda options=options: adversarial(divisor, options)
    measured: dict[str, list[float]] = {name: [] for name in makers}
    for repeat in range(arguments.repeats + 1):
        for name, make in makers.items():
            seconds = seconds_per_update(make, encoded, arguments.updates if repeat else 2)
            if repeat:  # the first round warms up
                measured[name].append(seconds)
    base = measured["denoising"]
    print(f"{'denoising':<26} {1000 * statistics.median(base):7.0f} ms an update (CPU time, median of {len(base)})")
    for name in list(measured)[1:]:
        values, expected = measured[name], EXPECTED[name]
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        passes = f"passes: {expected:.2f}" if expected else ""
        print(f"{name:<26} {1000 * statistics.median(values):7.0f} ms, {ratio:.2f} x denoising   {passes}")


if __name__ == "__main__":
    main()
