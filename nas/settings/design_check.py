"""What is wrong with an ablation's design, said before anything is trained.

Fields that do not exist, levels that their field refuses, factors that set the same thing, and cells that cannot be told
apart. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from nas import menu
from nas.documents.strict import expected
from nas.errors import InputError
from nas.settings import design
from nas.settings.design import Factor, Settings
from nas.space import fields

if TYPE_CHECKING:
    from nas.networks.backbones import Backbone
    from nas.settings.study import Study

Location = tuple[int | str, ...]
MOST_CELLS = 1_000


class Refused(ValueError):
    """What is wrong with a design, and where in the study file."""

    def __init__(self, location: Location, message: str):
        super().__init__(message)
        self.location, self.message = location, message


def check(study: Study) -> None:
    """Raises Refused for fields that do not exist, levels that their field refuses, and cells that cannot be told apart."""
    settings = study.ablation
    assert settings is not None
    try:
        base = design.base_architecture(study)
    except InputError as error:
        raise Refused(("architecture",), str(error).removeprefix("architecture: ")) from None
    if (size := design.size(settings)) > MOST_CELLS:
        raise Refused(("ablation", "factors"), f"{size:,} cells, expected at most {MOST_CELLS:,}")
    for name, factor in settings.factors.items():
        for index, level in enumerate(factor.names):
            given = factor.overrides(level)
            start = _start(base, given, place_of(name, factor, index, design.ARCHITECTURE))
            for path, value in given.items():
                _check_level(study, start, path, value, place_of(name, factor, index, path))
    _check_overlaps(settings, base)
    _check_cells(study, settings, base)


def _start(base: Backbone, given: Mapping[str, Any], location: Location) -> Backbone:
    """The network whose fields a level sets: the whole one that it names, or the study's."""
    whole = [("", given[design.ARCHITECTURE])] if design.ARCHITECTURE in given else []
    try:
        return design.network(base, whole)
    except InputError as error:
        raise Refused(location, str(error)) from None


def place_of(name: str, factor: Factor, index: int, path: str) -> Location:
    """Where in the file a level sets a path."""
    here: Location = ("ablation", "factors", name, "levels")
    return (*here, factor.names[index], path) if factor.field is None else (*here, index)


def _field_location(location: Location) -> Location:
    """Where the path itself stands, for a level at `location`."""
    return (*location[:3], "field") if isinstance(location[-1], int) else location


def _check_level(study: Study, base: Backbone, path: str, value: Any, location: Location) -> None:
    section = design.section(path)
    if section not in design.SECTIONS:
        raise Refused(
            _field_location(location), f"no section {section!r}{menu.nearest(section, list(design.SECTIONS))}"
        )
    if section == design.ARCHITECTURE:
        return _check_architecture(base, path, value, location)
    try:
        _validated(study, {path: value})
    except ValidationError as error:
        first = error.errors()[0]
        at = _field_location(location) if first["type"] == "extra_forbidden" else location
        raise Refused(at, f"{path}: {expected(_model(study, section), first)}") from None
    except ValueError as error:
        raise Refused(_field_location(location), f"{path}: {error}") from None
    except InputError as error:
        raise Refused(location, f"{path}: {error}") from None


def _check_architecture(base: Backbone, path: str, value: Any, location: Location) -> None:
    _, _, field = path.partition(".")
    try:
        fields.changed(base, [(field, value)] if field else [])
    except fields.NoField as error:
        raise Refused(_field_location(location), str(error)) from None
    except ValueError as error:
        raise Refused(location, f"{path}: {value!r} is refused: {error}") from None


def _validated(study: Study, overrides: Mapping[str, Any]) -> Study:
    """`changed`, with what the menu files say about their own settings; their errors name the field alone."""
    new = design.changed(study, overrides)
    touched = {design.section(path) for path in overrides}
    for location, folder, entry in new.menu_entries():
        if location[0] in touched:
            entry.settings(folder)
    return new


def _model(study: Study, section: str) -> type[BaseModel]:
    """The settings class whose keys a path's last step may be."""
    value = getattr(study, section)
    if section in ("objective", "autoencoder"):
        model: type[BaseModel] = menu.pick(f"{section}s", value.name).Settings
        return model
    return type(study)


def _check_overlaps(settings: Settings, base: Backbone) -> None:
    """No two factors set the same field, or one a part of what the other sets."""
    paths = {name: _set_by(factor, base) for name, factor in settings.factors.items()}
    for a, b in combinations(settings.factors, 2):
        for mine, other in product(sorted(paths[a]), sorted(paths[b])):
            if mine == other or mine.startswith(f"{other}.") or other.startswith(f"{mine}."):
                raise Refused(("ablation", "factors", b), f"sets {other}, which factor {a!r} sets too")


def _set_by(factor: Factor, base: Backbone) -> set[str]:
    """Every path that a factor sets, without wildcards."""
    found: set[str] = set()
    for path in (path for name in factor.names for path in factor.overrides(name)):
        section, _, field = path.partition(".")
        inside = fields.concrete(base, field) if section == design.ARCHITECTURE and "*" in field else [field]
        found |= {f"{section}.{field}".rstrip(".") for field in inside}
    return found


def _check_cells(study: Study, settings: Settings, base: Backbone) -> None:
    """Every combination on its own, and that no two are the same."""
    seen: dict[str, str] = {}
    for cell in design.cells(settings):
        location: Location = ("ablation", "factors")
        try:
            config = design.network(base, cell.architecture_fields).canonical()
            new = _validated(study, cell.settings)
        except ValidationError as error:
            raise Refused(location, f"cell {cell.name!r} is refused: {error.errors()[0]['msg']}") from None
        except (ValueError, InputError) as error:
            raise Refused(location, f"cell {cell.name!r} is refused: {error}") from None
        spelled = json.dumps([config.key, new.resolved()], sort_keys=True, default=str)
        if spelled in seen:
            raise Refused(location, f"cells {seen[spelled]!r} and {cell.name!r} are the same network and settings")
        seen[spelled] = cell.name
