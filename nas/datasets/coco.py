"""COCO captions: an annotations JSON (`images`, `annotations`) and the image folder. Each picture takes its first caption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas.datasets import ByPath, Captioned, Given, Pictures, caption_under, name_under, split_of
from nas.disk.reading import PICTURE, TABLE, contents, parsed
from nas.errors import InputError, shown

LICENCE = "Captions: CC-BY 4.0 (COCO Consortium). Pictures: Flickr's, each under the licence its entry in the annotations names."


class Settings(ByPath):
    """`path` is the image folder."""

    annotations: Given
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
                yield Captioned(name, caption, contents(path, PICTURE), str(path))
            except OSError as error:
                raise InputError(
                    f"{path}: named in {self.settings.annotations}, cannot be read: {error.strerror}"
                ) from None


def _read(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """File name and first caption by image id."""
    names: dict[int, str] = {}
    captions: dict[int, str] = {}
    try:
        content = parsed(contents(path, TABLE))
        for image in content["images"]:
            identifier, name = _identifier(image["id"]), name_under(image, "file_name")
            if names.setdefault(identifier, name) != name:
                raise ValueError(f"two images with the id {identifier}: {shown(names[identifier])} and {shown(name)}")
        for annotation in content["annotations"]:
            identifier = _identifier(annotation["image_id"])
            captions.setdefault(identifier, _caption(identifier, annotation))
    except OSError as error:
        raise InputError(f"dataset.annotations: {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = error if isinstance(error, ValueError) else repr(error)
        raise InputError(f"dataset.annotations: {path} is not a COCO captions file: {told}") from None
    return names, captions


def _identifier(value: object) -> int:
    """An image's number. Raises ValueError for what is none, so that no two images become one."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    raise ValueError(f"expected the number of an image, got {shown(value)}")


def _caption(identifier: int, annotation: dict[str, Any]) -> str:
    try:
        return caption_under(annotation, "caption")
    except ValueError as error:
        raise ValueError(f"annotation of image {identifier}: {error}") from None


def load(settings: Settings, split: str) -> Pictures:
    """The split's pictures."""
    return Pictures(Coco(settings, split), settings.image_size)
