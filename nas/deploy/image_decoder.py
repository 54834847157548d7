"""An image decoder that `nas decoder` made, in an export in place of its autoencoder's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas import menu
from nas.errors import ArgumentError
from nas.networks.decoders.kl import stored
from nas.settings.entries import Entry

FILE = "decoder.safetensors"  # of an export
Sections = Mapping[str, Any]  # of a study, `autoencoder` among them


def chosen(sections: Sections, path: Path) -> dict[str, Any]:
    """Sections whose autoencoder decodes by a file. Raises InputError for one of other latents, and where none can be chosen."""
    entry = Entry(**{**sections["autoencoder"], "decoder": str(path)})
    try:
        settings = entry.settings("autoencoders")
    except ValidationError:
        raise ArgumentError(f"decoder {path}: autoencoder {entry.name} takes no other decoder; expected kl") from None
    menu.pick("autoencoders", entry.name).load(settings)
    return {**sections, "autoencoder": {"name": entry.name, **entry.options}}


def put(folder: Path, sections: Sections) -> list[str]:
    """Copy the decoder that the sections name, if they do, into an export. Returns what is to be said of it."""
    named = _named(sections)
    if named is None:
        return []
    if not lies_in(folder, sections):
        shutil.copyfile(named, folder / FILE)
    about = stored.about(folder / FILE, "decoder")
    return [
        f"The image decoder is `{FILE}`: {about['ratio']} of the channels of the autoencoder's own, trained on "
        f"{about['images_seen']} drawn latents to its pictures, from which it is {about['psnr_db']} dB away (PSNR)."
    ]


def lies_in(folder: Path, sections: Sections) -> bool:
    """Whether the decoder that the sections name is the copy in this very folder, of an export that is made anew."""
    named, own = _named(sections), folder / FILE
    return named is not None and own.is_file() and Path(named).is_file() and own.samefile(named)


def carried(sections: Sections) -> dict[str, Any]:
    """Sections as an export's files hold them: they name the folder's own copy."""
    return _renamed(sections, _named(sections), FILE)


def found_in(folder: Path, sections: Sections) -> dict[str, Any]:
    """Sections of an export's files, with the path of the copy."""
    return _renamed(sections, FILE, str(folder / FILE))


def _named(sections: Sections) -> str | None:
    """The decoder's file; None where the sections, which may be anything, name none."""
    entry = sections.get("autoencoder")
    return entry.get("decoder") if isinstance(entry, Mapping) else None


def _renamed(sections: Sections, old: str | None, new: str) -> dict[str, Any]:
    if old is None or _named(sections) != old:
        return dict(sections)
    return {**sections, "autoencoder": {**sections["autoencoder"], "decoder": new}}
