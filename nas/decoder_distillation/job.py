"""`nas decoder` from end to end: latents are drawn, decoders pruned and trained, and every one measured beside the teacher.

settings.yaml             of what network, and how the decoders are trained: the same command goes on, another one is refused
latents/                  what the network drew
ratio-0.5.safetensors     a decoder that is trained; `nas export --decoder` and a study's `autoencoder.decoder` take it
decoders.csv, *.png       what each is worth
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nas import interruption
from nas.decoder_distillation import measures
from nas.decoder_distillation.latents import Latents
from nas.deploy.contents import export_folder
from nas.diffusion.plan import Plan
from nas.disk import files, lock
from nas.errors import InputError
from nas.failures import Diverged
from nas.networks.autoencoders.kl import Decoder, KlAutoencoder
from nas.networks.decoders.kl import pruning, stored
from nas.networks.decoders.kl.network import Decoder as Network
from nas.report.chapters import decoders as drawing
from nas.report.chapters.decoders import FOLDER, TABLE
from nas.schedules import subjects
from nas.schedules.drawing import Subject, Task
from nas.training import fitting
from nas.training.decoders import DecoderTraining, Recipe, decoded, psnr, to_teacher

SETTINGS = "settings.yaml"
WHOLE = 1.0  # the ratio of the teacher
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What is asked of `nas decoder`."""

    ratios: tuple[float, ...]
    """Of the channels that stay, of every width; the teacher, 1, is measured in any case."""
    latents: int
    """To be drawn for the training."""
    recipe: Recipe

    def __post_init__(self) -> None:
        for ratio in self.ratios:
            if not 0 < ratio <= WHOLE:
                raise InputError(f"--ratio {ratio:g}: expected more than 0 and at most 1")

    @property
    def pruned(self) -> list[float]:
        """The ratios of decoders that are trained, the largest first."""
        return sorted({ratio for ratio in self.ratios if ratio != WHOLE}, reverse=True)


def find(source: Path, pick: str | None) -> tuple[Subject, Path]:
    """The network that `nas decoder` is given, an export's by the plan that the export draws by, and the folder for what is made.

    Raises InputError where `source` and `pick` name not one.
    """
    subject, folder = subjects.find(source, pick, kind=FOLDER)
    if (source / export_folder.PIPELINE).is_file():
        plan, bench = export_folder.pipeline(source)["sampling"], subject.bench
        if Plan(**plan) != bench.study.sampling:
            subject = replace(subject, bench=bench.variant({"sampling": plan}))
    return subject, folder


@dataclass(frozen=True)
class Job:
    """A network, what is asked, and where it goes."""

    subject: Subject
    asked: Asked
    folder: Path

    @cached_property
    def autoencoder(self) -> KlAutoencoder:
        """The study's own. Raises InputError for one whose decoder cannot be pruned."""
        found, name = self.subject.bench.autoencoder, self.subject.bench.study.autoencoder.name
        if not isinstance(found, KlAutoencoder):
            raise InputError(f"autoencoder: {name} has no decoder that can be pruned; expected kl")
        config = found.model.config
        plain = config["act_fn"] == "silu" and set(config["up_block_types"]) == {"UpDecoderBlock2D"}
        if not plain:
            raise InputError(
                f"autoencoder: {name} decodes by {config['act_fn']} and {', '.join(config['up_block_types'])}; expected silu "
                "and UpDecoderBlock2D, which can be pruned"
            )
        return found

    @cached_property
    def teacher(self) -> Decoder:
        """The autoencoder's own decoder."""
        own = self.autoencoder
        network = pruning.of_autoencoder(own.model).eval().requires_grad_(False)
        return Decoder(own.model.post_quant_conv, network, own.mean, own.std)

    def groups(self, ratio: float) -> int:
        """How many groups of every norm stay. Raises InputError unless they are a whole number, and at least one."""
        of = _network(self.teacher).config.groups
        exact = ratio * of
        if abs(exact - round(exact)) > 1e-6 or round(exact) < 1:
            nearest = max(1, round(exact)) / of
            raise InputError(
                f"--ratio {ratio:g}: keeps {exact:g} of the {of} groups of the decoder's norms; expected a multiple of 1/{of}, "
                f"such as {nearest:g}"
            )
        return round(exact)

    def pruned(self, ratio: float) -> Decoder:
        """What is left of the teacher, untrained."""
        teacher = self.teacher
        network = pruning.pruned(_network(teacher), self.groups(ratio))
        return Decoder(copy.deepcopy(teacher.convolution), network.eval(), teacher.mean, teacher.std)

    def file(self, ratio: float) -> Path:
        return self.folder / f"ratio-{ratio:g}.safetensors"

    def settings(self) -> dict[str, Any]:
        """What decides the weights, but for the ratio."""
        study = self.subject.bench.study
        return {
            "network": self.subject.fingerprint(),
            "autoencoder": self.autoencoder.fingerprint(),
            "plan": study.sampling.model_dump(mode="json"),
            "dataset": study.resolved()["dataset"],
            "latents": self.asked.latents,
            **vars(self.asked.recipe),
        }


