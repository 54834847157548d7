"""Candidates a second of the closed form, of whole-space screening, and of the two tracers, in one run.

    python benchmarks/cost.py [space]

One thread. The tracers count networks that are already built on the meta device; building takes its own line.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import random
import sys
import time

import torch

from nas.cost import traced
from nas.networks.conditioning import Text
from nas.space import cost_tables, screen
from nas.space.search_space import SearchSpace

SIZE, TOKENS = 64, 77


def per_second(call, items):
    """Items a second of CPU time, which neighbours on the machine disturb least."""
    began = time.process_time()
    for item in items:
        call(item)
    return len(items) / (time.process_time() - began)


def build(config):
    with torch.device("meta"):
        return config.build()


def trace(counter):
    def call(network):
        config = network.config
        text = Text(torch.empty(1, TOKENS, config.text_width), torch.empty(1, config.pooled_width or 1))
        latents = torch.empty(1, config.latent_channels, SIZE, SIZE)
        counter(network, *(x.to("meta") for x in (latents, torch.empty(1))), Text(*(x.to("meta") for x in text)))

    return call


def main(name="mobilediffusion"):
    torch.set_num_threads(1)
    space, rng = SearchSpace.load(name), random.Random(0)
    choices = [space.sample(rng) for _ in range(20_000)]
    configs = [space.architecture(c) for c in choices]
    networks = [build(config) for config in configs[:10]]
    trace(traced.traced)(networks[0])  # first use imports fvcore
    rates = {
        "fvcore, network built": per_second(trace(traced.traced), networks),
        "FlopCounterMode, network built": per_second(trace(traced.second_opinion), networks),
        "building on meta": per_second(build, configs[:10]),
        "closed form, choices to cost": per_second(lambda c: space.architecture(c).cost(SIZE, TOKENS), choices),
        "closed form": per_second(lambda config: config.cost(SIZE, TOKENS), configs),
    }
    began = time.process_time()
    columns = (
        cost_tables.members(space) if space.size() <= screen.ENUMERABLE else cost_tables.draw(space, screen.SAMPLE, 0)
    )
    cost_tables.Tables(space, SIZE, TOKENS).costs(columns)
    rates["whole space, listing and costs"] = len(columns[space.axes[0].name]) / (time.process_time() - began)
    slowest = rates["fvcore, network built"]
    print(f"{space.name}: {space.size():,} networks; candidates a second of CPU time, one thread")
    for what, rate in rates.items():
        print(f"{what:34}{rate:14,.1f}{rate / slowest:14,.0f} x")


if __name__ == "__main__":
    main(*sys.argv[1:])
