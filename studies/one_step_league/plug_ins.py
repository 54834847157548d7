"""Do adapters that were trained on the base work in the networks that were made of it?

    nas run studies/one_step_league
    python studies/one_step_league/plug_ins.py [RUN]

The manner to be transferred is one that no caption names: the object lies in the left half of the picture. Adapters of rank 8
on every layer of the base (LoRA) learn it by plain denoising from the training pictures that are so, 128 updates of 32. They
are then added, unchanged, to the base and to the league's networks. Repeat r has adapters of its own. Each network draws the
256 held-out captions of the study without and with them, as it is drawn there and, where that is one step, in four.
`left` is the share of pictures whose object's centre, found by the judge's rules, lies in the left half, of those that show
exactly one object (`one_object`); pictures of the world have 0.5. `right` is the share of prompts that are right in every atom,
unseen combinations among them. Writes plug_ins.csv, a row for each network, plan and repeat, beside this file; rows and adapters
that are there are not made again.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from nas.datasets.scenes import grammar
from nas.datasets.scenes.judge import judged, look
from nas.datasets.scenes.world import RADII_ALONE
from nas.diffusion import schedule
from nas.diffusion.plan import Plan
from nas.networks import backbones, lora
from nas.objectives import denoising
from nas.runs import description
from nas.settings.study import Study
from nas.settings.training import Training
from nas.study import launch
from nas.study.cells import cell_seed
from nas.training import loop
from nas.training.encoded import EncodedSet
from nas.trial import base_model
from nas.trial.bench import Bench
from nas.weights import checkpoints

CELLS = ("ladd", "direct_distillation", "dmd2")
LORA = lora.Lora(rank=8)
TRAINING = Training(
    init="base", images_seen=4096, batch=32, learning_rate=1e-3, warmup_images=256, ema_decay=0.9, lora=LORA
)
FEW = 4  # steps beside one
PICTURES = 20_000  # of the training split, of which those in the manner are learnt
TABLE = Path(__file__).with_name("plug_ins.csv")


class PlugIns:
    """One run: its base, the adapters, and what networks draw with them."""

    def __init__(self, path: Path):
        self.run = launch.find_run(path)
        settings = description.resolved(self.run.path)
        self.study = Study.model_validate({name: value for name, value in settings.items() if name != "provenance"})
        self.bench = Bench(self.study, self.run.cache)
        self.base = base_model.network(self.bench)
        self.schedule = dict(schedule.noise_schedule(schedule.Settings()).config)
        self.folder = self.run.path / "plugins"
        self.folder.mkdir(exist_ok=True)

    @cached_property
    def lessons(self) -> EncodedSet:
        """The training pictures in the manner."""
        pictures, data = self.bench.images("train"), self.bench.train_data
        centres = torch.from_numpy(pictures.drawn(0, min(PICTURES, len(data)))[0].centre)
        (rows,) = (centres[:, 0, 0] < 0.5).nonzero(as_tuple=True)
        return replace(data, latents=data.latents[rows], caption_of=data.caption_of[rows])

    def adapters(self, repeat: int) -> Path:
        """Adapters of the base, trained on the lessons."""
        path = self.folder / f"left-{repeat}.safetensors"
        if not path.exists():
            seed, network = cell_seed(self.study.seed, repeat), copy.deepcopy(self.base).requires_grad_(True)
            lora.adapt(network, LORA, seed)
            module = loop.DenoiserTraining(denoising.Objective(network, None, schedule.Settings()), TRAINING)
            loop.train(module, self.lessons, seed, TRAINING.images_seen)
            module.swap_average()
            lora.save(network, path, {"repeat": str(repeat)})
        return path

    def networks(self, repeat: int) -> Iterator[tuple[str, nn.Module, Plan]]:
        """(name, network, plan) of the base and of this repeat's cells."""
        one, few = self.study.sampling, self.study.sampling.changed(steps=FEW)
        assert self.study.base is not None and self.study.base.sampling is not None
        yield "base", self.base, self.study.base.sampling
        yield "base", self.base, one
        for record in self.run.records().values():
            method = record["choices"].get("method")
            if record.get("repeat") == repeat and method in CELLS and record["state"] == "complete":
                network: nn.Module = backbones.from_dict(record["proxy"]).build().eval().requires_grad_(False)
                weights = self.run.trial(record["trial"]) / "weights.safetensors"
                checkpoints.load_weights(network, weights, f"trial {record['trial']}")
                yield str(method), network, one
                yield str(method), network, few

    def plugged(self, network: nn.Module, repeat: int) -> nn.Module:
        """A copy of the network with this repeat's adapters in its weights."""
        adapted = copy.deepcopy(network)
        lora.adapt(adapted, LORA, 0)
        lora.load(adapted, self.adapters(repeat))
        return lora.merged(adapted)

    def scores(self, network: nn.Module, plan: Plan) -> dict[str, float]:
        drawn = self.bench.variant({"sampling": plan.model_dump()}).draw(network, self.schedule)
        return seen(torch.cat(list(drawn)), self.bench.drawn[0])


def seen(pictures: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """`right`, `left` and `one_object` of pictures (B, 3, S, S) that were drawn to captions."""
    found = [look(picture.float().numpy(), RADII_ALONE) for picture in pictures]
    scenes = [grammar.parse(caption) for caption in captions]
    right = [all(map(all, judged(scene, each).values())) for scene, each in zip(scenes, found, strict=True)]
    centres = [each.things[0].centre[0] for each in found if len(each.things) == 1]
    left = [centre < pictures.shape[-1] / 2 for centre in centres]
    share = sum(left) / len(left) if left else float("nan")
    return {"right": sum(right) / len(right), "left": share, "one_object": len(left) / len(pictures)}


def main(path: str = "runs/one_step_league") -> None:
    made = PlugIns(Path(path))
    assert made.study.ablation is not None
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    there = {(row["network"], row["steps"], row["repeat"]) for row in rows}
    for repeat in range(made.study.ablation.repeats):
        for name, network, plan in made.networks(repeat):
            if (name, plan.steps, repeat) in there:
                continue
            with_them = made.scores(made.plugged(network, repeat), plan)
            plain = {f"{column}_without": value for column, value in made.scores(network, plan).items()}
            rows.append({"network": name, "steps": plan.steps, "repeat": repeat, **with_them, **plain})
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(TABLE, index=False, float_format="%.4f")
    table = pd.DataFrame(rows).drop(columns="repeat")
    print(table.groupby(["network", "steps"], sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
