"""The `tracking` section of a study file."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from nas.documents.section import Section

LONGEST = 128  # letters of a name on W&B


def _name(value: str) -> str:
    """A name as W&B takes it."""
    if not 0 < len(value.strip()) <= LONGEST or re.search(r"[/\\#?%:'\"\x00-\x1f]", value):
        raise ValueError(
            f"expected at most {LONGEST} letters, none of them a quote or one of / \\ # ? % :, got {value!r}"
        )
    return value


Name = Annotated[str, AfterValidator(_name)]


class Tracking(Section):
    """The `tracking` section of a study file."""

    mode: Literal["auto", "offline", "online", "off"] = "auto"
    """auto: online when logged in to W&B, else offline. A connection that fails turns the rest of the run offline."""
    project: Name = "nas"
    """The W&B project that the runs go to."""
    entity: Name | None = None
    """The W&B user or team; None is the account's default."""
