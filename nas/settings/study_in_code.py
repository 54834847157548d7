"""`nas.Study`: the keys of a study file as arguments. What is wrong with them is said as it is of a file."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import Parameter, Signature
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nas.documents.section import Section
from nas.documents.strict import models, named
from nas.settings import study, study_file
from nas.settings.entries import Entry


class Study(study.Study):
    """A study: everything that decides its result. Its keys are those of a study file; sections are mappings, as there.

        nas.Study(name="first", space="mobilediffusion", dataset="scenes", search={"trials": 4, "minimise": ["macs"]})

    `nas.run` takes it, or a mapping, or a study file. InputError, one line, for anything a study cannot be: the key, what was
    expected there, and what was given.
    """

    def __init__(self, **settings: Any):
        with study_file.opened(settings):
            super().__init__(**settings)


def explained(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A line for every key of a section and of those in it: its dotted name, and what its docstring says."""
    for name, field in section.model_fields.items():
        inside = next(models(field.annotation), None)
        told = field.description or (inside.__doc__ if inside else None) or ""
        yield f"{prefix}{named(name, field)}: {' '.join(told.split())}"
        if inside is not None and issubclass(inside, Section):
            yield from explained(inside, f"{prefix}{name}.")


def _parameter(name: str, field: FieldInfo) -> Parameter:
    """A key as `help` shows it: without its type, and with an empty section for one that has its defaults."""
    default = field.default
    shown = {} if isinstance(default, Section) else default.name if isinstance(default, Entry) else default
    return Parameter(name, Parameter.KEYWORD_ONLY, default=Parameter.empty if field.is_required() else shown)


Study.__doc__ = "\n    ".join([Study.__doc__ or "", "Keys:", *(f"    {line}" for line in explained(study.Study))])
Study.__signature__ = Signature([_parameter(name, field) for name, field in study.Study.model_fields.items()])
