"""HPS v2: how people rank pictures of a caption (Wu et al. 2023, arXiv 2306.09341), averaged.

A cosine: differences count, not values. Needs the extra `preference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.documents.section import Section
from nas.metrics import Reference
from nas.metrics.pickscore import Preference
from nas.networks import preference

CAPTIONED = True


class Settings(Section):
    """Whose weights."""

    weights: Path | None = None
    """HPS_v2.1_compressed.pt or HPS_v2_compressed.pt of huggingface.co/xswu/HPSv2, or a folder of open_clip's that sees 224 px.
    Nothing is downloaded."""


def columns(settings: Settings) -> tuple[str, ...]:
    return ("hps",)


def check(settings: Settings, captions: Sequence[str]) -> None:
    """Raises InputError, beginning with the setting, for a file that is not there."""
    preference.check_hps(settings.weights)


def build(settings: Settings, reference: Reference) -> Preference:
    """The metric; it needs no real pictures."""
    check(settings, ())
    assert settings.weights is not None
    return Preference("hps", "cosine", preference.hps(settings.weights))
