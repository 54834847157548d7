"""How well a sum of measured blocks predicts whole networks: random members of a space, in PyTorch on this CPU.

    python benchmarks/block_latency.py [--networks 20] [--image-size 512] [--rounds 5] [--threads 1]

Prints each network's time, the sum of its blocks and the error, then the median and largest error and Kendall's tau. Times are
the process's CPU time in one thread, medians over rounds.
"""

import argparse
import random
import statistics
import time

import torch
from scipy.stats import kendalltau

from nas import block_latency, graphs, latency, published
from nas.space import SearchSpace


def whole(config, side: int, rounds: int) -> float:
    """Median milliseconds of one call."""
    text = (published.TEXT_TOKENS, config.text_width)
    graph = graphs.denoiser(config.build(), (config.latent_channels, side, side), text, config.pooled_width or 1)
    inputs, spent = graph.random_inputs(1), []
    for repeat in range(rounds + 1):
        began = time.process_time()
        graph.run(inputs)
        spent += [1e3 * (time.process_time() - began)] if repeat else []
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilediffusion")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    space, rng = SearchSpace.load(given.space), random.Random(0)
    side = published.latent_size(given.image_size)
    networks = [space.architecture(space.sample(rng)) for _ in range(given.networks)]
    wanted = {block for config in networks for block in block_latency.blocks(config, side, published.TEXT_TOKENS)}
    ordered = sorted(wanted, key=lambda block: block.name)
    table = block_latency.measure(ordered, side, published.TEXT_TOKENS, given.threads, given.rounds)
    print(f"{latency.device()[0]}; {len(ordered)} blocks, {given.image_size} px, {given.threads} threads", flush=True)
    pairs = []
    for config in networks:
        pairs.append((whole(config, side, given.rounds), table.latency_ms(config)))
        print(
            f"{config.key}  {pairs[-1][0]:9.1f} ms  blocks {pairs[-1][1]:9.1f} ms  {pairs[-1][1] / pairs[-1][0] - 1:+.1%}",
            flush=True,
        )
    errors = [abs(found / true - 1) for true, found in pairs]
    tau = kendalltau(*zip(*pairs, strict=True)).statistic
    print(
        f"error: median {statistics.median(errors):.1%}, mean {statistics.mean(errors):.1%}, "
        f"largest {max(errors):.1%}; tau {tau:.2f}"
    )


if __name__ == "__main__":
    main()
