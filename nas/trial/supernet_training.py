"""Trains a supernet: every update draws members of the space and trains the weights they share.

Data, text encoder, autoencoder, proxy and budget are a study's; members over budget are not drawn, because no study trains
them either. The learning rate falls in three stages; what is kept is the moving average of the weights, in half precision.
Training is resumable: its whole state lies beside the output as `.partial`.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import interruption
from nas.cost.budget import over_budget
from nas.diffusion.schedule import Settings as DenoisingSettings
from nas.diffusion.schedule import corrupted, noise_schedule
from nas.disk import weight_files
from nas.errors import InputError
from nas.networks.backbones import Backbone, Proxy
from nas.numbers import amount, number_of, trained
from nas.objectives import LatentBatch, Lone
from nas.runs.pictures import save_grid
from nas.settings import study_file, training
from nas.settings.design import ENCODED
from nas.settings.study import Evaluation, Study
from nas.space.search_space import SearchSpace
from nas.training import loop
from nas.trial.bench import Bench
from nas.trial.checks.check import check
from nas.weights import worlds
from nas.weights.supernet import Supernet, require_covers, skeleton

POOL = 400  # members that are trained, drawn once
STAGES = ((0.7, 1.0), (0.9, 0.3), (1.0, 0.1))  # (share of the images, factor on the learning rate)
SAVE_EVERY = WARMUP = 12_800  # images
SAY_SECONDS = 60.0
SEED = 7
GRID_COLUMNS, GRID_ROWS = 8, 6
Drawn = int | Literal["largest"]  # members of an update


@dataclass(frozen=True)
class Recipe:
    """How a supernet is trained."""

    images: int
    """Images seen in total."""
    learning_rate: float = 1e-3
    largest_until: float = 0.0
    """Share of the images until which an update trains the largest member alone, which everything else is a slice of."""
    sandwich_from: float = 0.0
    """Share of the images after which an update follows the sandwich rule; before, it trains one member (a third of the
    cost)."""
    members: int = 4
    """Members an update trains under the sandwich rule: the largest, the smallest, and others at random."""
    ends_every: int = 1
    """Updates from one that trains the largest and the smallest to the next; in those between the largest teaches only, and
    all that are trained are drawn at random."""
    warmup_images: int = WARMUP
    """Linear warm-up of the learning rate."""

    def __post_init__(self) -> None:
        shares = 0 <= self.largest_until <= 1 and 0 <= self.sandwich_from <= 1
        if self.images < 1 or self.learning_rate <= 0 or not shares or self.members < 2 or self.ends_every < 1:
            raise InputError(
                "supernet: expected images and ends_every >= 1, a learning rate above 0, largest_until and sandwich_from from "
                f"0 to 1 and members >= 2, got {self}"
            )

    def members_at(self, images_seen: int) -> Drawn:
        """What an update trains after so many images."""
        if images_seen < round(self.largest_until * self.images):
            return "largest"
        return self.members if images_seen >= round(self.sandwich_from * self.images) else 1


def run(
    space: str, path: Path, overrides: Sequence[str], recipe: Recipe, out: Path | None, start: Path | None = None
) -> None:
    """Train a supernet of a space with a study's data and proxy, and say what its largest member reaches.

    `start`: weights of the same space and proxy to go on from.
    """
    interruption.install_in_trainer()
    with study_file.opened(path, [f"space={space}", *overrides, "training.init=scratch"]) as (study, _):
        loaded = SearchSpace.load(space)
        check(study, loaded)
    to = out or Path("runs/supernets") / f"{loaded.name}_{study.dataset.name}.safetensors"
    quality = train(study, loaded, recipe, to, Path("runs/.cache"), print, start)
    for split, scores in quality["largest_member"].items():
        shown = ", ".join(f"{name} {amount(value)}" for name, value in scores.items())
        print(f"largest member, {split} captions: {shown}")
    print(f"wrote {to} ({to.stat().st_size / 1e6:.1f} MB) and {to.with_suffix('.png')}; use it with:")
    print(f"  nas run {path} --set training.init={to}")


class Sandwich(Lone):
    """The denoising objective over a supernet: which members an update trains is drawn from the update's own generator.

    `pool` are the architectures to draw from, at proxy scale; its largest and smallest (by parameters) are the ends. With
    `members="largest"` an update trains the largest; with 1 one member: the largest (15 %), the smallest (5 %) or any. With
    more it is the sandwich rule (Yu & Huang 2019): both ends and `members - 2` others, all but the largest also distilled
    from the largest's prediction. The ends are trained in every `ends_every`-th update; in the others the largest only
    teaches `members - 1` drawn at random, at about the same cost.
    """

    measures_progress = True
    generator: Supernet

    def __init__(self, supernet: Supernet, pool: Sequence[Backbone], members: Drawn = 1, ends_every: int = 1):
        super().__init__(supernet, None, DenoisingSettings())
        self.members, self.ends_every = members, ends_every
        skeletons = [skeleton(config) for config in pool]
        skeletons.sort(key=lambda network: sum(p.numel() for p in network.parameters()))
        self._pool = tuple(skeletons)  # a tuple, so that the meta networks are not registered as submodules

    @property
    def passes(self) -> float:
        """3 for each member of an update, though members differ in size."""
        return 3.0 * (self.members if isinstance(self.members, int) else 1)

    def generator_loss(self, batch: LatentBatch) -> Tensor:
        time, noise = batch.draw(self.steps)
        noisy, target = corrupted(self.schedule, batch.latents, time, noise)
        losses: list[Tensor] = []
        teacher: Tensor | None = None
        drawn = self._drawn(batch.generator, batch.update)
        if self._teaches_only(batch.update):
            with torch.no_grad():
                teacher = self.generator.call(drawn.pop(0), noisy, time, batch.text)
        for member in drawn:
            prediction = self.generator.call(member, noisy, time, batch.text)
            losses.append(F.mse_loss(prediction, target))
            if teacher is not None:
                losses[-1] = 0.5 * losses[-1] + 0.5 * F.mse_loss(prediction, teacher)
            else:
                teacher = prediction.detach()
        return torch.stack(losses).mean()

    def _teaches_only(self, update: int) -> bool:
        """Whether the largest member is not trained in this update of several members."""
        return self.members != "largest" and self.members > 1 and update % self.ends_every != 0

    def _drawn(self, generator: torch.Generator, update: int) -> list[nn.Module]:
        """This update's members, the largest first if it is one of them."""
        smallest, *_, largest = self._pool
        if self.members == "largest":
            return [largest]
        index = int(torch.randint(len(self._pool), (), generator=generator))
        if self.members > 1:
            ends = [largest] if self._teaches_only(update) else [largest, smallest]
            others = torch.randint(len(self._pool), (self.members - len(ends),), generator=generator)
            return [*ends, *(self._pool[int(other)] for other in others)]
        which = float(torch.rand((), generator=generator))
        return [largest if which < 0.15 else smallest if which < 0.2 else self._pool[index]]


