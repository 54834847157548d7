"""A long training from scratch, which is scored after a brief one's length and at its end, and can go on later.

Its folder lies in the cache and is kept: it holds the checkpoint and what was scored, so that an interrupted training loses
nothing and a finished one can be continued to a greater length.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from nas.analysis.statistics import agreement
from nas.disk import files
from nas.settings.study import Study
from nas.trial.rung import Job, run_rung

BRIEF = "brief.json"  # the record after a brief training's length


def folder(cache: Path, study: Study, key: str, seed: int) -> Path:
    """Where an architecture's training with a seed lies, under a study whose `training` is the long one, of whatever length."""
    settings = agreement.proxy_settings(study.resolved())
    settings["training"] = {name: value for name, value in settings["training"].items() if name != "images_seen"}
    text = json.dumps(settings, sort_keys=True, default=str)
    return cache / "long" / hashlib.sha256(text.encode()).hexdigest()[:16] / f"{key}-{seed}"


def run(job: Job, brief: int, images: int) -> dict[str, dict[str, Any]]:
    """In a worker: what `run_rung` returns of `scratch`, so many images as a brief training has, and of `long`, all of them.

    What lies in the job's folder is continued.
    """
    told = job.folder / BRIEF
    if not told.exists():
        files.write_json(told, run_rung(dataclasses.replace(job, images_seen=brief)))
    return {
        "scratch": files.read_object(told),
        "long": run_rung(dataclasses.replace(job, rung=1, images_seen=images)),
    }
