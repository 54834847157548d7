"""What `search.from` names: finished trials of earlier runs, which a search learns from as if they were its own.

A score says something of this study's trials only where it was made as theirs are. So an earlier run must have the same settings
in all that a score depends on, and each objective the same conditions (conditions.json, which is known once the data are there).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas import menu
from nas.documents.document import Document
from nas.errors import InputError, about, shown
from nas.runs import description, earlier, looks, records
from nas.runs.directory import RunDirectory
from nas.runs.earlier import Earlier, Finished
from nas.runs.looks import Looks
from nas.runs.records import Damaged, Record
from nas.settings import plan_axes, study_file
from nas.settings.study import Study
from nas.space.search_space import SearchSpace

FREE = (  # what a score means the same without; a seed is noise in it
    *("name", "question", "seed", "tracking", "budget", "stopping", "racing", "search", "ablation"),
    *("workers", "worker_memory", "worker_threads", "worker_cpus", "worker_gpus"),
    "metrics",  # those of the objectives are compared
)


def kept(study: Study, directory: RunDirectory) -> list[Earlier]:
    """What this run was told of earlier ones; written down where it is not yet. Raises InputError as `found` does."""
    if study.search is None or not study.search.from_:
        return []
    try:
        known = earlier.read(directory.path)
    except Damaged:
        known = []
    if not known:
        known = found(study)
        directory.write_json(earlier.NAME, known)
    return known


def found(study: Study) -> list[Earlier]:
    """The earlier runs that the study names.

    Raises InputError naming the entry for what is no run, has no finished trial, or differs from the study in a setting that
    scores depend on.
    """
    runs: list[Earlier] = []
    named = study.search.from_ if study.search is not None else ()
    for place, given in enumerate(named):
        with about(f"search.from.{place}"):
            if given in named[:place]:
                raise InputError(f"{given} is named twice")
            runs.append(_earlier(study, given))
    return runs


def check_measured(study: Study, conditions: Mapping[str, Mapping[str, Any]], known: Sequence[Earlier]) -> None:
    """Raises InputError where an objective of an earlier run was not measured under these conditions."""
    ours = json.loads(json.dumps(conditions))
    for place, run in enumerate(known):
        for column in study.objectives:
            if told := _difference(run["conditions"].get(column, {}), ours.get(column, {})):
                raise InputError(f"search.from.{place}: {run['run']}: conditions.json: {column}: {told}")


def _earlier(study: Study, given: str) -> Earlier:
    path = _run_at(given)
    _check_settings(study, path)
    assert study.space is not None
    space = plan_axes.extended(study, SearchSpace.load(study.space))
    done = [record for record in records.read_all(path).values() if record["state"] == "complete"]
    if not done:
        raise InputError(f"{given}: no trial that was trained to the end")
    trials = [_finished(study, space, given, record) for record in done]
    looked_at = {key: look for key, look in _looks(study, path).items() if _is_member(space, look["choices"], key)}
    return Earlier(run=given, conditions=description.conditions(path), trials=trials, looks=looked_at)


def _is_member(space: SearchSpace, choices: Mapping[str, Any], key: str) -> bool:
    """Whether the choices are still this network in the space."""
    try:
        return space.architecture(choices).key == key
    except InputError:
        return False


def _run_at(given: str) -> Path:
    """A run's own folder: that of a study has another latest run after every run, this one among them."""
    path = Path(given)
    if (path / description.SETTINGS).is_file():
        return path
    if path.is_dir() and (latest := description.latest(path)) is not None:
        raise InputError(f"{given} is the folder of a study; expected one of its runs, for example {latest}")
    raise InputError(f"{given}: not a run directory (no {description.SETTINGS} in it)")


def _check_settings(study: Study, path: Path) -> None:
    """Raises InputError for a run that is no search in this space under these conditions."""
    settings, file = description.resolved(path), path / description.SETTINGS
    settings.pop("provenance", None)
    with study_file.opened(Document(str(file), settings)) as (other, _):
        if other.search is None or other.search.sampler == "evolution":
            kind = "an ablation" if other.search is None else "an evolution, whose trials go on from one another"
            raise InputError(f"{file}: the run is {kind}; expected a search")
        if told := _difference(_decisive(other, study), _decisive(study, study)):
            raise InputError(f"{file}: {told}; expected a run of the same space under the same conditions")


def _decisive(study: Study, asking: Study) -> dict[str, Any]:
    """The settings by dotted key that the scores depend on which `asking` asks for."""
    assert study.search is not None
    flat = _flat({name: value for name, value in study.resolved().items() if name not in FREE})
    flat |= _flat(study.search.model_dump(mode="json")["plan"], "search.plan")
    for entry in study.metrics:
        settings = entry.settings("metrics")
        for column in menu.pick("metrics", entry.name).columns(settings):
            if column in asking.objectives:
                flat |= _flat({"name": entry.name, **settings.model_dump(mode="json")}, f"metrics.{column}")
    return {"space": flat.pop("space"), **flat}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; a list is one value."""
    if not isinstance(value, Mapping):
        return {path: value}
    inside = [_flat(inner, f"{path}.{key}".lstrip(".")) for key, inner in value.items()]
    return {key: each for part in inside for key, each in part.items()}


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first key whose values differ, with both, or nothing."""
    for key in {**ours, **theirs}:
        if theirs.get(key) != ours.get(key):
            there, here = (shown(each[key]) if key in each else "not given" for each in (theirs, ours))
            return f"{key} is {there} there and {here} here"
    return ""


def _finished(study: Study, space: SearchSpace, given: str, record: Record) -> Finished:
    """What the search learns of a trial. Raises InputError where it is not of this space, and where an objective is missing."""
    said, metrics = f"trial {record['trial']} of {given}", record["rungs"][-1]["metrics"]
    try:
        key = plan_axes.key(study, space.architecture(record["choices"]), record["choices"])
    except InputError as error:
        raise InputError(f"{said} is of another space: {error}") from None
    if key != record["key"]:
        raise InputError(f"{said} is of another space: in {space.name!r} its choices are another network")
    if missing := study.objectives.keys() - {*record["cost"], *metrics}:
        raise InputError(f"{said} has no {min(missing)}, which is an objective")
    return Finished(
        trial=record["trial"], key=key, choices=record["choices"], cost=record["cost"], metrics=dict(metrics)
    )


def _looks(study: Study, path: Path) -> Looks:
    """What an earlier pool looked at, where this one looks in the same way: at as many pictures."""
    assert study.search is not None
    asked = description.resolved(path)["search"]
    if (
        study.search.sampler != "pool"
        or asked["sampler"] != "pool"
        or asked["pool"]["images"] != study.search.pool.images
    ):
        return {}
    try:
        return {key: look for key, look in looks.read(path).items() if not look["failed"]}
    except Damaged:
        return {}  # they are made again
