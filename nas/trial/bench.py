"""What all trials of a study share inside one process: encoded data, frozen models, metrics, captions and noise."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from nas import failures, interruption, menu, objectives, seeds
from nas.datasets import BATCH
from nas.diffusion import solvers
from nas.errors import InputError, about
from nas.metrics import Reference, scores
from nas.networks import autoencoders, backbones, conditioning, lora
from nas.networks.backbones import Backbone, Proxy
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, Pictures
from nas.runs.pictures import save_grid
from nas.settings import design
from nas.settings.entries import Entry
from nas.settings.study import Study
from nas.settings.training import OF_BASE
from nas.space.search_space import SearchSpace
from nas.training import batches, encoded, loop
from nas.trial import base_model, imagined, pairs
from nas.trial.clock.phases import Timings
from nas.weights import checkpoints, parts, supernet

SCORE_BATCH = 64  # images decoded and scored at a time
GRID_COLUMNS, GRID_ROWS = 8, 4
SHOWN = GRID_COLUMNS * GRID_ROWS  # pictures in a grid of samples
LOSS_IMAGES = 256  # held-out images of the paired denoising loss, at most
LESSON = 4  # stream of the study's seed
LOSS_TIMES = 8  # times per image of the paired denoising loss
Captioned = tuple[Tensor, list[str]]  # pictures (B, 3, H, W) in [-1, 1] with their captions
_DATA = ("train_data", "held_out_data", "proxy", "drawn")
MADE_FROM = {  # what a bench holds that is made from a section of the study
    "dataset": ("metrics", *_DATA),
    "autoencoder": ("autoencoder", *_DATA),
    "conditioning": ("encoder", *_DATA),
    "prior": ("drawn",),
    "proxy": ("proxy",),
    "base": ("teacher",),
}


@dataclass(frozen=True)
class Scores:
    """What a network was found to be worth."""

    metrics: dict[str, float]
    """By column, `denoising_loss` (the mean over times) among them."""
    denoising_losses: list[float]
    """The paired loss at each of LOSS_TIMES times."""


class Bench:
    """What all trials of a study share inside one process: encoded data, frozen models, metrics, captions and noise.

    The process computes with the study's `worker_threads` from here on, whoever trains or scores in it.
    """

    def __init__(self, study: Study, cache: Path):
        torch.set_num_threads(study.worker_threads)
        self.study, self.cache = study, cache
        self._variants: dict[str, Bench] = {}

    def variant(self, settings: dict[str, Any]) -> Bench:
        """The bench of the study with settings replaced by path; it shares all data and models that stay the same."""
        if not settings:
            return self
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in self._variants:
            self.prepare()
            new = Bench(design.changed(self.study, settings), self.cache)
            touched = {path.partition(".")[0] for path in settings}
            dropped = {name for section in touched for name in MADE_FROM.get(section, ())} | {"study", "_variants"}
            vars(new).update({name: value for name, value in vars(self).items() if name not in dropped})
            self._variants[key] = new
        return self._variants[key]

    @cached_property
    def autoencoder(self) -> autoencoders.Autoencoder:
        entry = self.study.autoencoder
        loaded: autoencoders.Autoencoder = menu.pick("autoencoders", entry.name).load(entry.settings("autoencoders"))
        return loaded

    @cached_property
    def encoder(self) -> conditioning.TextEncoder:
        with about("conditioning"):
            return conditioning.load(self.study.conditioning)

    def images(self, split: str) -> Any:
        entry = self.study.dataset
        return menu.pick("datasets", entry.name).load(entry.settings("datasets"), split)

    def data(self, split: str) -> encoded.EncodedSet:
        """The encoded split; made and cached on first use."""
        return self.train_data if split == "train" else self.held_out_data

    @cached_property
    def train_data(self) -> encoded.EncodedSet:
        return self._encoded("train")

    @cached_property
    def held_out_data(self) -> encoded.EncodedSet:
        return self._encoded("held_out")

    def encoded_path(self, split: str) -> Path:
        """Where the encoded split is kept."""
        text = conditioning.identity(conditioning.of_text(self.study.conditioning))
        identity = parts.latents_of(self.study) | {"conditioning": text}
        return encoded.cache_path(self.cache, split=split, reading=encoded.READING, **identity)

    def _encoded(self, split: str) -> encoded.EncodedSet:
        path = self.encoded_path(split)
        made = encoded.load_or_encode(path, lambda: self.images(split), lambda: self.autoencoder, lambda: self.encoder)
        return imagined.embedded(self, made, split)

    @cached_property
    def proxy(self) -> Proxy:
        data = self.train_data
        return Proxy(
            width_divisor=self.study.proxy.width_divisor,
            latent_channels=data.latents.shape[1],
            text_width=data.tokens.shape[2],
            pooled_width=data.null.pooled.shape[1],
        )

    @property
    def rows(self) -> Tensor:
        """Which pictures of the evaluation split have the captions that are drawn (images,)."""
        return self._choose()[0]

    def _choose(self) -> tuple[Tensor, torch.Generator]:
        """The rows, and the generator after it chose them."""
        evaluation, data = self.study.evaluation, self.data(self.study.evaluation.split)
        generator = torch.Generator().manual_seed(seeds.stream_seed(evaluation.seed, 1))
        if len(data) < evaluation.images:
            raise InputError(
                f"evaluation.images: {evaluation.images} captions asked for, but the {evaluation.split} split has "
                f"{len(data)} images"
            )
        return torch.randperm(len(data), generator=generator)[: evaluation.images], generator

    @cached_property
    def drawn(self) -> tuple[list[str], Text, Tensor]:
        """The evaluation captions, their embeddings and the initial noise: the same for every trial."""
        data, (rows, generator) = self.data(self.study.evaluation.split), self._choose()
        noise = torch.randn((len(rows), *data.latents.shape[1:]), generator=generator)
        return data.words(rows), imagined.text(self, data, rows, self.study.evaluation.seed), noise

    @cached_property
    def metrics(self) -> list[Metric]:
        """The study's metrics, their references prepared from the training split."""
        most = self.study.evaluation.references
        some = {"references": str(most)} if most else {}
        reference = Reference(
            batches=lambda: islice(self.images("train"), most and math.ceil(most / BATCH)),
            captions=list(self.train_data.captions[:-1]),
            drawn=self.drawn[0],
            cache=encoded.cache_path(
                self.cache, reading=encoded.READING, dataset=self.study.resolved()["dataset"], **some
            ),
        )
        built = []
        for index, entry in enumerate(self.study.metrics):
            with about(f"metrics.{index}"):
                built.append(menu.pick("metrics", entry.name).build(entry.settings("metrics"), reference))
        return built

    def prepare(self) -> None:
        """Make every cache that trials share."""
        _ = self.train_data, self.held_out_data, self.metrics, self.drawn

    def check_weights(self) -> None:
        """Raises InputError when the weights that trials start from do not fit the space or the proxy."""
        if self.study.search and self.study.training.sliced:
            supernet.require_covers(self._supernet(), SearchSpace.load(str(self.study.space)), self.proxy)

    def _supernet(self) -> Path:
        return supernet.weights_path(self.study.training.init, self.study.space, self.study.dataset.name)

    def conditions(self) -> dict[str, dict[str, Any]]:
        """What each score depends on, by column."""
        evaluation = self.study.evaluation
        plan = sampling_conditions(self.study)
        shared = {"images": evaluation.images, "split": evaluation.split, "seed": evaluation.seed, **plan}
        described: dict[str, dict[str, Any]] = {
            column: {
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                **shared,
                **dict(metric.conditions),  # type: ignore[arg-type]
            }
            for metric in self.metrics
            for column in metric.columns  # type: ignore[union-attr]
        }
        entry = self.study.autoencoder
        codes = menu.pick("autoencoders", entry.name).codes(entry.settings("autoencoders"))
        described["denoising_loss"] = {
            "unit": "mean squared error" if codes is None else "nats",
            "higher_is_better": False,
            "split": "held_out",
            "times": LOSS_TIMES,
        }
        return described | self.study.deploy.latency_conditions()

    def scaled(self, architecture: dict[str, Any]) -> Backbone:
        """The proxy of a deploy-scale architecture."""
        return backbones.from_dict(architecture).scaled(self.proxy)

    def network(self, proxy: Backbone, seed: int, like: Backbone | None = None) -> nn.Module:
        """A proxy network, initialised as training.init says; `like` another's weights of this seed where shapes agree."""
        network = fresh(proxy, seed)
        if self.study.training.init in OF_BASE:
            base_model.initialise(self, network, proxy)
        elif self.study.training.sliced:
            supernet.initialise(network, self._supernet(), str(self.study.space), self.proxy)
        elif like is not None and like != proxy:
            checkpoints.copy_agreeing(fresh(like, seed), network)
        return network

    @cached_property
    def teacher(self) -> nn.Module:
        """The base model, frozen."""
        return base_model.network(self)

    @property
    def lessons(self) -> encoded.EncodedSet:
        """What the objective learns from: the training split, or the pairs that it asks for, drawn by the base on first use."""
        entry = self.study.objective
        if "pairs" not in menu.pick("objectives", entry.name).Objective.requires:
            return self.train_data
        return pairs.load(self, entry.settings("objectives").pairs)

    def lesson(self, count: int) -> LatentBatch:
        """A fixed batch of what the objective learns from, the same for every trial; over and over where there is less."""
        data, generator = self.lessons, torch.Generator().manual_seed(seeds.stream_seed(self.study.seed, LESSON))
        rows = torch.randperm(len(data), generator=generator).repeat(-(-count // len(data)))[:count]
        return batches.drawn(data, rows, 0.0, generator, 0)

    def objective(self, network: nn.Module, seed: int) -> Any:
        """The study's objective over a network that has just been initialised, which is given its adapters here.

        The teacher, where one is needed, is the study's base model, or else the network as it was initialised.
        """
        entry, adapters = self.study.objective, self.study.training.lora
        made = menu.pick("objectives", entry.name).Objective
        teacher = None
        if "teacher" in made.requires:
            teacher = copy.deepcopy(self.teacher if self.study.base else network).requires_grad_(False)
        if adapters is not None:
            lora.adapt(network, adapters, seed)
        return made(network, teacher, entry.settings("objectives"), **self._pictures(entry))

    def _pictures(self, entry: Entry) -> dict[str, Pictures]:
        """What an objective is given that learns from pixels; {} of others."""
        if not objectives.takes_pictures(entry.name, entry.settings("objectives")):
            return {}
        decoder = self.autoencoder.decoder().eval().requires_grad_(False)
        return {"pictures": Pictures(decoder, self.train_data.null.pooled.shape[1])}

    @torch.no_grad()
    def draw(self, network: nn.Module, schedule: dict[str, Any], images: int | None = None) -> Iterator[Tensor]:
        """Pictures (B, 3, H, W) of the first `images` evaluation captions, in [-1, 1], batch by batch.

        Raises failures.Diverged when they are not finite numbers, which not every metric could tell from bad ones.
        """
        (_, text, noise), null = self.drawn, self.train_data.null
        total = len(noise) if images is None else images
        for start in range(0, total, SCORE_BATCH):
            rows = slice(start, min(start + SCORE_BATCH, total))
            latents = solvers.sample(
                network, self.study.sampling, schedule, noise[rows], Text(text.tokens[rows], text.pooled[rows]), null
            )
            pictures = self.autoencoder.decode(latents)
            if not pictures.isfinite().all():
                raise failures.Diverged("the drawn pictures are not finite numbers")
            yield pictures

    @torch.no_grad()
    def denoising_losses(self, network: nn.Module, schedule_config: dict[str, Any]) -> list[float]:
        """Paired loss at each of LOSS_TIMES times: the same held-out images and noise for every network, captions given."""
        data = self.held_out_data
        schedule: Any = DDPMScheduler.from_config(schedule_config)
        generator = torch.Generator().manual_seed(seeds.stream_seed(self.study.evaluation.seed, 2))
        rows = torch.arange(min(len(data), LOSS_IMAGES))
        entry = self.study.objective
        error_of = objectives.held_out_error(entry.name, entry.settings("objectives"))
        losses = []
        for level in loss_times(schedule.config["num_train_timesteps"]):
            time = torch.full((len(rows),), level)
            noise = torch.randn((len(rows), *data.latents.shape[1:]), generator=generator)
            error = error_of(network, schedule, data.latents[rows], data.text(rows), time, noise)
            losses.append(float(error.mean()))
        return losses

    @property
    def loss_passes(self) -> int:
        """Forward passes of one image that the paired denoising loss takes."""
        return LOSS_TIMES * min(len(self.held_out_data), LOSS_IMAGES)

    def score(
        self,
        network: nn.Module,
        schedule: dict[str, Any],
        timings: Timings | None = None,
        picture: Path | None = None,
        heard: Callable[[int], None] = loop.ignored,
    ) -> Scores:
        """Every metric of the study and the paired denoising loss; the first pictures as a grid at `picture`.

        `heard` is told how many pictures were drawn, batch by batch.

        Raises failures.Diverged as `draw`.
        """
        timings = timings or Timings()
        values = self.rate(self.captioned(self.draw(network, schedule)), timings, picture, heard)
        with timings.phase("score_s"):
            losses = self.denoising_losses(network, schedule)
        return Scores({**values, "denoising_loss": sum(losses) / len(losses)}, losses)

    def captioned(self, pictures: Iterable[Tensor]) -> Iterator[Captioned]:
        """Batches of pictures of the evaluation captions, in their order, with those captions."""
        captions, done = self.drawn[0], 0
        for images in pictures:
            yield images, captions[done : done + len(images)]
            done += len(images)

    def rate(
        self,
        pictures: Iterator[Captioned],
        timings: Timings | None = None,
        picture: Path | None = None,
        heard: Callable[[int], None] = loop.ignored,
    ) -> dict[str, float]:
        """Every metric of the study for these pictures, by column; the first of them as a grid at `picture`."""
        timings, shown = timings or Timings(), list[Tensor]()
        with timings.phase("score_s"):
            found = scores(self.metrics, _shown(_timed(pictures, timings), shown, heard))
        if picture:
            save_grid(torch.cat(shown), picture, GRID_COLUMNS)
        return found


def _timed(pictures: Iterator[Captioned], timings: Timings) -> Iterator[Captioned]:
    """The batches, the time that each takes to come noted."""
    while True:
        interruption.check()
        with timings.phase("sample_s"):
            batch = next(pictures, None)
        if batch is None:
            return
        yield batch


def _shown(pictures: Iterator[Captioned], shown: list[Tensor], heard: Callable[[int], None]) -> Iterator[Captioned]:
    """The batches, the first SHOWN pictures put aside; `heard` is told how many there were after each is scored."""
    count = 0
    for images, captions in pictures:
        yield images, captions
        shown.append(images[: max(0, SHOWN - count)])
        count += len(images)
        heard(count)


def sampling_conditions(study: Study) -> dict[str, Any]:
    """The plan that pictures are drawn by, field by field; one that some factor of an ablation sets is the cell's."""
    varied = design.varied(study.ablation) if study.ablation else []
    own = {path.removeprefix("sampling."): "as the cell says" for path in varied if path.startswith("sampling.")}
    searched = dict.fromkeys(study.search.plan if study.search is not None else (), "as the trial says")
    return {**study.sampling.model_dump(mode="json"), **own, **searched}


def loss_times(steps: int) -> list[int]:
    """The times of the paired denoising loss, of `steps`: the middles of LOSS_TIMES equal parts."""
    return [round((index + 0.5) * steps / LOSS_TIMES) for index in range(LOSS_TIMES)]


def fresh(proxy: Backbone, seed: int) -> nn.Module:
    """A network with the initial weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = proxy.build()
    return network
