"""YAML files that people write: strict reading, and errors that name file, line, key and value. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from nas import menu
from nas.errors import InputError, brief

Location = tuple[int | str, ...]
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: a date such as 2025-13-45


class Document:
    """A YAML mapping that remembers on which line each key stands; `lines` spells locations in strings only."""

    def __init__(self, name: str, content: dict[str, Any], lines: dict[tuple[str, ...], int]):
        self.name, self.content, self.lines = name, content, lines

    @classmethod
    def read(cls, path: Path) -> Document:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        lines: dict[tuple[str, ...], int] = {}
        try:
            content = yaml.safe_load(text)
            for location, line in _lines(yaml.compose(text, Loader=yaml.SafeLoader)):
                if location in lines:
                    raise _given_twice(path, location, line, lines[location])
                lines[location] = line
        except NOT_YAML as error:
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark else ""
            raise InputError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', brief(error))}") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected a mapping of settings, got {type(content).__name__}")
        return cls(str(path), content, lines)

    def override(self, text: str) -> None:
        """Apply one `a.b.c=value` (value in YAML) on top of the file."""
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise InputError(f"--set {text}: expected key=value, for example search.trials=4")
        *parents, last = key.split(".")
        place = self.content
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {text}: {parent!r} is not a section of {self.name}")
        try:
            place[last] = yaml.safe_load(value)
        except NOT_YAML:
            raise InputError(f"--set {text}: the value is not valid YAML") from None

    def validate(self, model: type[Any], content: Mapping[str, Any], location: Location = ()) -> Any:
        """`content` as a `model`; the first thing wrong is an InputError that says how many more there are."""
        try:
            return model.model_validate(content)
        except ValidationError as error:
            first, *others = error.errors()
            more = f" (and {len(others)} more)" if others else ""
            raise self.error(location + first["loc"], expected(model, first) + more) from None

    def error(self, location: Location, message: str) -> InputError:
        steps = tuple(map(str, location))
        known = next((steps[:n] for n in range(len(steps), 0, -1) if steps[:n] in self.lines), None)
        where = f"{self.name}:{self.lines[known]}" if known else self.name
        return InputError(": ".join([where, *filter(None, [".".join(steps)]), message]))


def _given_twice(path: Path, location: tuple[str, ...], line: int, first: int) -> InputError:
    """YAML says that keys are unique, but PyYAML takes the last without a word."""
    return InputError(f"{path}:{line}: {'.'.join(location)}: given twice, first on line {first}")


def _lines(node: Any, location: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], int]]:
    """(location, line number) of every key and list item below a composed YAML node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*location, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*location, str(index))
            yield here, value.start_mark.line + 1
            yield from _lines(value, here)


def expected(model: type[BaseModel], error: Any) -> str:
    """What pydantic found wrong, in words for the author of the file."""
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key{menu.nearest(str(error['loc'][-1]), _keys_at(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return "required, but not given"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return message
    return f"expected {message}, got {error['input']!r}"


def first_wrong(model: type[BaseModel], error: ValidationError) -> str:
    """The first key that is wrong and what was expected there, as the end of one line."""
    first = error.errors()[0]
    said = str(first["msg"]) if first["type"] == "json_invalid" else expected(model, first)
    key = ".".join(
        step for step in map(str, first["loc"]) if step.isidentifier() or step.isdigit()
    )  # or a union's branch
    return ": ".join(filter(None, [key, brief(ValueError(said))]))


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys a section at `location` may have."""
    for step in location:
        field = model.model_fields.get(str(step))
        kinds = get_args(field.annotation) or (field.annotation,) if field else ()  # a section, or none
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(inner) != 1:
            return []
        model = inner[0]
    return list(model.model_fields)
