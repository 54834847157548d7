"""Does int8 pay at deploy scale? A denoiser with random weights on a runtime, in float32 and in 8-bit integers, side by side.

    python benchmarks/int8.py mobilediffusion [--format onnx] [--image-size 512] [--rounds 3] [--threads 1]

Prints the ratio of file sizes and of the CPU times of one call (medians; the two networks take turns). Activations are calibrated
on random inputs: that decides the numbers that come out, not how long they take.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from nas import machine
from nas.deploy import exporters, graphs
from nas.deploy.int8 import export, methods
from nas.deploy.speed import latency
from nas.space import published


def spent(network, inputs) -> float:
    """Seconds of CPU time of one call."""
    began = time.process_time()
    network(inputs)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="a preset or a YAML file")
    parser.add_argument("--format", default="onnx", choices=export.formats())
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    (module,) = exporters.require([given.format])
    config, side = published.architecture(given.network), published.latent_size(given.image_size)
    text = (published.TEXT_TOKENS, config.text_width)
    graph = graphs.denoiser(config.build(), (config.latent_channels, side, side), text, config.pooled_width or 1)
    inputs = graph.random_inputs(1)
    with tempfile.TemporaryDirectory() as folder:
        plain = module.write(graph, Path(folder) / graph.name, "fp32")
        target = plain.with_name(f"{graph.name}.{methods.PRECISION}{plain.suffix}")
        small = module.quantise(graph, plain, target, methods.METHODS[graph.name], [inputs])
        sizes = [sum(file.stat().st_size for file in Path(folder).glob(f"{path.name}*")) for path in (plain, small)]
        networks = [module.load(path, given.threads) for path in (plain, small)]
        rounds = [[spent(network, inputs) for network in networks] for _ in range(given.rounds + 1)][1:]
    whole, quantised = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(
        f"{machine.device()[0]}; {latency.version(module.RUNTIME)}, {given.threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{given.network} at {given.image_size} px: {sizes[0] / 2**20:.0f} MiB, {whole:.2f} s of CPU; "
        f"int8 {sizes[1] / sizes[0]:.2f} of the size, {whole / quantised:.2f} times as fast ({quantised:.2f} s)"
    )


if __name__ == "__main__":
    main()
