"""Trains a style LoRA and a structure adapter on the base of this study's run, and plugs them into its one-step variants.

    nas run studies/plug_in_transfer/study.yaml
    python studies/plug_in_transfer/transfer.py [RUN]

Writes results.csv, a row for each cell and repeat, beside this file; rows and plug-ins that are there are not made again.
Repeat r has plug-ins of its own, trained once on the base and plugged unchanged into every cell of that repeat, so
differences are paired.
"""

import copy
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import adapters
import edges
import pandas as pd
import torch
from torch import Tensor, nn

from nas.analysis import ablation
from nas.diffusion import schedule, solvers
from nas.diffusion.plan import Plan
from nas.networks import lora
from nas.networks.backbones.unet import Config
from nas.networks.conditioning import Text
from nas.objectives import denoising
from nas.runs import description
from nas.settings import training
from nas.settings.study import Study
from nas.study import launch
from nas.study.cells import cell_seed
from nas.study.sweep import scores
from nas.training import loop
from nas.trial import base_model
from nas.trial.rung import Bench
from nas.weights import checkpoints

STYLE = "fluent"
LORA = lora.Lora(rank=8)
STYLE_TRAINING = training.Training(
    init="base", images_seen=2048, batch=16, learning_rate=1e-3, warmup_images=256, ema_decay=0.98, lora=LORA
)
STRUCTURE_IMAGES = 4096
MAPS = 128  # held-out pictures whose edges are to be followed
BATCH = 64
TABLE = Path(__file__).with_name("results.csv")
FID = "fid_efficientnet_lite0"
GOALS = {FID: False, "fid_gain": False, "edge_f1": True, "edge_f1_gain": True}
REFERENCE = "diffusion"


