"""What an export says of itself, read as data: whoever made it, a file it names lies in it, and nothing is loaded before all
is checked."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nas import menu
from nas.deploy import graphs, image_decoder
from nas.diffusion.plan import Plan
from nas.documents import strict
from nas.documents.document import Document
from nas.errors import InputError
from nas.networks import backbones
from nas.networks.backbones import Backbone
from nas.networks.conditioning import Conditioning
from nas.settings.entries import Entry

MANIFEST, PIPELINE, DEPLOY = "export.yaml", "pipeline.yaml", "deploy.yaml"

CHECKPOINT, SETTINGS, LOG = "checkpoint.safetensors", "training.yaml", "log.csv"


class _Read(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class File(_Read):
    """A file of one network."""

    file: str

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"expected a file of the folder itself, got {value!r}")
        return value


class Held(_Read):
    """One format in one precision."""

    networks: dict[str, File]


class Manifest(_Read):
    """export.yaml."""

    version: int
    formats: dict[str, dict[str, Held]]
    latents: tuple[int, int, int] | None = None

    @model_validator(mode="after")
    def _graphs_are_whole(self) -> Manifest:
        """Formats that hold graphs have all of them, and tell the size of what they draw."""
        for name in set(self.formats) - {"safetensors"}:
            if self.latents is None:
                raise ValueError(f"latents: required by format {name}")
            for precision, held in self.formats[name].items():
                if missing := set(graphs.NAMES) - set(held.networks):
                    raise ValueError(f"formats.{name}.{precision}.networks: {min(missing)} is not there")
        return self


class Pipeline(_Read):
    """pipeline.yaml."""

    conditioning: Conditioning
    autoencoder: Entry
    objective: Entry
    sampling: Plan
    image_size: int = Field(ge=1, le=65_536)
    prior: Entry = Entry(name="none")

    @model_validator(mode="after")
    def _of_the_menus(self) -> Pipeline:
        """Every choice from a menu has settings that its file defines."""
        for name, folder in (("autoencoder", "autoencoders"), ("objective", "objectives"), ("prior", "priors")):
            entry: Entry = getattr(self, name)
            try:
                entry.settings(folder)
            except ValidationError as error:
                kind = menu.pick(folder, entry.name).Settings
                raise ValueError(f"{name}: {strict.first_wrong(kind, error)}") from None
        return self


class Interval(_Read):
    """Where a score may be if the network is trained once more."""

    low: float
    high: float


class Trial(_Read):
    """deploy.yaml of a study's trial: what `nas verify` trains again, and compares with."""

    architecture: dict[str, Any]
    seed: int
    images_seen: int = Field(ge=0)
    like: dict[str, Any] | None
    parent: int | None = None
    scores: dict[str, float]
    intervals: dict[str, Interval]


class Origin(_Read):
    """deploy.yaml of any export."""

    origin: dict[str, Any] = Field(alias="from")


def manifest(folder: Path) -> dict[str, Any]:
    """What is in the folder. Raises InputError naming the file and the key."""
    return _checked(folder / MANIFEST, Manifest)


def pipeline(folder: Path) -> dict[str, Any]:
    """The sections of a study a drawing depends on, and `image_size`. Raises InputError naming the file and the key."""
    return image_decoder.found_in(folder, _checked(folder / PIPELINE, Pipeline))


def origin(folder: Path) -> dict[str, Any]:
    """Where the network came from: a `trial` of a run, or a training. Raises InputError naming the file and the key."""
    return dict(_checked(folder / DEPLOY, Origin)["from"])


def trial(folder: Path) -> dict[str, Any]:
    """deploy.yaml of an export of a trial. Raises InputError naming the file and the key."""
    return _checked(folder / DEPLOY, Trial)


def _checked(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    found = Document.read(path)
    found.validate(kind, found.content)
    return found.content


def architecture(path: Path, key: str | None = None) -> Backbone:
    """The network a YAML file describes, whole or under a key. Raises InputError naming the file."""
    content = Document.read(path).content
    try:
        return backbones.from_dict(content[key] if key else content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no architecture: {error!r}") from None
