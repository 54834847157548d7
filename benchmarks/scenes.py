"""How far a network trained from scratch comes in the world of scenes, by images and by seconds of one core.

    python benchmarks/scenes.py                      # the MobileDiffusion preset at width / 16; some 30 minutes
    python benchmarks/scenes.py --images 131072 --set training.batch=32

Every line is the network after so many images: its scores on 256 held-out captions, ten steps and one. The learning rate falls in
three stages. It is resumable: its state lies in --out, and the averaged weights as weights.safetensors.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from nas import menu
from nas.runs.pictures import save_grid
from nas.settings import study_file
from nas.space import published
from nas.training import loop
from nas.trial.bench import Bench, fresh

STUDY = Path(__file__).parents[1] / "studies" / "quickstart" / "study.yaml"
RATE = 1e-3
STAGES = ((0.7, 1.0), (0.9, 0.3), (1.0, 0.1))  # (share of the images, factor on the learning rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=458_752, help="seen in total")
    parser.add_argument("--architecture", default="mobilediffusion")
    parser.add_argument("--every", type=int, default=65_536, help="images between two lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the study")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes_from_scratch"))
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    overrides = ["training.warmup_images=6400", "training.ema_decay=0.999", "metrics=[scene_accuracy]"]
    study = study_file.load(STUDY, ["training.init=scratch", "search.minimise=[macs]", *overrides, *arguments.set])
    bench = Bench(study, Path("runs/.cache"))
    network = fresh(published.architecture(arguments.architecture).scaled(bench.proxy), arguments.seed)
    entry = study.objective
    objective = menu.pick("objectives", entry.name).Objective(network, None, entry.settings("objectives"))
    module = loop.DenoiserTraining(objective, study.training)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state, table = arguments.out / "state.safetensors", arguments.out / "curve.csv"
    spent = _resumed(module, state, table)
    while module.images_seen < arguments.images:
        factor = next(factor for share, factor in STAGES if module.images_seen < share * arguments.images)
        module.settings = study.training.model_copy(update={"learning_rate": RATE * factor})
        began = time.process_time()
        loop.train(module, bench.train_data, arguments.seed, module.images_seen + arguments.every)
        spent += time.process_time() - began
        module.save(state, {})
        _append(
            table, {"images": module.images_seen, "cpu_s": round(spent, 1), **_scores(bench, module, arguments.out)}
        )


def _resumed(module: loop.DenoiserTraining, state: Path, table: Path) -> float:
    """CPU seconds spent so far."""
    if not state.exists():
        return 0.0
    module.restore(state)
    with table.open() as file:
        return float(list(csv.DictReader(file))[-1]["cpu_s"])


def _scores(bench: Bench, module: loop.DenoiserTraining, out: Path) -> dict[str, float]:
    module.swap_average()
    network, schedule = module.objective.generator.eval(), module.objective.schedule_config
    found = bench.score(network, schedule).metrics
    one = bench.variant({"sampling": {**bench.study.sampling.model_dump(mode="json"), "steps": 1, "guidance": 1.0}})
    once = one.score(network, schedule).metrics
    save_grid(torch.cat(list(bench.draw(network, schedule, 48))), out / "samples.png", 8)
    save_file(network.state_dict(), out / "weights.safetensors")
    module.swap_average()
    network.train()
    return {**found, **{f"one_step_{column}": value for column, value in once.items() if "accuracy" in column}}


def _append(table: Path, row: dict[str, float]) -> None:
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()})
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