def _network(decoder: Decoder) -> Network:
    network = decoder.network
    assert isinstance(network, Network)
    return network


def run(job: Job, say: Say) -> pd.DataFrame:
    """Draw, train and measure what is not there yet; a row for each decoder, the teacher first.

    Raises InputError before anything is written for a ratio or an autoencoder that cannot be pruned, and for a folder that
    holds others; Interrupted once what was being made is saved.
    """
    for ratio in job.asked.pruned:
        job.groups(ratio)
    interruption.install_in_trainer()
    _check_folder(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    with lock.hold(job.folder, "another process makes decoders in it; wait for it or choose another folder with --out"):
        _check_folder(job)  # again: the process that held it may have written one
        files.write_yaml(job.folder / SETTINGS, job.settings())
        try:
            with interruption.computing():
                return _made(job, say)
        except interruption.Interrupted:
            say("told to end: saved; the same command goes on from there")
            raise
        except Diverged as error:
            raise InputError(f"{job.folder}: {error}; try a lower --learning-rate in another folder (--out)") from None


def _check_folder(job: Job) -> None:
    path = job.folder / SETTINGS
    if not path.exists():
        return
    found, wanted = files.read_yaml(path), job.settings()
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InputError(
                f"{path}: holds decoders with {name} {found.get(name)!r}, asked for {value!r}; expected the same, or another "
                "--out"
            )


def _made(job: Job, say: Say) -> pd.DataFrame:
    latents = Latents(job.subject, job.folder / "latents", job.asked.recipe.seed)
    held_out = latents.held_out(say)
    lessons = latents.lessons(job.asked.latents, say) if _missing(job) else held_out[:0]
    for ratio in _missing(job):
        _train(job, ratio, lessons, held_out, say)
    say(f"measuring {len(job.asked.pruned)} decoders beside the whole one, on {len(held_out):,} latents")
    return _measured(job, held_out, latents.task)


def _missing(job: Job) -> list[float]:
    return [ratio for ratio in job.asked.pruned if not job.file(ratio).exists()]


def _train(job: Job, ratio: float, lessons: Tensor, held_out: Tensor, say: Say) -> None:
    """Write the decoder of a ratio."""
    student = job.pruned(ratio)
    made = DecoderTraining(student, len(lessons), job.asked.recipe)
    checkpoint = job.file(ratio).with_suffix(".checkpoint")

    def loss(rows: Tensor) -> Tensor:
        return to_teacher(student, job.teacher, lessons[rows])

    fitting.train(made, loss, checkpoint, f"ratio {ratio:g}", say)
    decoder = made.averaged()
    about = {
        "made_by": "nas decoder",
        "ratio": f"{ratio:g}",
        "images_seen": str(made.images_seen),
        "psnr_db": f"{psnr(decoded(decoder, held_out), decoded(job.teacher, held_out)):.2f}",
    }
    network, fingerprint = _network(decoder), job.autoencoder.fingerprint()
    stored.write(job.file(ratio), stored.Stored(decoder.convolution, network, fingerprint, about))
    checkpoint.unlink(missing_ok=True)


def _decoder(job: Job, ratio: float) -> Decoder:
    """As it is on disk; the teacher for the whole ratio."""
    if ratio == WHOLE:
        return job.teacher
    held = stored.read(job.file(ratio), "decoder")
    return Decoder(held.convolution, held.network, job.teacher.mean, job.teacher.std)


@torch.no_grad()
def _measured(job: Job, held_out: Tensor, task: Task) -> pd.DataFrame:
    """Writes the table and its pictures."""
    made = {ratio: _decoder(job, ratio) for ratio in (WHOLE, *job.asked.pruned)}
    pictures = {ratio: decoded(decoder, held_out) for ratio, decoder in made.items()}
    whole, bench = pictures[WHOLE], job.subject.bench
    built = measures.to_teacher(bench.study.metrics, whole, task.captions)
    latents = (held_out.shape[1], held_out.shape[2], held_out.shape[3])
    spent = measures.times(made, latents)
    rows = []
    for ratio, decoder in made.items():
        interruption.check()
        found = measures.cost(decoder, held_out.shape[-1])
        row: dict[str, Any] = {"ratio": ratio, "params": found.params, "macs": found.macs}
        row["images_seen"] = 0 if ratio == WHOLE else job.asked.recipe.updates * job.asked.recipe.batch
        row["psnr_db"] = psnr(pictures[ratio], whole)
        row["psnr_db_untrained"] = psnr(decoded(job.pruned(ratio), held_out), whole)
        row |= measures.distances(built, pictures[ratio]) | job.subject.scores(task, pictures[ratio]) | spent[ratio]
        rows.append(row)
    table = pd.DataFrame(rows)
    files.write_csv(job.folder / TABLE, rows)
    drawing.save(table, pictures, job.folder, shown(job))
    return table


def shown(job: Job) -> list[str]:
    """The study's scores that people are shown: those that it searches by, or all."""
    measured = [name for name in job.subject.bench.conditions() if name not in ("denoising_loss", "latency_ms")]
    return [name for name in job.subject.bench.study.objectives if name in measured] or measured
