"""How a network is drawn as part of a search: `search.plan` lists values of fields of `sampling`, which become axes of the space.

A trial is then a network with its plan. What it costs is `drawing_macs`: the multiply-adds of the denoiser for one picture, all
steps and guidance branches, at deploy scale, of the units that the plan's cache leaves to be computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from pydantic import ValidationError

from nas.diffusion.plan import AUTOREGRESSIVE, Plan
from nas.documents.strict import first_wrong
from nas.errors import InputError
from nas.menu import nearest
from nas.networks.backbones import Backbone
from nas.settings.study import Study
from nas.space.search_space import Axis, Choices, SearchSpace

PREFIX, SECTION = "plan.", "sampling"
COLUMN = "drawing_macs"


def axes(study: Study) -> tuple[Axis, ...]:
    """The axes that `search.plan` adds."""
    asked = study.search.plan if study.search is not None else {}
    return tuple(
        Axis(f"{PREFIX}{field}", tuple(map(spelled, values)), ((),) * len(values)) for field, values in asked.items()
    )


def extended(study: Study, space: SearchSpace) -> SearchSpace:
    """The space with these axes."""
    return replace(space, axes=(*space.axes, *axes(study))) if axes(study) else space


def ways(study: Study) -> list[Choices]:
    """Every combination of the values, as choices; one without any where no plan is searched."""
    return [
        dict(zip((axis.name for axis in axes(study)), chosen, strict=True))
        for chosen in product(*(axis.choices for axis in axes(study)))
    ]


def cheapest(study: Study, config: Backbone) -> Choices:
    """The way of drawing that costs a network least."""
    return min(ways(study), key=lambda way: costs(study, config, way).get(COLUMN, 0))


def spelled(value: Any) -> Any:
    """A value as a choice that can be read: a mapping in words, `fora every 2`."""
    if isinstance(value, Mapping):
        return " ".join(str(part) for key, part in _flat(value))
    return "none" if value is None else value if isinstance(value, int | float | str) else json.dumps(value)


def _flat(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        yield key, part if key == "name" else f"{key} {part}"


def settings(study: Study, choices: Mapping[str, Any]) -> dict[str, Any]:
    """What the choices of a trial set in its study, by path."""
    asked = study.search.plan if study.search is not None else {}
    chosen = {
        field: (values, choices[f"{PREFIX}{field}"]) for field, values in asked.items() if f"{PREFIX}{field}" in choices
    }
    return {f"{SECTION}.{field}": _value(values, choice) for field, (values, choice) in chosen.items()}


def _value(values: tuple[Any, ...], choice: Any) -> Any:
    return next(value for value in values if spelled(value) == choice)


def plan(study: Study, choices: Mapping[str, Any]) -> Plan:
    """How a trial is drawn."""
    changed = {path.removeprefix(f"{SECTION}."): value for path, value in settings(study, choices).items()}
    return Plan(**{**study.sampling.model_dump(), **changed})


def key(study: Study, config: Backbone, choices: Mapping[str, Any]) -> str:
    """What equal trials share: the architecture's key, with the plan's where plans are searched."""
    if not axes(study):
        return config.key
    drawn = json.dumps(plan(study, choices).model_dump(mode="json"), sort_keys=True)
    return f"{config.key}-{hashlib.sha256(drawn.encode()).hexdigest()[:6]}"


def network_key(key: str) -> str:
    """The architecture's part of a trial's key."""
    return key.partition("-")[0]


def costs(study: Study, config: Backbone, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Costs at deploy scale, that of a drawing among them where plans are searched.

    Raises InputError for a cache that the network has no units for, and for a solver that it cannot be drawn by.
    """
    found = study.deploy.costs(config)
    if axes(study):
        units = config.units(study.deploy.latent_size, study.deploy.text_tokens)
        drawn = plan(study, choices)
        try:
            found[COLUMN] = drawn.macs(units)
        except InputError as error:
            if drawn.cache is None:
                raise InputError(f"{'search.plan' if f'{PREFIX}solver' in choices else SECTION}.{error}") from None
            cache = "none" if drawn.cache is None else spelled(drawn.cache.model_dump())
            raise InputError(
                f"{'search.plan' if f'{PREFIX}cache' in choices else SECTION}.cache: {cache}: {error}"
            ) from None
    return found


def check(study: Study) -> None:
    """Raises InputError for fields that a plan does not have, and for values that make none, alone or together."""
    asked = study.search.plan if study.search is not None else {}
    for field, values in asked.items():
        if field not in Plan.model_fields:
            raise InputError(f"search.plan.{field}: unknown field of sampling{nearest(field, list(Plan.model_fields))}")
        if len(set(map(spelled, values))) < len(values):
            raise InputError(f"search.plan.{field}: a value is listed twice")
    if asked and study.search is not None and study.search.sampler == "pool":
        raise InputError(
            "search.plan: sampler pool looks at networks, not at how they are drawn; expected another sampler"
        )
    for way in ways(study):
        try:
            plan(study, way)
        except ValidationError as error:
            said = ", ".join(f"{name.removeprefix(PREFIX)} {choice}" for name, choice in way.items())
            raise InputError(f"search.plan: {said}: {first_wrong(Plan, error)}") from None


def without(record: Mapping[str, Any]) -> dict[str, Any]:
    """Key, choices and costs of a trial's record as they are without its plan."""
    return {
        "key": network_key(record["key"]),
        "choices": {name: choice for name, choice in record["choices"].items() if not name.startswith(PREFIX)},
        "cost": {name: value for name, value in record["cost"].items() if name != COLUMN},
    }


def check_networks(study: Study, drawn: Plan, networks: Iterable[Backbone], place: str = SECTION) -> None:
    """Raises InputError for a cache that is not of the units of one of the networks, and for a solver that one cannot be drawn
    by."""
    if drawn.cache is None and drawn.solver != AUTOREGRESSIVE:
        return
    for network in networks:
        try:
            drawn.macs(network.units(study.deploy.latent_size, study.deploy.text_tokens))
        except InputError as error:
            raise InputError(f"{place}.{error}") from None
