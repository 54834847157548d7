"""The parts of a study that can be made of its own pictures: what paths it names, and which of them are not there yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nas.disk import weight_files
from nas.errors import InputError
from nas.settings.design import changed
from nas.settings.entries import Entry
from nas.settings.study import Study
from nas.settings.training import UNSLICED

WEIGHTS = ".safetensors"
Role = Literal["autoencoder", "judge", "supernet"]


@dataclass(frozen=True)
class Part:
    """Weights that a study names by a path of their own."""

    role: Role
    key: str
    """The setting that names them."""
    path: Path
    """A file, of a judge a folder."""

    @property
    def weights(self) -> Path:
        """The file of weights: the last that a training writes."""
        return self.path / "open_clip_model.safetensors" if self.role == "judge" else self.path

    @property
    def there(self) -> bool:
        return self.weights.exists() or (self.role == "autoencoder" and self.path.exists())


def named(study: Study) -> list[Part]:
    """Those that a study names, in the order in which they are made, each path once."""
    found = list(_named(study))
    return [part for place, part in enumerate(found) if part.path not in [other.path for other in found[:place]]]


def _named(study: Study) -> Iterator[Part]:
    path = getattr(study.autoencoder.settings("autoencoders"), "path", None)
    if path is not None and path.suffix == WEIGHTS:
        yield Part("autoencoder", "autoencoder.path", path)
    for place, entry in enumerate(study.metrics):
        judge = _judge(entry)
        if judge is not None and ("/" in judge or Path(judge).is_dir()):
            yield Part("judge", f"metrics.{place}.judge", Path(judge))
    if study.training.init not in (*UNSLICED, "supernet") and study.training.init.endswith(WEIGHTS):
        yield Part("supernet", "training.init", Path(study.training.init))


def _judge(entry: Entry) -> str | None:
    judge: str | None = getattr(entry.settings("metrics"), "judge", None)
    return judge


def absent(study: Study) -> list[Part]:
    """Those that are not there."""
    return [part for part in named(study) if not part.there]


def check(study: Study) -> None:
    """Raises InputError naming the first that is not there."""
    for part in absent(study):
        raise InputError(
            f"{part.key}: {part.path}: no such {'folder' if part.role == 'judge' else 'file'}; expected one that is there, "
            "or nas prepare STUDY, which makes it of the study's pictures"
        )


def stand_in(study: Study, missing: list[Part]) -> Study:
    """The study with the shipped part in place of each of these, which knows other pictures: to be checked and timed only."""
    settings: dict[str, Any] = {}
    roles = {part.role for part in missing}
    if "autoencoder" in roles:
        settings["autoencoder.path"] = None
    if "supernet" in roles:
        settings["training.init"] = "scratch"
        if study.search is not None and study.search.sampler == "pool":
            settings |= {"search.sampler": "random", "search.pool": {}}
    paths = {str(part.path) for part in missing}
    if "judge" in roles:
        options = [
            {**entry.options, "judge": "shipped"} if _judge(entry) in paths else entry.options
            for entry in study.metrics
        ]
        settings["metrics"] = tuple(
            Entry(name=entry.name, **own) for entry, own in zip(study.metrics, options, strict=True)
        )
    return changed(study, settings)


def fingerprints(study: Study) -> dict[str, str]:
    """Of the autoencoder and judges that `nas prepare` made, by role; {} without. What is computed by them and kept is theirs
    alone, whatever file had their name before."""
    found: dict[str, str] = {}
    for part in named(study):
        if part.role != "supernet" and part.weights.is_file():
            known = weight_files.metadata(part.weights, part.key).get("fingerprint")
            found |= {part.role: known} if known else {}
    return found
