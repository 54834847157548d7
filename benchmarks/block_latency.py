"""How well a sum of measured blocks predicts whole networks, random members of a space or given ones, in PyTorch on this CPU.

    python benchmarks/block_latency.py [--networks 20] [--image-size 512] [--rounds 5] [--threads 1] [--seed 0] [--of NETWORK ...]

Prints each network's time, the sum of its blocks and the error, then the median and largest error and Kendall's tau. Times are
the process's CPU time, medians over rounds in which a few networks are called in turns. Blocks are timed before and after the
networks, and the two medians averaged, because a machine that others use is not as fast all the time; how far the two are apart
is printed too.
"""

import argparse
import os
import random
import statistics
import time
from functools import partial

import torch
from scipy.stats import kendalltau

from nas import machine
from nas.deploy import graphs
from nas.deploy.speed import block_latency
from nas.networks.backbones.unet import blocks
from nas.space import published
from nas.space.search_space import SearchSpace

TOGETHER = 4  # networks in memory at once


def wholes(configs, side: int, rounds: int) -> list[float]:
    """Median milliseconds of one call of each, in turns."""
    calls = []
    for config in configs:
        text = (published.TEXT_TOKENS, config.text_width)
        graph = graphs.denoiser(config.build(), (config.latent_channels, side, side), text, config.pooled_width or 1)
        calls.append((graph.run, graph.random_inputs(1)))
    spent = [[] for _ in calls]
    for repeat in range(rounds + 1):
        for times, (run, inputs) in zip(spent, calls, strict=True):
            began = time.process_time()
            run(inputs)
            times += [1e3 * (time.process_time() - began)] if repeat else []
    return [statistics.median(times) for times in spent]


def batched(networks):
    return (networks[first : first + TOGETHER] for first in range(0, len(networks), TOGETHER))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilediffusion")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="which random members")
    parser.add_argument("--of", nargs="+", help="presets or architecture files, in place of random members")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    space, rng = SearchSpace.load(given.space), random.Random(given.seed)
    side = published.latent_size(given.image_size)
    members = (space.architecture(space.sample(rng)) for _ in range(given.networks))
    networks = [published.architecture(name) for name in given.of] if given.of else list(members)
    wanted = {block for config in networks for block in blocks.blocks(config, side, published.TEXT_TOKENS)}
    ordered = sorted(wanted, key=lambda block: block.name)
    print(f"{machine.device()[0]}; {len(ordered)} blocks, {given.image_size} px, {given.threads} threads", flush=True)
    measured = partial(
        block_latency.measure,
        ordered,
        blocks.build,
        side,
        published.TEXT_TOKENS,
        given.threads,
        max(1, given.rounds // 2),
    )
    before = measured()
    print(f"blocks timed once; load {os.getloadavg()[0]:.1f}", flush=True)
    true = [ms for some in batched(networks) for ms in wholes(some, side, given.rounds)]
    print(f"networks timed; load {os.getloadavg()[0]:.1f}", flush=True)
    after = measured()
    pairs = []
    for config, whole_ms in zip(networks, true, strict=True):
        first, second = (table.latency_ms(config) for table in (before, after))
        found = (first + second) / 2
        pairs.append((whole_ms, found))
        apart = second / first - 1
        print(f"{config.key}  {whole_ms:9.1f} ms  blocks {found:9.1f} ms ({apart:+.0%})  {found / whole_ms - 1:+.1%}")
    errors = [abs(found / true - 1) for true, found in pairs]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    tau = kendalltau(*zip(*pairs, strict=True)).statistic
    print(
        f"error: median {statistics.median(errors):.1%}, mean {statistics.mean(errors):.1%}, "
        f"largest {max(errors):.1%}; tau {tau:.2f}"
    )


if __name__ == "__main__":
    main()