def train(
    study: Study,
    space: SearchSpace,
    recipe: Recipe,
    out: Path,
    cache: Path,
    say: Callable[[str], None],
    start: Path | None = None,
) -> dict[str, Any]:
    """Train (or continue) a supernet of `space` and save it at `out`; returns its quality, which is in its metadata too.

    Raises InputError when the weights at `start` are of another space or proxy.
    """
    bench = Bench(study, cache)
    begun = _started(start, space, bench.proxy) if start is not None else None
    members = pool(study, space)
    supernet = Supernet.of(space, bench.proxy, SEED)
    if begun is not None:
        supernet.load_state_dict(begun)
    module, objective = _module(recipe, supernet, bench, members, warm=start is not None)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(out.with_suffix(".partial"), _identity(recipe, study, objective.generator, members, start))
    _run(module, objective, recipe, bench, partial, say)
    module.swap_average()
    largest = max(members, key=lambda config: config.cost(study.deploy.latent_size, study.deploy.text_tokens).params)
    quality = {"images_seen": module.images_seen, **asdict(recipe), "seed": SEED, "pool": POOL, "member": largest.key}
    metadata = {
        "space": space.name,
        "made_for": worlds.own(study.resolved())[-1],
        "proxy": json.dumps(asdict(bench.proxy)),
        "made_by": _command(study, recipe, start),
        "licence": "Apache-2.0; trained on the pictures named in NOTICE",
    }
    weights = dict(objective.generator.named_parameters())
    objective.generator.save(out, weights, {**metadata, "quality": json.dumps(quality)})  # before what may fail
    quality["largest_member"] = measured(study, objective.generator, largest, cache, out.with_suffix(".png"))
    objective.generator.save(out, weights, {**metadata, "quality": json.dumps(quality)})
    return quality


