"""YAML as people write it, read once, strictly and within bounds: plain values, and the line of every key. Imports no torch.

Words mean what YAML 1.2's core says: only true and false are booleans, so yes, no, on and off are words, as dates are and
`010` and `1:30`. A key is text and stands once in its mapping. Numbers may have a suffix (`nas.documents.quantities`).
Tags are refused. Aliases and `<<` count as what they stand for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.reader import Reader

from nas.documents.quantities import NUMBER, number

MOST_CHARACTERS = 2**20
MOST_VALUES = 10_000  # of keys and in lists, aliases at full length
LONG = 1_000  # characters, for each of which a text counts as one more value
MOST_IN_KEY = 200
DEEPEST = 40  # sections and lists within one another
WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
WORDS |= {word: True for word in ("true", "True", "TRUE")} | {word: False for word in ("false", "False", "FALSE")}
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # where PyYAML was built without libyaml


class NotRead(ValueError):
    """What keeps a text from being read, and on which of its lines."""

    def __init__(self, problem: str, line: int = 1):
        super().__init__(problem)
        self.problem, self.line = problem, line


@dataclass(frozen=True)
class Text:
    """What a text says."""

    value: Any
    lines: dict[str, int]
    """The line of every key and list item by its dotted path, of the whole under ""."""


def read(text: str) -> Text:
    """What the text says, `Text.value` None if nothing. Raises NotRead."""
    if len(text) > MOST_CHARACTERS:
        raise NotRead(f"more than {MOST_CHARACTERS:,} characters")
    if strange := Reader.NON_PRINTABLE.search(text):
        raise NotRead(f"not valid YAML: the character {strange.group()!r}", text.count("\n", 0, strange.start()) + 1)
    builder = _Builder(text)
    try:
        return Text(builder.document(), builder.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotRead(f"not valid YAML: {error.problem}", mark.line + 1 if mark else 1) from None


def written(value: Any) -> str:
    """Plain values as a text that `read` reads as these values, and so does every other reader of YAML."""
    text: str = yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True)
    return text


class _Writer(yaml.SafeDumper):
    """Quotes a word that is a number to `read` (12e4, 400M), also where it is none to others."""


_Writer.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


class _Builder:
    """From the parser's events to values, so that a bound is noticed before what breaks it is built."""

    def __init__(self, text: str):
        self.lines: dict[str, int] = {}
        self._events: Iterator[Any] = yaml.parse(text, Loader=LOADER)
        self._values = 0
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # name -> value and its size; None while it is being read

    def document(self) -> Any:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), StreamEndEvent):
            return None
        first = next(self._events)
        self.lines[""] = _line(first)
        value = self._value(first, "", 0)
        assert isinstance(next(self._events), DocumentEndEvent)
        if not isinstance(after := next(self._events), StreamEndEvent):
            raise NotRead("not valid YAML: a second document begins, expected one", _line(after))
        return value

    def _value(self, event: Any, path: str, depth: int) -> Any:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        _refuse_tag(event)
        before = self._values
        self._count(1 + len(getattr(event, "value", "")) // LONG, event)
        if depth > DEEPEST:
            raise NotRead(f"nested more than {DEEPEST} deep", _line(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        value = self._made(event, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._values - before
        return value

    def _made(self, event: NodeEvent, path: str, depth: int) -> Any:
        if isinstance(event, MappingStartEvent):
            return self._mapping(path, depth)
        if isinstance(event, SequenceStartEvent):
            return list(self._items(path, depth))
        assert isinstance(event, ScalarEvent)
        return scalar(event.value) if event.implicit[0] else event.value

    def _items(self, path: str, depth: int) -> Iterator[Any]:
        index = 0
        while not isinstance(event := next(self._events), SequenceEndEvent):
            here = _below(path, str(index))
            self.lines[here] = _line(event)
            yield self._value(event, here, depth + 1)
            index += 1

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise NotRead("a list, a mapping or an alias as a key, expected a word", _line(event))
            _refuse_tag(event)
            if len(event.value) > MOST_IN_KEY:
                raise NotRead(f"a key of {len(event.value):,} characters, expected at most {MOST_IN_KEY}", _line(event))
            here = _below(path, event.value)
            if event.value in own:
                raise NotRead(f"{here}: given twice, first on line {self.lines[here]}", _line(event))
            if event.value == "<<" and event.implicit[0]:
                merged |= self._merged(event, path, depth)
                continue
            self.lines[here] = _line(event)
            own[event.value] = self._value(next(self._events), here, depth + 1)
        return {**merged, **own}

    def _merged(self, key: ScalarEvent, path: str, depth: int) -> dict[str, Any]:
        """What `<<: *anchor` or `<<: [*first, *second]` adds; of a key in both the first has the say."""
        value = self._value(next(self._events), _below(path, "<<"), depth + 1)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise NotRead(f"{_below(path, '<<')}: expected a mapping or a list of mappings to merge", _line(key))
        merged = {name: inner for part in reversed(parts) for name, inner in part.items()}
        for name in merged:
            self.lines.setdefault(_below(path, name), _line(key))
        return merged

    def _alias(self, event: AliasEvent) -> Any:
        """A copy of what the alias stands for."""
        if event.anchor not in self._anchors:
            raise NotRead(f"not valid YAML: the alias *{event.anchor} stands before its anchor", _line(event))
        found = self._anchors[event.anchor]
        if found is None:
            raise NotRead(f"the alias *{event.anchor} stands inside what it stands for", _line(event))
        value, size = found
        self._count(size, event)
        return copy.deepcopy(value)

    def _count(self, size: int, event: Any) -> None:
        self._values += size
        if self._values > MOST_VALUES:
            raise NotRead(f"more than {MOST_VALUES:,} values, aliases at full length", _line(event))


def scalar(text: str) -> Any:
    """A word without quotes: null, a boolean, a number or itself."""
    if text in WORDS:
        return WORDS[text]
    found = number(text)
    return text if found is None else found


def _refuse_tag(event: NodeEvent) -> None:
    if tag := getattr(event, "tag", None):
        spelled = str(tag).replace("tag:yaml.org,2002:", "!!")
        raise NotRead(f"not valid YAML here: the tag {spelled}, expected a plain value", _line(event))


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
