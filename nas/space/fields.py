"""Fields of an architecture, named by paths: `levels.2.channels`, `levels.*.ffn_ratio`, `levels.1.down.*`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from nas import menu
from nas.errors import shown
from nas.networks.backbones import FAMILY

if TYPE_CHECKING:
    from nas.networks.backbones import Backbone


def with_fields(config: Backbone, settings: Sequence[tuple[str, Any]]) -> Backbone:
    """The architecture with fields set by path. Raises KeyError(path) where there is no such field."""
    changes: dict[str, Any] = {}
    old_levels, levels = _levels(config), dict[int, dict[str, Any]]()
    for path, value in settings:
        head, *rest = path.split(".")
        if head != "levels" or not rest:
            changes[head] = _entry(changes.get(head, getattr(config, head, None)), rest, value, path)
            continue
        if len(rest) < 2:
            raise KeyError(path)
        for index in _indices(rest[0], len(old_levels), path):
            level = levels.setdefault(index, {})
            old = level.get(rest[1], getattr(old_levels[index], rest[1], None))
            level[rest[1]] = _entry(old, rest[2:], value, path)
    if levels:
        changes["levels"] = tuple(replace(level, **levels.get(i, {})) for i, level in enumerate(old_levels))
    made: Backbone = replace(cast(Any, config), **changes)
    return made


def _plain(config: Backbone, settings: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The architecture as YAML writes it, with fields set by path. Raises KeyError(path) where there is no such field."""
    plain = _whole(config)
    for path, value in settings:
        _put(plain, path.split("."), value, path)
    return plain


def _whole(config: Backbone) -> dict[str, Any]:
    """The architecture as YAML writes it, with the fields that it leaves out at their default."""
    defaults = {field.name: field.default for field in dataclass_fields(cast(Any, config))}
    plain = config.to_dict()
    return plain | {name: value for name, value in defaults.items() if name not in plain}


def _put(place: Any, steps: Sequence[str], value: Any, path: str) -> None:
    step, *rest = steps
    if isinstance(place, list):
        keys: Sequence[Any] = _indices(step, len(place), path)
    elif isinstance(place, dict) and step in place:
        keys = [step]
    else:
        raise KeyError(path)
    for key in keys:
        if rest:
            _put(place[key], rest, value, path)
        elif step == "levels" or isinstance(place[key], dict):  # levels change by their fields
            raise KeyError(path)
        else:
            place[key] = value


class NoField(ValueError):
    """A path that names no field of an architecture."""


def changed(base: Backbone, settings: Sequence[tuple[str, Any]]) -> Backbone:
    """`with_fields`, its types checked. NoField names the nearest field there is; ValueError says why a value is refused."""
    try:
        type(base).from_dict(_plain(base, settings))
        return with_fields(base, settings)
    except KeyError as error:
        raise NoField(f"no field {shown(error.args[0])}{_nearest_path(base, error.args[0])}") from None


def _entry(old: Any, rest: Sequence[str], value: Any, path: str) -> Any:
    """The new value of a field: the given one, or the old tuple with the entry (or all, for *) replaced."""
    if not rest:
        return tuple(value) if isinstance(value, list) else value
    if len(rest) > 1 or not isinstance(old, tuple):
        raise KeyError(path)
    changed = list(old)
    for index in _indices(rest[0], len(old), path):
        changed[index] = value
    return tuple(changed)


def _indices(step: str, length: int, path: str) -> Sequence[int]:
    if step == "*":
        return range(length)
    if step.isdigit() and int(step) < length:
        return [int(step)]
    raise KeyError(path)


def concrete(config: Backbone, path: str) -> list[str]:
    """The paths that a path with `*` stands for."""
    found = [""]
    for step in path.split("."):
        found = [f"{p}.{s}".lstrip(".") for p in found for s in (_steps(config, p) if step == "*" else [step])]
    return found


def _steps(config: Backbone, path: str) -> range:
    """The indices below a path: of the levels, or of the entries of a level's tuple."""
    if path == "levels":
        return range(len(_levels(config)))
    _, index, name = path.split(".")
    return range(len(getattr(_levels(config)[int(index)], name)))


def _levels(config: Backbone) -> tuple[Any, ...]:
    """The resolutions of a network that is described by them."""
    return getattr(config, "levels", ())


def paths(config: Backbone) -> list[str]:
    """The paths an axis may name, `*` for each kind of index."""
    plain = _whole(config)
    top = [name for name in plain if name not in ("levels", FAMILY)]
    found = plain.get("levels", [])
    levels = [f"levels.{i}.{name}" for i, level in enumerate(found) for name in level]
    lists = [(i, name) for i, level in enumerate(found) for name, v in level.items() if isinstance(v, list)]
    entries = [f"levels.{i}.{name}.*" for i, name in lists]
    return top + levels + [f"levels.*.{name}" for level in found[:1] for name in level] + entries


def _nearest_path(config: Backbone, path: str) -> str:
    close = difflib.get_close_matches(path[: menu.LONGEST], paths(config), n=1, cutoff=0.3)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (an axis may name fields such as {', '.join(_examples(paths(config)))})"


def _examples(found: Sequence[str]) -> list[str]:
    """Some of these paths: one of each kind, or three where all are plain names."""
    kinds: dict[str, str] = {}
    for path in found:
        kinds.setdefault(re.sub(r"[a-z_]+", "name", re.sub(r"\d+", "0", path)), path)
    return list(kinds.values()) if len(kinds) > 1 else list(found[:3])