def _started(start: Path, space: SearchSpace, proxy: Proxy) -> dict[str, Tensor]:
    """Weights to go on from."""
    require_covers(start, space, proxy)
    return Supernet.load(start)[0].state_dict()


def _command(study: Study, recipe: Recipe, start: Path | None) -> str:
    """What makes these weights again, but for the study's file."""
    plain = asdict(Recipe(recipe.images))
    options = {name: value for name, value in asdict(recipe).items() if name == "images" or value != plain[name]}
    return " ".join(
        [
            f"nas supernet train {study.space}",
            *(f"--{name.replace('_', '-')} {value}" for name, value in options.items()),
            *([f"--start {start.name}"] if start is not None else []),
        ]
    )


def pool(study: Study, space: SearchSpace) -> list[Backbone]:
    """Members within budget, at deploy scale: the preset the space starts from, and random ones."""
    rng = random.Random(SEED)
    base = space.base.canonical()
    found, most = {base.key: base}, min(POOL, space.size())
    for _ in range(100 * POOL):
        if len(found) == most:
            break
        config = space.architecture(space.sample(rng))
        cost = study.deploy.costs(config)
        if not over_budget(cost, study.budget):
            found[config.key] = config
    return list(found.values())


def measured(
    study: Study, supernet: Supernet, member: Backbone, cache: Path, picture: Path
) -> dict[str, dict[str, float]]:
    """A member's scores without fine-tuning, on captions of both splits (at most as many as a split has); a 6x8 grid of
    training captions at `picture`.
    """
    scores = {}
    shared = Bench(study, cache)
    for split in ("train", "held_out"):
        images = min(study.evaluation.images, len(shared.data(split)))
        evaluation = Evaluation(**{**study.evaluation.model_dump(), "split": split, "images": images})
        bench = Bench(study.model_copy(update={"evaluation": evaluation}), cache)
        network = member.scaled(bench.proxy).build().eval()
        network.load_state_dict(supernet.weights_of(network))
        schedule = dict(noise_schedule(DenoisingSettings()).config)
        scores[split] = bench.score(network, schedule).metrics
        if split == "train":
            drawn = torch.cat(list(bench.draw(network, schedule, min(evaluation.images, GRID_COLUMNS * GRID_ROWS))))
            save_grid(drawn, picture, GRID_COLUMNS)
    return scores


def _module(
    recipe: Recipe, supernet: Supernet, bench: Bench, members: Sequence[Backbone], warm: bool
) -> tuple[loop.DenoiserTraining, Sandwich]:
    """`warm`: the weights were trained before, and their average does not forget them."""
    objective = Sandwich(supernet, [config.scaled(bench.proxy) for config in members], ends_every=recipe.ends_every)
    plain = training.Training(
        images_seen=recipe.images,
        learning_rate=recipe.learning_rate,
        warmup_images=recipe.warmup_images,
        ema_decay=0.9995,
        init="supernet" if warm else "scratch",
    )
    return loop.DenoiserTraining(objective, plain), objective


