"""The folder that an export goes to: whether it may be written, and what is left in it of an earlier export."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nas import menu
from nas.deploy import image_decoder, imagination
from nas.deploy.contents import export_folder, standalone
from nas.errors import ArgumentError, InputError
from nas.weights import checkpoints

CARD = "README.md"
SETTINGS = (export_folder.DEPLOY, export_folder.PIPELINE, "study.yaml")  # which every export writes first
WEIGHTS = (
    f"{checkpoints.PROXY}/config.yaml",
    f"{checkpoints.PROXY}/weights.safetensors",
    f"{imagination.FOLDER}/{imagination.WEIGHTS}",
)


def check(folder: Path) -> None:
    """Raises InputError when the folder holds what no export of a trial wrote: its README.md may be somebody's own, its weights
    those of `nas train`.
    """
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if export_folder.DEPLOY in held:  # the first file of an export
        held -= {*SETTINGS, image_decoder.FILE, *standalone.FILES, *_folders()}
    strange = held & {checkpoints.TRAINED} if export_folder.MANIFEST in held else held
    if strange:
        raise ArgumentError(
            f"to {folder}: holds {min(strange)!r} and is no trial's export; expected a new folder, or such a one"
        )


def empty(folder: Path, sections: Mapping[str, Any]) -> None:
    """Make the folder, without what an earlier export wrote: readers take weights that lie there for this one's, and until this
    one is done there is none. A decoder of it that the new export's `sections` name stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {image_decoder.FILE} if image_decoder.lies_in(folder, sections) else set()
    written = {export_folder.MANIFEST, CARD, image_decoder.FILE, *standalone.FILES, *WEIGHTS, *_networks(folder)}
    for name in sorted(written - kept):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in _folders():
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()


def _folders() -> list[str]:
    """Of an export: those of weights and of formats."""
    return [checkpoints.PROXY, imagination.FOLDER, *menu.names("exporters")]


def _networks(folder: Path) -> Iterator[str]:
    """Files and packages in its folders that an export's manifest names; none where there is no manifest that can be read."""
    try:
        manifest = export_folder.manifest(folder)
    except InputError:
        return
    for precisions in manifest["formats"].values():
        for held in precisions.values():
            for entry in held["networks"].values():
                path = PurePosixPath(entry["file"])
                if path.parts[0] in _folders() and len(path.parts) > 1:
                    yield from (str(path), f"{path}.data")  # weights beyond what one ONNX file holds
