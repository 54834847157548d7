"""Whether an export's scores can be had again: its proxy trained once more from the recorded seeds, and scored the same way.

An export records an interval for each score. Where the run trained architectures more than once, it is the prediction
interval of one more training, score +- t s sqrt(1 + 1/n), with s the pooled standard deviation between repeats and n the
trainings of this architecture (Student's t, 95 %). Where nothing was repeated there is no noise to go by: then it is the
score +- 1 %, an assumption, for a training that should give the same bits on the same machine and versions.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas import failures
from nas.analysis import fronts, results
from nas.deploy import drawer, image_decoder
from nas.deploy.contents import export_folder
from nas.documents.document import Document
from nas.errors import InputError
from nas.search import racing
from nas.settings.study import Study
from nas.trial import rung

CONFIDENCE = 0.95
WITHOUT_NOISE = 0.01  # of the score: assumption


@dataclass(frozen=True)
class Check:
    """One score, then and now."""

    column: str
    recorded: float
    low: float
    high: float
    found: float

    @property
    def agrees(self) -> bool:
        return self.low <= self.found <= self.high


def intervals(run: Path, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The interval of every score of a record, from the repeats of its run: low, high, and how it was made."""
    table = results.load(run)
    return {
        column: _interval(float(value), fronts.measurements(table, {column: "minimise"}), fronts.identity(record))
        for column, value in record["rungs"][-1]["metrics"].items()
    }


def _interval(value: float, measured: Mapping[str, Any], identity: str) -> dict[str, Any]:
    from scipy.stats import t

    spread = racing.noise(measured) if measured else racing.Noise((math.nan,), 0)
    if not spread.known:
        half = WITHOUT_NOISE * abs(value)
        return {"low": value - half, "high": value + half, "how": f"+- {WITHOUT_NOISE:.0%}, nothing was repeated"}
    n = max(1, len(measured.get(identity, ())))
    half = float(t.ppf((1 + CONFIDENCE) / 2, spread.degrees) * spread.sd[0] * math.sqrt(1 + 1 / n))
    return {
        "low": value - half,
        "high": value + half,
        "how": f"{CONFIDENCE:.0%} prediction interval, {spread.degrees} degrees of freedom",
    }


def verify(folder: Path, cache: Path) -> list[Check]:
    """Train the exported proxy again and compare its scores with those recorded.

    Raises InputError for another version, for a trial that began from another one's weights, and when this training diverges.
    """

    drawer.read(folder)
    origin = export_folder.origin(folder)
    if "trial" not in origin:
        raise InputError(f"{folder}: holds no trial of a study, whose scores could be compared; nas train wrote it")
    described = folder / "study.yaml"
    if not described.is_file():
        raise InputError(f"{described}: not there; export the run again")
    deploy, resolved = export_folder.trial(folder), Document.read(described)
    if deploy.get("parent") is not None:
        raise InputError(
            f"{folder}: trial {origin['trial']} began from the weights of trial {deploy['parent']} of its run, which no export "
            "holds; expected a trial that began as training.init says"
        )
    settings = image_decoder.found_in(folder, resolved.content)
    study: Study = resolved.validate(Study, {k: v for k, v in settings.items() if k != "provenance"})
    with tempfile.TemporaryDirectory() as scratch:
        job = rung.Job(
            trial=origin["trial"],
            architecture=deploy["architecture"],
            seed=deploy["seed"],
            rung=0,
            images_seen=deploy["images_seen"],
            folder=Path(scratch),
            like=deploy["like"],
        )
        try:
            found = rung.run_alone(study, cache, job)["rung"]["metrics"]
        except failures.Diverged as error:
            raise InputError(f"{folder}: trained again, it diverges: {error}") from None
    return [
        Check(column, deploy["scores"][column], interval["low"], interval["high"], found[column])
        for column, interval in deploy["intervals"].items()
    ]


def grid(checks: Sequence[Check]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people."""
    heads = ["score", "recorded", "interval", "again", "agrees"]
    cells = [
        [c.column, f"{c.recorded:.6g}", f"[{c.low:.6g}, {c.high:.6g}]", f"{c.found:.6g}", "yes" if c.agrees else "NO"]
        for c in checks
    ]
    return heads, cells