@dataclass(frozen=True)
class Partial:
    """Where an unfinished training lies, and what it is of."""

    path: Path
    identity: dict[str, str]

    def check(self) -> None:
        """Raises InputError when what lies there is another training."""
        found = weight_files.metadata(self.path, "checkpoint")
        for name, value in self.identity.items():
            if found.get(name) != value:
                raise InputError(
                    f"{self.path}: holds a training with {name} {found.get(name, 'not known')}, not {value}; give another --out"
                )


def _identity(
    recipe: Recipe, study: Study, supernet: Supernet, members: Sequence[Backbone], start: Path | None
) -> dict[str, str]:
    """All that decides the weights but how long they are trained."""
    resolved = study.resolved()
    layers = json.dumps([supernet.shapes, [config.key for config in members]])
    told = {"space": study.space, "layers and members": hashlib.sha256(layers.encode()).hexdigest()[:8]}
    told |= {name: resolved[name] for name in (*ENCODED, "proxy")}
    usual = {"images": recipe.images, "warmup_images": WARMUP}  # what trainings that began before it did not tell
    told |= {name: value for name, value in asdict(recipe).items() if value != usual.get(name)}
    told["start"] = hashlib.sha256(start.read_bytes()).hexdigest()[:8] if start is not None else None
    return {name: json.dumps(value, sort_keys=True) for name, value in told.items()}


def _next_stop(recipe: Recipe, images_seen: int) -> int:
    """The next number of images at which something changes or is saved."""
    shares = (recipe.largest_until, recipe.sandwich_from, *(share for share, _ in STAGES))
    changes = [round(share * recipe.images) for share in shares]
    return min(stop for stop in (*changes, images_seen + SAVE_EVERY) if stop > images_seen)


def _run(
    module: loop.DenoiserTraining,
    objective: Sandwich,
    recipe: Recipe,
    bench: Bench,
    partial: Partial,
    say: Callable[[str], None],
) -> None:
    if partial.path.exists():
        partial.check()
        module.restore(partial.path)
        say(f"continuing from {module.images_seen:,} images ({partial.path})")
    plain = module.settings
    while module.images_seen < recipe.images:
        factor = next(factor for share, factor in STAGES if module.images_seen < round(share * recipe.images))
        module.settings = plain.model_copy(update={"learning_rate": recipe.learning_rate * factor})
        objective.members = recipe.members_at(module.images_seen)
        first = module.images_seen
        told = module.heard = Told(module, recipe.images, say)
        try:
            with interruption.computing():
                loop.train(module, bench.train_data, SEED, _next_stop(recipe, first))
        except interruption.Interrupted:
            module.save(partial.path, partial.identity)
            say(f"told to end: saved at {module.images_seen:,} images; the same command goes on from there")
            raise
        module.save(partial.path, partial.identity)
        told.say(f"  loss {module.loss.item():.4f}  {_updated(objective.members)}")


class Told:
    """Says now and then how far a training is, by its pace since this was made."""

    def __init__(self, module: loop.DenoiserTraining, images: int, out: Callable[[str], None]):
        self._module, self._images, self._out = module, images, out
        self._first, self._began = module.images_seen, time.time()
        self._last = self._began

    def __call__(self, step: int) -> None:
        """After an update."""
        if time.time() - self._last >= SAY_SECONDS:
            self.say()

    def say(self, more: str = "") -> None:
        """A line of it."""
        self._last, seen = time.time(), self._module.images_seen
        pace = (seen - self._first) / max(1e-3, self._last - self._began)
        self._out(f"{trained(seen, self._images, pace)}{more}")


def _updated(members: Drawn) -> str:
    return "the largest member alone" if members == "largest" else f"{number_of(members, 'member')} an update"
