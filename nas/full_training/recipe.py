"""How a network is trained at deploy scale: the file `nas train --recipe` reads, and its defaults.

The defaults are MobileDiffusion's (arXiv 2311.16567): AdamW with learning rate 1e-3, betas (0.9, 0.999) and weight decay 0.01;
750,000 updates of 4,096 pictures at 256 px, then 250,000 of 2,048 at 512 px. What the paper leaves open is marked as an
assumption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nas import menu
from nas.diffusion.plan import Plan
from nas.documents.document import Document
from nas.documents.section import Section
from nas.documents.strict import Decay, validated
from nas.errors import InputError
from nas.networks.conditioning import Conditioning
from nas.settings.entries import Entry, dataset_of
from nas.settings.training import MOST_IMAGES, MOST_IN_BATCH, Training


class Stage(Section):
    """One resolution."""

    image_size: int = Field(ge=8, le=8192)
    """Pixels along a side."""
    images: int = Field(ge=1, le=MOST_IMAGES)
    """Pictures seen in this stage, for example 512M."""
    batch: int = Field(ge=1, le=MOST_IN_BATCH)
    """Pictures of an update, over all devices."""
    micro_batch: int | None = Field(None, ge=1)
    """Pictures a device takes at a time; the gradients of a device's share of a batch are added up. None: the share at once."""

    @model_validator(mode="after")
    def _one_update(self) -> Self:
        if self.images < self.batch:
            raise ValueError(f"images: expected at least one batch, {self.batch:,}, got {self.images:,}")
        return self


PAPER = (
    Stage(image_size=256, images=750_000 * 4_096, batch=4_096),
    Stage(image_size=512, images=250_000 * 2_048, batch=2_048),
)


class Recipe(Section):
    """A training at deploy scale."""

    dataset: Entry | None = None
    """A data set of the menu; its image size is the stage's. `--data` names it on the command line."""
    conditioning: Conditioning | None = None
    """The frozen text encoder. None: that of the export whose architecture is trained, or else the shipped one."""
    autoencoder: Entry | None = None
    """The frozen autoencoder. None: as for `conditioning`."""
    objective: Entry = Entry(name="denoising")
    """What is minimised. One that needs a teacher learns from the weights of `start`."""
    start: Path | None = None
    """Weights to start from: a folder that `nas train` wrote, or its weights.safetensors. None: random ones."""
    width_divisor: int = Field(1, ge=1)
    """Divides every width, to try a recipe out. 1 is deploy scale."""
    stages: tuple[Stage, ...] = Field(PAPER, min_length=1)
    """Trained one after the other, each from where the last one ended."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """AdamW's, reached after the warm-up of each stage and then held."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0, le=10)
    warmup_images: int = Field(4_096_000, ge=0, le=MOST_IMAGES)
    """Linear warm-up of the learning rate: 1,000 updates (assumption)."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient (assumption)."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Moving average of the weights, which is what is sampled (assumption: Stable Diffusion's)."""
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of captions replaced by the empty one, for guidance (assumption: Stable Diffusion's)."""
    precision: Literal["fp32", "bf16"] = "bf16"
    sampling: Plan = Plan()
    """How the trained network is drawn unless told otherwise."""
    window: int = Field(16_384, ge=1, le=MOST_IN_BATCH)
    """Pictures that are read ahead and shuffled. The data set is read in its own order, so shards should hold mixed pictures.
    One that fits is encoded once."""
    readers: int = Field(8, ge=1, le=1024)
    """Threads that decode pictures, on each device's process."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """How much of a training an interruption without warning may cost."""
    seed: int = 0

    def training(self, stage: int) -> Training:
        """The settings of a stage's LightningModule, in images of that stage."""
        names = ("learning_rate", "betas", "weight_decay", "warmup_images", "gradient_clip", "ema_decay")
        same = {name: getattr(self, name) for name in (*names, "caption_dropout", "precision")}
        fresh = stage == 0 and self.start is None
        now = self.stages[stage]
        return Training(images_seen=now.images, batch=now.batch, init="scratch" if fresh else "base", **same)

    def data(self, stage: int) -> Any:
        """The training pictures of a stage. Raises InputError when they are not there."""
        entry = _required(self.dataset)
        options = {**entry.options, "image_size": self.stages[stage].image_size}
        module = menu.pick("datasets", entry.name)
        return module.load(validated(module.Settings, options), "train")


def _required(entry: Entry | None) -> Entry:
    if entry is None:
        raise InputError("dataset: required, but not given; name it in the recipe or with --data")
    return entry


@contextmanager
def opened(path: Path | None, overrides: Sequence[str] = (), data: str | None = None) -> Iterator[Recipe]:
    """The recipe at `path`, or the default one, with `key=value` overrides and a data set, for a block of which every InputError
    about a setting says where that was given.

    Raises InputError naming file, line, key and value.
    """
    document = Document.read(path) if path is not None else Document("the default recipe", {})
    for override in overrides:
        document.override(override)
    if data is not None:
        document.put("dataset", dataset_of(data), "--data")
    with document.placing(Recipe.model_fields):
        yield _recipe(document)


def load(path: Path | None, overrides: Sequence[str] = (), data: str | None = None) -> Recipe:
    """The recipe of `opened`, for whoever only reads it."""
    with opened(path, overrides, data) as recipe:
        return recipe


def _recipe(document: Document) -> Recipe:
    recipe: Recipe = document.validate(Recipe, document.content)
    _required(recipe.dataset)
    for folder in ("dataset", "autoencoder", "objective"):
        entry: Entry | None = getattr(recipe, folder)
        if entry is None:
            continue
        try:
            module = menu.pick(f"{folder}s", entry.name)
        except InputError as error:
            raise document.error((folder, "name"), str(error)) from None
        if folder == "dataset" and "image_size" in entry.options:
            raise document.error((folder, "image_size"), "given by the stages; expected none here")
        document.validate(module.Settings, entry.options, (folder,))
    return recipe
