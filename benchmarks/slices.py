"""What the slices of a supernet draw without fine-tuning: members by their parameters at deploy scale, and the space's base.

    python benchmarks/slices.py                                          # the shipped supernet of the scenes, some 4 minutes
    python benchmarks/slices.py --weights runs/scenes.safetensors --members 17

A line is a member: parameters, the study's scores on its evaluation captions, and its choices.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nas.diffusion.schedule import Settings, noise_schedule
from nas.settings import study_file
from nas.space import screen
from nas.space.search_space import SearchSpace
from nas.trial import supernet_training
from nas.trial.bench import Bench
from nas.weights.supernet import Supernet, weights_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--study", type=Path, default=Path("studies/scenes"), help="whose pictures, scores and budget are used"
    )
    parser.add_argument("--weights", default="supernet", help="a file; the shipped one unless given")
    parser.add_argument("--members", type=int, default=9, help="how many, evenly spaced in rank, the ends among them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = study_file.load(arguments.study, ["training.init=scratch"])
    assert isinstance(study.space, str)
    space, bench = SearchSpace.load(study.space), Bench(study, Path("runs/.cache"))
    supernet, _ = Supernet.load(weights_path(arguments.weights, study.space, study.dataset.name))
    pool = supernet_training.pool(study, space)
    pool.sort(key=lambda config: config.cost(study.deploy.latent_size, study.deploy.text_tokens).params)
    places = [round(step * (len(pool) - 1) / (arguments.members - 1)) for step in range(arguments.members)]
    schedule = dict(noise_schedule(Settings()).config)
    for config in [*(pool[place] for place in places), space.base.canonical()]:
        network = config.scaled(bench.proxy).build().eval()
        network.load_state_dict(supernet.weights_of(network))
        scores = bench.score(network, schedule).metrics
        params = config.cost(study.deploy.latent_size, study.deploy.text_tokens).params
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        print(f"{params / 1e6:.0f} M: {told}; {screen.position(space, config)}", flush=True)


if __name__ == "__main__":
    main()
