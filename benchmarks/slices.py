"""What the slices of a supernet draw without fine-tuning: members by their parameters at deploy scale, and the space's base.

    python benchmarks/slices.py                                          # the shipped supernet of the scenes, some 4 minutes
    python benchmarks/slices.py --weights runs/scenes.safetensors --members 17
    python benchmarks/slices.py --effects 64                             # which decisions the slices' losses hang on, 5 minutes

A line is a member: parameters, the study's scores on its evaluation captions, and its choices. With --effects a line is a choice:
what it adds to the denoising loss beside the first choice of its axis, by least squares over so many random members.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nas.diffusion.schedule import Settings, noise_schedule
from nas.networks.backbones import Backbone
from nas.settings import study_file
from nas.settings.study import Study
from nas.space import screen
from nas.space.search_space import SearchSpace
from nas.trial import supernet_training
from nas.trial.bench import Bench
from nas.weights.supernet import Supernet, weights_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--study", type=Path, default=Path("studies/quickstart"), help="whose pictures, scores and budget are used"
    )
    parser.add_argument("--weights", default="supernet", help="a file; the shipped one unless given")
    parser.add_argument("--members", type=int, default=9, help="how many, evenly spaced in rank, the ends among them")
    parser.add_argument("--effects", type=int, default=0, help="random members, for the effects of choices")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = study_file.load(arguments.study, ["training.init=scratch"])
    assert isinstance(study.space, str)
    slices = Slices(study, SearchSpace.load(study.space), arguments.weights)
    if arguments.effects:
        effects(slices, random.Random(0).sample(slices.pool, arguments.effects))
    else:
        last = len(slices.pool) - 1
        places = [round(step * last / (arguments.members - 1)) for step in range(arguments.members)]
        scores(slices, [*(slices.pool[place] for place in places), slices.space.base.canonical()])


class Slices:
    """Members of a space, as networks with their slices of a supernet's weights."""

    def __init__(self, study: Study, space: SearchSpace, weights: str):
        self.study, self.space, self.bench = study, space, Bench(study, Path("runs/.cache"))
        self.supernet, _ = Supernet.load(weights_path(weights, space.name, study.dataset.name))
        self.schedule = dict(noise_schedule(Settings()).config)
        self.pool = sorted(supernet_training.pool(study, space), key=self.params)

    def params(self, config: Backbone) -> int:
        return config.cost(self.study.deploy.latent_size, self.study.deploy.text_tokens).params

    def network(self, config: Backbone) -> nn.Module:
        made = config.scaled(self.bench.proxy).build().eval()
        made.load_state_dict(self.supernet.weights_of(made))
        return made


def scores(slices: Slices, members: Sequence[Backbone]) -> None:
    for config in members:
        found = slices.bench.score(slices.network(config), slices.schedule).metrics
        told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"{slices.params(config) / 1e6:.0f} M: {told}; {screen.position(slices.space, config)}", flush=True)


def effects(slices: Slices, members: Sequence[Backbone]) -> None:
    """Inactive axes count as their first choice."""
    losses = [np.mean(slices.bench.denoising_losses(slices.network(one), slices.schedule)) for one in members]
    choices = [screen.position(slices.space, config) or {} for config in members]
    columns = [(axis.name, choice) for axis in slices.space.axes for choice in axis.choices[1:]]
    table = np.array([[1.0, *(own.get(name) == choice for name, choice in columns)] for own in choices])
    found, *_ = np.linalg.lstsq(table, np.array(losses), rcond=None)
    left = np.array(losses) - table @ found
    print(
        f"{len(members)} members, loss {np.mean(losses):.4f}; explained {1 - left.var() / np.var(losses):.0%} of its variance"
    )
    for (name, choice), effect in sorted(zip(columns, found[1:], strict=True), key=lambda pair: -abs(pair[1])):
        print(f"{name:<22} {choice!s:<10} {effect:+.4f}")


if __name__ == "__main__":
    main()
