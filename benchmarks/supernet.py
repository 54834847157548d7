"""What an update of the supernet costs beside a plain denoising update of its largest member, in one run.

    python benchmarks/supernet.py [--updates 6] [--repeats 7]

Under the sandwich rule an update passes four members (the largest, the smallest, two random) forward and back; before,
one. All train on the same random latents and text in one thread; they alternate; CPU time, medians of the pairwise ratios.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from training import PROXY, data

from nas.diffusion.schedule import Settings
from nas.objectives.denoising import Objective
from nas.settings import study_file, training
from nas.space.search_space import SearchSpace
from nas.training import loop
from nas.trial.supernet_training import Sandwich, pool
from nas.weights.supernet import Supernet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = study_file.load(Path("studies/emoji/study.yaml"))
    space = SearchSpace.load("mobilediffusion")
    members = pool(study, space)
    largest = max(members, key=lambda config: config.cost(64, 77).params).scaled(PROXY)
    supernet, scaled = Supernet.of(space, PROXY), [config.scaled(PROXY) for config in members]
    objectives = {
        "plain": Objective(largest.build(), None, Settings()),
        "one member": Sandwich(supernet, scaled, members=1),
        "sandwich": Sandwich(supernet, scaled, members=4),
    }
    modules = {name: loop.DenoiserTraining(each, training.Training()) for name, each in objectives.items()}
    encoded, seconds = data(), {name: [] for name in modules}
    for repeat in range(arguments.repeats + 1):
        for name, module in modules.items():
            began = time.process_time()
            loop.train(module, encoded, 0, module.images_seen + arguments.updates * 64)
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - began)
    for name, values in seconds.items():
        ratio = statistics.median(value / plain for value, plain in zip(values, seconds["plain"], strict=True))
        print(f"{name:<11} {statistics.median(values) / arguments.updates:6.3f} s an update, {ratio:.2f} x plain")


if __name__ == "__main__":
    main()
