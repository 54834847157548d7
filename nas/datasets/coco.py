"""COCO captions: an annotations JSON (`images`, `annotations`) and the image folder. Each picture takes its first caption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from nas.datasets import ByPath, Captioned, Pictures, split_of
from nas.errors import InputError

LICENCE = "Captions: CC-BY 4.0 (COCO Consortium). Pictures: Flickr's, each under the licence its entry in the annotations names."


class Settings(ByPath):
    """`path` is the image folder."""

    annotations: Path
    """For example annotations/captions_val2014.json."""


class Coco:
    """The split's captioned pictures in the order of the annotation file."""

    def __init__(self, settings: Settings, split: str):
        self.settings, self.split = settings, split
        self.names, self.captions = _read(settings.annotations)

    def __iter__(self) -> Iterator[Captioned]:
        for identifier, name in self.names.items():
            caption = self.captions.get(identifier)
            if caption is None or split_of(caption, self.settings.held_out) != self.split:
                continue
            path = self.settings.path / name
            try:
                yield Captioned(name, caption, path.read_bytes(), str(path))
            except OSError as error:
                raise InputError(
                    f"{path}: named in {self.settings.annotations}, cannot be read: {error.strerror}"
                ) from None


def _read(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """File name and first caption by image id."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        captions: dict[int, str] = {}
        for annotation in content["annotations"]:
            captions.setdefault(int(annotation["image_id"]), str(annotation["caption"]).strip())
    except OSError as error:
        raise InputError(f"dataset.annotations: {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"dataset.annotations: {path} is not a COCO captions file: {error!r}") from None
    return names, captions


def load(settings: Settings, split: str) -> Pictures:
    """The split's pictures."""
    return Pictures(Coco(settings, split), settings.image_size)
