"""Networks that a search tries before its own: presets, architectures in YAML files, and what earlier runs trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from nas import menu
from nas.cost.budget import over_budget
from nas.errors import InputError, about, shown
from nas.networks import backbones
from nas.networks.backbones import Backbone
from nas.runs import description, records
from nas.runs.records import Record
from nas.settings import plan_axes
from nas.settings.study import Study
from nas.space import published, screen
from nas.space.search_space import Choices, SearchSpace


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
