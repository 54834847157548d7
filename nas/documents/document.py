"""YAML files that people write, and the errors about them: file, line, key, value. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas.documents import yaml_text
from nas.documents.strict import Location, expected, keys_at, validated
from nas.documents.yaml_text import NotRead
from nas.errors import InputError, bounded


class Placed(InputError):
    """An InputError that says in which file, and where the setting was given."""


class Document:
    """A YAML mapping that knows where each of its settings was given: on a line of the file, or by an option.

    `places` has for every dotted path what an error about it begins with; under "" for the whole.
    """

    def __init__(self, name: str, content: dict[str, Any], places: Mapping[str, str] | None = None):
        self.name, self.content = name, content
        self.places = dict(places or {"": f"{name}: "})

    @classmethod
    def read(cls, path: Path) -> Document:
        """The file at `path`. Raises InputError naming the line where it is no mapping, or none within bounds."""
        try:
            text = yaml_text.read(_contents(path))
        except NotRead as error:
            raise Placed(f"{path}:{error.line}: {bounded(error.problem)}") from None
        first = text.lines.get("", 1)
        if not isinstance(text.value, dict):
            raise Placed(f"{path}:{first}: expected a mapping of settings, got {type(text.value).__name__}")
        return cls(str(path), text.value, {key: f"{path}:{line}: " for key, line in {"": first, **text.lines}.items()})

    def override(self, text: str, option: str = "--set") -> None:
        """Apply one `a.b.c=value` (value in YAML) on top of the file."""
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise Placed(bounded(f"{option} {text}: expected key=value, for example search.trials=4"))
        self._open(key, f"{option} {text}")
        try:
            self.put(key, yaml_text.read(value).value, option)
        except NotRead as error:
            raise Placed(bounded(f"{option} {text}: {error.problem}")) from None

    def give(self, key: str, value: Any, option: str) -> None:
        """As `override`, with the value itself."""
        self._open(key, f"{option} {key}")
        self.put(key, value, option)

    def _open(self, key: str, told: str) -> None:
        """Make the sections that a dotted key is in where they are not there. Raises InputError where one is no section."""
        place = self.content
        for parent in key.split(".")[:-1]:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise Placed(bounded(f"{told}: {parent!r} is not a section of {self.name}"))

    def put(self, key: str, value: Any, option: str) -> None:
        """Give the setting at a dotted key, whose sections are there, another value, which an option of the command named."""
        *parents, last = key.split(".")
        place = self.content
        for parent in parents:
            place = place[parent]
        place[last] = value
        self.places = {known: at for known, at in self.places.items() if not known.startswith(f"{key}.")}
        self.places[key] = f"{option} "

    def validate(self, model: type[Any], content: Mapping[str, Any], location: Location = ()) -> Any:
        """`content` as a `model`; the first thing wrong is an InputError that says how many more there are."""
        try:
            return validated(model, content)
        except ValidationError as error:
            at, first, others = _first(error, content)
            message, more = expected(model, first), f" (and {others} more)" if others else ""
            key, _, rest = message.partition(": ")
            if rest and key.partition(".")[0] in keys_at(model, at):  # a rule of the section, about one of its keys
                at, message = (*at, key), rest
            raise self.error((*location, *at), message + more) from None

    def error(self, location: Location, message: str) -> InputError:
        """What is wrong with the setting at `location`."""
        path = ".".join(map(str, location))
        inside = f"{path}.{message}"  # where the message itself begins with a key of the section
        further = path and len(self._given(inside)) > len(path)
        return Placed(self.placed(inside if further else ": ".join(filter(None, [path, message]))))

    @contextmanager
    def placing(self, settings: Collection[str]) -> Iterator[None]:
        """Inside, an InputError that begins with one of these settings or with a key below it says where that was given."""
        try:
            yield
        except Placed:
            raise
        except InputError as error:
            name = str(error).partition(":")[0].partition(".")[0]
            raise (Placed(self.placed(str(error))) if name in settings else error) from None

    def placed(self, text: str) -> str:
        """A text that begins with a dotted path, behind the place of the longest part of that which was given."""
        return self.places[self._given(text)] + bounded(text)

    def _given(self, text: str) -> str:
        """The longest path that a text begins with and that was given; "" if none was."""
        return max((key for key in self.places if key == "" or text.startswith((f"{key}:", f"{key}."))), key=len)


def _contents(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise Placed(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(4 * yaml_text.MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise Placed(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in its name
        raise Placed(f"{path}: cannot be read: {error}") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Placed(f"{path}:{line}: cannot be read: not UTF-8") from None


def _first(error: ValidationError, content: Any) -> tuple[Location, Any, int]:
    """Where the first thing is wrong, what pydantic says of it, and how many other things are wrong.

    Of a value that is none of several kinds it says something for each; the one that follows it furthest is meant.
    """
    told = [(_written(each, content), each) for each in error.errors()]
    start = told[0][0]
    same = [(at, each) for at, each in told if at[: len(start)] == start]
    return *max(same, key=lambda pair: len(pair[0])), len(told) - len(same)


def _written(error: Any, content: Any) -> Location:
    """The part of pydantic's location that the author wrote: without the kinds of a union, with a key that is missing."""
    *steps, last = error["loc"] or (None,)
    kept: list[int | str] = []
    for step in [*steps, last]:
        item = isinstance(content, list) and isinstance(step, int) and step < len(content)
        if item or (isinstance(content, Mapping) and step in content):
            content = content[step]
            kept.append(step)
    return (*kept, str(last)) if error["type"] == "missing" else tuple(kept)
