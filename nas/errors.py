"""The one exception a person is meant to read."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 480  # characters of a message about a file that somebody wrote: three lines

_brief = reprlib.Repr()
_brief.maxstring = 100
_brief.maxother = 100
shown = _brief.repr  # a value as a message repeats it: short, on one line


class InputError(Exception):
    """Bad input: one line that names the file, the key, the value and what was expected. The CLI prints it and exits with 2."""


class ArgumentError(InputError):
    """About an argument of a verb, whose name begins the line. The CLI, where it is an option, writes it with its dashes."""


@contextmanager
def about(setting: str) -> Iterator[None]:
    """Inside, an InputError begins with this setting, unless it names one of the section itself."""
    try:
        yield
    except InputError as error:
        named = str(error).startswith((f"{setting}:", setting.partition(".")[0] + "."))
        raise (error if named else InputError(f"{setting}: {error}")) from None


def brief(error: BaseException) -> str:
    """What another library's exception says, on one line of at most 200 characters, to be part of an InputError."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def bounded(text: str) -> str:
    """A message on one line of at most MOST characters; what is cut is in its middle."""
    line = " ".join(text.split())
    return line if len(line) <= MOST else f"{line[: MOST // 2]} ... {line[5 - MOST // 2 :]}"
