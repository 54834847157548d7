"""Which pictures a part was made for, so that a study of other pictures says so.

Weights name their data set under `made_for` in their metadata; `assets/made_for.json` says it of those that ship and do not. A
module that brings weights (nas/networks/autoencoders, nas/metrics, nas.networks.conditioning) tells where they lie by
`weights(settings)`, and what to use with other pictures by `OTHERWISE`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nas import assets, menu
from nas.errors import InputError
from nas.networks import conditioning
from nas.networks.conditioning import clip
from nas.settings.training import UNSLICED
from nas.weights import supernet

RECORDED = "made_for_others"  # among the provenance of a run: `told`, as it was when the run began
PARTS = {"autoencoder": "autoencoders", "metrics": "metrics"}  # section of a study -> menu folder


@dataclass(frozen=True)
class Foreign:
    """A part that was made for other pictures than the study's."""

    name: str
    made_for: str
    """The data set."""
    instead: str
    """What to use."""


def made_for(path: Path) -> str | None:
    """The data set that weights were made for; None where nobody says."""
    if path.resolve().parent == assets.FOLDER.resolve():
        shipped: dict[str, str] = json.loads((assets.FOLDER / "made_for.json").read_text(encoding="utf-8"))
        if path.name in shipped:
            return shipped[path.name]
    if path.is_dir():
        path = path / clip.WEIGHTS
    if path.suffix != ".safetensors" or not os.path.isfile(path):
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("made_for")
    except (OSError, SafetensorError):  # whoever loads it says what is wrong with it
        return None


def foreign(resolved: Mapping[str, Any]) -> list[Foreign]:
    """The parts of a study, from its resolved settings, that were made for another data set than its own."""
    if (resolved.get("dataset") or {}).get("name") is None:
        return []
    names = own(resolved)
    found = [Foreign(name, made_for(path) or names[0], instead) for name, path, instead in _weights(resolved)]
    return list(dict.fromkeys(part for part in found if part.made_for not in names))


def own(resolved: Mapping[str, Any]) -> list[str]:
    """What weights made for a study's pictures call them: the data set, and where it lies, if that is not in the package."""
    name, path = resolved["dataset"]["name"], resolved["dataset"].get("path")
    return [name] if path is None else [name, f"{name} {path}"]


def told(resolved: Mapping[str, Any]) -> str:
    """One line that names the parts made for other pictures and what to use; empty where there are none."""
    parts = foreign(resolved)
    if not parts:
        return ""
    whose = " and ".join(dict.fromkeys(part.made_for for part in parts))
    named = ", ".join(f"{part.name} (use {part.instead})" for part in parts)
    return f"made for the pictures of {whose}, not for those of {resolved['dataset']['name']}: {named}"


def _weights(resolved: Mapping[str, Any]) -> Iterator[tuple[str, Path, str]]:
    """(name, path, what to use instead) of every part that brings weights."""
    for section, folder in PARTS.items():
        given = resolved.get(section) or []
        for entry in given if isinstance(given, list) else [given]:
            module = menu.pick(folder, entry["name"])
            if hasattr(module, "weights"):
                options = {key: value for key, value in entry.items() if key != "name"}
                if (path := _lie(module.weights, module.Settings, options)) is not None:
                    yield "judge" if section == "metrics" else section, path, module.OTHERWISE
    if (path := _lie(conditioning.weights, conditioning.Conditioning, resolved.get("conditioning") or {})) is not None:
        yield "text encoder", path, conditioning.OTHERWISE
    for section in ("training", "base"):
        training = resolved.get(section) or {}
        init = (training.get("training") or {} if section == "base" else training).get("init", "scratch")
        if init not in UNSLICED:
            path = _supernet(init, resolved)
            if path is not None:
                yield "supernet", path, "training.init: scratch, or one from nas supernet train"


def _lie(weights: Callable[[Any], Path | None], settings: type[BaseModel], options: Mapping[str, Any]) -> Path | None:
    """Where weights lie; None where there are none, or a run of another version has settings that are not known here."""
    try:
        return weights(settings.model_validate(options))
    except ValidationError:
        return None


def _supernet(init: str, resolved: Mapping[str, Any]) -> Path | None:

    try:
        return supernet.weights_path(init, resolved.get("space"), resolved["dataset"]["name"])
    except InputError:  # said by the check of the study
        return None
