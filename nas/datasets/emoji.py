"""The picture set that ships with the package: 1,906 emoji at 64x64 in three drawn styles (see NOTICE for their licences)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from nas import assets
from nas.datasets import Captioned, Pictures
from nas.disk.shards import samples
from nas.documents.section import Section

LICENCE = (
    "Noto Emoji: Apache License 2.0. Twemoji: CC-BY 4.0, so whoever shows its pictures names Twitter, Inc and other "
    "contributors. Fluent Emoji: MIT. Sources and changes are in the NOTICE file of nas."
)
SHARD = assets.FOLDER / "emoji.tar.gz"
Style = Literal["noto", "twemoji", "fluent"]
CaptionField = Literal["name", "keywords", "category", "style"]


class Settings(Section):
    """Which pictures, and how their captions are put together."""

    image_size: int = Field(64, ge=8, le=4096)
    """Pixels along one side."""
    styles: tuple[Style, ...] = ("noto", "twemoji", "fluent")
    """Drawn styles to include."""
    captions: tuple[CaptionField, ...] = ("name", "style")
    """Fields joined with ", " to a caption."""
    limit: int | None = Field(None, ge=1)
    """Only the first pictures of the split."""


class Emoji:
    """The split's captioned pictures in the order of the shard."""

    def __init__(self, settings: Settings, split: str):
        self.settings, self.split = settings, split

    def __iter__(self) -> Iterator[Captioned]:
        seen = 0
        for key, sample in samples(SHARD):
            record = json.loads(sample["json"])
            if record["split"] != self.split or record["style"] not in self.settings.styles:
                continue
            if seen == self.settings.limit:
                return
            seen += 1
            yield Captioned(key, caption(record, self.settings.captions), sample["webp"], f"{SHARD}: sample {key!r}")


def caption(record: dict[str, Any], fields: tuple[CaptionField, ...]) -> str:
    """The wanted fields of a picture's record, joined."""
    values = {**record, "name": record["caption"], "keywords": ", ".join(record["keywords"])}
    return ", ".join(values[field] for field in fields)


def load(settings: Settings, split: str) -> Pictures:
    """The split ("train" or "held_out")."""
    return Pictures(Emoji(settings, split), settings.image_size)
