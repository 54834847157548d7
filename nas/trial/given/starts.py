"""Networks that a search tries before its own: presets, architectures in YAML files, and what earlier runs trained.

They are written down as a run begins, in `starts.json`: a study's latest run is soon another one, this very run for example, and
files go away.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nas import menu
from nas.cost.budget import over_budget
from nas.errors import InputError, about, shown
from nas.networks import backbones
from nas.networks.backbones import Backbone
from nas.runs import description, records
from nas.runs.directory import RunDirectory
from nas.runs.records import Record
from nas.settings import plan_axes
from nas.settings.study import Study
from nas.space import published, screen
from nas.space.search_space import Choices, SearchSpace

NAME = "starts.json"
_STARTS = TypeAdapter(list[dict[str, Any]])


def kept(run_dir: Path) -> list[Choices] | None:
    """The members that a run was told to try first as it began; None where that is not written down, or damaged."""
    try:
        return _STARTS.validate_python(json.loads((run_dir / NAME).read_text(encoding="utf-8")), strict=True)
    except (OSError, ValueError):
        return None


def keep(directory: RunDirectory, found: Sequence[Choices]) -> None:
    """Write down what a run tries first, where it is not yet and there is anything."""
    if found and kept(directory.path) is None:
        directory.write_json(NAME, found)


def none_named(study: Study) -> Study:
    """The study without its starts, as far as they are known already."""
    assert study.search is not None
    return study.model_copy(update={"search": study.search.model_copy(update={"start": ()})})


def members(study: Study, space: SearchSpace) -> list[Choices]:
    """The members that `search.start` names, each once, in its order.

    Raises InputError naming the entry for what is not there, is no member of the space, or is over budget, and when there are
    more of them than trials.
    """
    assert study.search is not None
    found: dict[str, Choices] = {}
    for place, given in enumerate(study.search.start):
        with about(f"search.start.{place}"):
            for said, network in _networks(given):
                choices = screen.position(space, network)
                if choices is None:
                    raise InputError(f"{said} is not a member of space {space.name!r}")
                cost = plan_axes.costs(study, network, plan_axes.cheapest(study, network))
                if over := over_budget(cost, study.budget):
                    raise InputError(f"{said} is over budget: {over}")
                found.setdefault(network.canonical().key, choices)
    if len(found) > study.search.trials:
        raise InputError(f"search.start: {len(found)} networks, but search.trials is {study.search.trials}")
    return list(found.values())


def _networks(given: str) -> Iterator[tuple[str, Backbone]]:
    """The networks of one entry, each with what it is called in messages."""
    path = Path(given)
    if path.is_dir():
        complete = [record for record in _records(path) if record["state"] == "complete"]
        if not complete:
            raise InputError(f"{given}: no trial that was trained to the end")
        for record in complete:
            yield f"trial {record['trial']} of {given}", backbones.from_dict(record["architecture"])
    elif given in backbones.presets() or given.endswith((".yaml", ".yml")):
        yield shown(given), published.architecture(given)
    else:
        nearest = menu.nearest(given, list(backbones.presets()))
        raise InputError(f"unknown network {shown(given)}{nearest} (or a YAML file, a run, or a folder of trials)")


def _records(folder: Path) -> Iterable[Record]:
    """The record of a trial's folder, of the trials in a folder such as a run's `front`, or of a run or a study's latest run."""
    if (folder / records.NAME).is_file():
        return [records.read(folder)]
    inside = sorted(path.parent for path in folder.glob(f"*/{records.NAME}"))
    if inside:
        return [records.read(trial) for trial in inside]
    return records.read_all(description.find(folder)).values()
