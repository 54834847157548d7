"""The parts of a study that can be made of its own pictures: what paths it names, and which of them are not there yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nas import menu
from nas.disk import weight_files
from nas.errors import InputError
from nas.settings.design import Factor, cells, changed
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the cell of an ablation that names them, where the study itself does not."""

    @property
    def weights(self) -> Path:
        """The file of weights: the last that a training writes."""
        return self.path / "open_clip_model.safetensors" if self.role == "judge" else self.path

    @property
    def there(self) -> bool:
        return self.weights.exists() or (self.role == "autoencoder" and self.path.exists())


def named(study: Study) -> list[Part]:
    """Those that a study or a cell of it names, in the order in which they are made, each path once."""
    found = [*_autoencoders(study), *_of_cells(study), *_others(study)]
    return [part for place, part in enumerate(found) if part.path not in [other.path for other in found[:place]]]


def _own(study: Study) -> list[Part]:
    """Those that a study names outside its cells."""
    return [*_autoencoders(study), *_others(study)]


def _of_cells(study: Study) -> Iterator[Part]:
    """The autoencoders of cells."""
    for cell in cells(study.ablation) if study.ablation is not None else []:
        if any(path.partition(".")[0] == "autoencoder" for path in cell.settings):
            yield from _autoencoders(changed(study, cell.settings), cell.settings)


def _autoencoders(study: Study, settings: Mapping[str, Any] | None = None) -> Iterator[Part]:
    """That of a study, which has so much of a cell."""
    path = getattr(study.autoencoder.settings("autoencoders"), "path", None)
    if isinstance(path, Path) and path.suffix == WEIGHTS:
        yield Part("autoencoder", "autoencoder.path", path, settings or {})


def _others(study: Study) -> Iterator[Part]:
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
    """Those that are not there, of cells too."""
    return [part for part in named(study) if not part.there]


def check(study: Study) -> None:
    """Raises InputError naming the first that is not there, of those that are named outside cells."""
    for part in (part for part in _own(study) if not part.there):
        raise InputError(
            f"{part.key}: {part.path}: no such {'folder' if part.role == 'judge' else 'file'}; expected one that is there, "
            "or nas prepare STUDY, which makes it of the study's pictures"
        )


def stand_in(study: Study, missing: list[Part]) -> Study:
    """The study with the shipped part in place of each of these, which knows other pictures: to be checked and timed only."""
    settings = dict(_other_autoencoders(study, {part.path for part in missing if part.role == "autoencoder"}))
    roles = {part.role for part in missing}
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


def _other_autoencoders(study: Study, missing: set[Path]) -> Iterator[tuple[str, Any]]:
    """What to set, by path, so that neither a study nor a cell names one of these files."""
    if any(part.path in missing for part in _autoencoders(study)):
        yield "autoencoder.path", menu.pick("autoencoders", study.autoencoder.name).ABSENT
    if study.ablation is not None and missing:
        factors = study.ablation.factors
        yield (
            "ablation.factors",
            {name: _without(one, study.autoencoder.name, missing) for name, one in factors.items()},
        )


def _without(factor: Factor, kind: str, missing: set[Path]) -> Factor:
    """The factor with another autoencoder in each level that names one of these files."""

    def stand_in(path: str, value: Any) -> Any:
        if path == "autoencoder" and isinstance(value, Mapping) and Path(str(value.get("path"))) in missing:
            return {**value, "path": menu.pick("autoencoders", str(value["name"])).ABSENT}
        if path == "autoencoder.path" and Path(str(value)) in missing:
            return menu.pick("autoencoders", kind).ABSENT
        return value

    given = {name: factor.overrides(name) for name in factor.names}
    levels = {name: {path: stand_in(path, value) for path, value in own.items()} for name, own in given.items()}
    return factor if levels == given else Factor(levels=levels)


def fingerprints(study: Study) -> dict[str, str]:
    """Of the autoencoder and judges that `nas prepare` made, by role; {} without. What is computed by them and kept is theirs
    alone, whatever file had their name before."""
    found: dict[str, str] = {}
    for part in _own(study):
        if part.role != "supernet" and part.weights.is_file():
            known = weight_files.metadata(part.weights, part.key).get("fingerprint")
            found |= {part.role: known} if known else {}
    return found


def latents_of(study: Study) -> dict[str, Any]:
    """What latents, and all that is learnt on them, depend on: the pictures, and who encodes them. That is not by what decoder
    they are decoded, and it tells an autoencoder from another that had its file before."""
    resolved = study.resolved()
    encoder = {name: value for name, value in resolved["autoencoder"].items() if name != "decoder"}
    known = fingerprints(study).get("autoencoder")
    return {"dataset": resolved["dataset"], "autoencoder": encoder} | ({"fingerprint": known} if known else {})