class Transfer:
    """One run: its base, its variants, the plug-ins, and what they draw."""

    def __init__(self, path: Path):
        self.run = launch.find_run(path)
        settings = description.resolved(self.run.path)
        self.study = Study.model_validate({name: value for name, value in settings.items() if name != "provenance"})
        self.bench = Bench(self.study, self.run.cache)
        self.style = self.bench.variant({"dataset.styles": [STYLE]})
        self.schedule = schedule.noise_schedule(schedule.Settings())
        self.base = base_model.network(self.bench)
        self.folder = self.run.path / "plugins"
        self.folder.mkdir(exist_ok=True)

    # --- plug-ins ----------------------------------------------------------------------------------------------------

    def style_lora(self, repeat: int) -> Path:
        """Adapters trained on pictures of the style under captions that do not name it."""
        path = self.folder / f"style-{repeat}.safetensors"
        if not path.exists():
            seed, network = cell_seed(self.study.seed, repeat), copy.deepcopy(self.base).requires_grad_(True)
            lora.adapt(network, LORA, seed)
            objective = denoising.Objective(network, None, schedule.Settings())
            module = loop.DenoiserTraining(objective, STYLE_TRAINING)
            loop.train(module, self.style.train_data, seed, STYLE_TRAINING.images_seen)
            module.swap_average()
            lora.save(network, path, {"repeat": str(repeat)})
        return path

    def structure_adapter(self, repeat: int) -> adapters.Adapter:
        """An adapter trained on the base's own pictures."""
        path, seed = self.folder / f"structure-{repeat}.safetensors", cell_seed(self.study.seed, repeat)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapter = adapters.Adapter(self.base, self.bench.autoencoder.factor)
        if path.exists():
            adapters.load(adapter, path)
            return adapter
        maps = torch.cat([edges.edges(batch.images) for batch in self.bench.images("train")])
        recipe = adapters.Recipe(images=STRUCTURE_IMAGES, batch=32, seed=seed)
        adapters.train(adapter, self.base, self.schedule, self.bench.train_data, maps, recipe)
        adapters.save(adapter, path, {"repeat": str(repeat)})
        return adapter

    # --- cells -------------------------------------------------------------------------------------------------------

    def cells(self, repeat: int) -> Iterator[tuple[str, nn.Module, Plan]]:
        """(name, network, plan): the base in many steps and in one, and this repeat's variants."""
        assert self.study.base is not None and self.study.base.sampling is not None
        yield "base, many steps", self.base, self.study.base.sampling
        yield "base, one step", self.base, self.study.sampling
        for record in self.run.records().values():
            if record["repeat"] == repeat and record["state"] == "complete":
                network = Config.from_dict(record["proxy"]).build().eval().requires_grad_(False)
                weights = self.run.trial(record["trial"]) / "weights.safetensors"
                checkpoints.load_weights(network, weights, f"trial {record['trial']}")
                yield record["choices"]["reconstruction"], network, self.study.sampling

    def measured(self, network: nn.Module, plan: Plan, repeat: int) -> dict[str, float]:
        """Scores with and without each plug-in. `fid_gain` is with over without, `edge_f1_gain` with less without."""
        row = {f"{name}_without": value for name, value in self.styled(network, plan).items()}
        row |= {f"edge_f1{name}_without": value for name, value in self.followed(network, plan, None).items()}
        plugged = copy.deepcopy(network)
        lora.adapt(plugged, LORA, 0)
        lora.load(plugged, self.style_lora(repeat))
        row |= self.styled(lora.merged(plugged), plan)
        followed = self.followed(network, plan, self.structure_adapter(repeat))
        row |= {f"edge_f1{name}": value for name, value in followed.items()}
        row["fid_gain"] = row[FID] / row[f"{FID}_without"]
        row["edge_f1_gain"] = row["edge_f1"] - row["edge_f1_without"]
        return row

    def styled(self, network: nn.Module, plan: Plan) -> dict[str, float]:
        """The study's metrics of the style's names, against the style's real pictures."""
        return scores(self.style, network, dict(self.schedule.config), plan)

    @cached_property
    def wanted(self) -> tuple[Tensor, Text, Tensor, Tensor]:
        """Edge maps, captions and noise of MAPS held-out pictures; and the maps of their reconstructions."""
        data, generator = self.bench.held_out_data, torch.Generator().manual_seed(0)
        rows = torch.randperm(len(data), generator=generator)[:MAPS]
        pictures = torch.cat([batch.images for batch in self.bench.images("held_out")])[rows]
        noise = torch.randn((MAPS, *data.latents.shape[1:]), generator=generator)
        rebuilt = edges.edges(self.bench.autoencoder.decode(data.latents[rows]))
        return edges.edges(pictures), data.text(rows), noise, rebuilt

    def followed(self, network: nn.Module, plan: Plan, adapter: adapters.Adapter | None) -> dict[str, float]:
        """How far drawn edges agree with the picture's (""), and with those of another one ("_other", which is chance)."""
        maps, text, noise, _ = self.wanted
        found = torch.cat([self.drawn(network, plan, adapter, slice(i, i + BATCH)) for i in range(0, MAPS, BATCH)])
        agreed = {"": edges.agreement(found, maps), "_other": edges.agreement(found, maps.roll(1, 0))}
        return {name: float(value.mean()) for name, value in agreed.items()}

    @torch.no_grad()
    def drawn(self, network: nn.Module, plan: Plan, adapter: adapters.Adapter | None, rows: slice) -> Tensor:
        maps, text, noise, _ = self.wanted
        with adapters.plugged(network, adapter(maps[rows]) if adapter is not None else nothing(network)):
            latents = solvers.sample(
                network,
                plan,
                dict(self.schedule.config),
                noise[rows],
                Text(text.tokens[rows], text.pooled[rows]),
                self.bench.train_data.null,
            )
        return edges.edges(self.bench.autoencoder.decode(latents))


def nothing(network: nn.Module) -> list[Tensor]:
    return [torch.zeros(1, place.out_channels, 1, 1) for place in adapters.places(network)]


def main() -> None:
    torch.set_num_threads(1)
    transfer = Transfer(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/plug_in_transfer"))
    assert transfer.study.ablation is not None
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    made = {(row["cell"], row["repeat"]) for row in rows}
    for repeat in range(transfer.study.ablation.repeats):
        for cell, network, plan in transfer.cells(repeat):
            if (cell, repeat) in made:
                continue
            row = {"cell": cell, "factor.network": cell, "repeat": repeat, "state": "complete"}
            rows.append(row | transfer.measured(network, plan, repeat))
            pd.DataFrame(rows).to_csv(TABLE, index=False, float_format="%.6g")
            print(rows[-1], flush=True)
    maps, _, _, rebuilt = transfer.wanted
    print(f"edge agreement of the autoencoder's reconstructions: {edges.agreement(rebuilt, maps).mean():.3f}")
    show(pd.DataFrame(rows))


def show(table: pd.DataFrame) -> None:
    table.attrs["conditions"] = {column: {"higher_is_better": better} for column, better in GOALS.items()}
    for column in GOALS:
        seen = ablation.read(table, column, {"network": REFERENCE})
        for kind in (ablation.cells, ablation.differences):
            print(f"\n{column}\n{ablation.render(kind(seen), 'markdown')}")


if __name__ == "__main__":
    main()
