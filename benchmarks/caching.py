"""What keeping units costs by itself, and what it saves: the network drawn with and without a schedule, side by side.

    python benchmarks/caching.py [--repeats 15]

`hooks`: calls of a network all of whose units are listened to and kept for later, over calls of the plain one. `saved`: a drawing
by a heuristic over an uncached drawing beside it, as time and as multiply-adds. Medians of ratios, the proxy of the shipped
scenes network with random weights, one picture and sixteen.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from nas.cost.units import COMPUTE, WHOLE
from nas.diffusion import solvers
from nas.diffusion.caches.cache_schedules import DeepCache, Fora, TGate
from nas.diffusion.caches.caching import keeping
from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, noise_schedule
from nas.networks import backbones
from nas.networks.backbones import Proxy
from nas.networks.conditioning import Text

SIDE, TOKENS, WIDTH, STEPS = 16, 8, 64, 10
HEURISTICS = (
    Fora(name="fora", every=2),
    DeepCache(name="deepcache", every=2, branch=0),
    DeepCache(name="deepcache", every=2, branch=3),
    TGate(name="tgate", gate=5, every=2),
)


def seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(call, peer, repeats):
    """Median over pairs side by side, after one that is not counted."""
    return statistics.median([seconds(call) / seconds(peer) for _ in range(repeats + 1)][1:])


@torch.no_grad()
def hooks(network, units, inputs, repeats):
    """Calls within a drawing that keeps everything for a last step that never comes."""
    modes = np.full((STEPS, len(units)), COMPUTE, np.int8)
    modes[-1, units.components != WHOLE] = 0

    def listened():
        with keeping(network, units, modes) as steps:
            for steps.now in range(STEPS - 1):
                network(*inputs)

    return ratio(listened, lambda: [network(*inputs) for _ in range(STEPS - 1)], repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    config = backbones.presets()["mobilediffusion"].scaled(Proxy(16, 4, WIDTH, WIDTH))
    network, units = config.build().eval(), config.units(SIDE, TOKENS)
    schedule = dict(noise_schedule(Settings()).config)
    null = Text(torch.zeros(1, TOKENS, WIDTH), torch.zeros(1, WIDTH))
    print("| pictures | what | time | multiply-adds |\n|---|---|---|---|")
    for pictures in (1, 16):
        text = Text(torch.randn(pictures, TOKENS, WIDTH), torch.randn(pictures, WIDTH))
        noise = torch.randn(pictures, 4, SIDE, SIDE)
        found = hooks(network, units, (noise, torch.full((pictures,), 500), text), repeats)
        print(f"| {pictures} | hooks, nothing kept from a step to the next | {found:.3f} | 1 |")
        whole = Plan(steps=STEPS)

        def draw(plan, noise=noise, text=text):
            solvers.sample(network, plan, schedule, noise, text, null)

        for cache in HEURISTICS:
            plan = Plan(steps=STEPS, cache=cache)
            spent = ratio(lambda plan=plan: draw(plan), lambda whole=whole: draw(whole), repeats)
            words = " ".join(map(str, cache.model_dump().values()))
            print(f"| {pictures} | {words} | {spent:.2f} | {plan.macs(units) / whole.macs(units):.2f} |")


if __name__ == "__main__":
    main()
