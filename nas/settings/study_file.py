"""A study file, or the same settings in code, as a Study. Whatever is wrong becomes one line: file, line, key, value, what was
expected; of what was given in code the line begins with the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nas import menu
from nas.documents.document import Document
from nas.documents.strict import named
from nas.errors import InputError
from nas.settings import design_check
from nas.settings.study import Study

Source = Path | Mapping[str, Any] | BaseModel | Document  # a study file or its folder, or the settings themselves
Overrides = Sequence[str] | Mapping[str, Any]  # `key.path=value`, value in YAML, or values by key.path


@contextmanager
def opened(source: Source, overrides: Overrides = ()) -> Iterator[tuple[Study, Document]]:
    """The study of a file, or of settings given in code, with overrides, for a block of which every InputError about a setting
    says where that was given, as the document does of other messages.

    Raises InputError naming file, line, key and value for anything a study cannot be.
    """
    document = _read(source / "study.yaml" if isinstance(source, Path) and source.is_dir() else source)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            document.give(key, _plain(value), "overrides")
    else:
        for override in overrides:
            document.override(override)
    if isinstance(source, Path):
        document.content.setdefault("name", Path(document.name).resolve().parent.name)
    with document.placing(Study.model_fields):
        yield _study(document), document


def _read(source: Source) -> Document:
    if isinstance(source, Document):
        return source
    return Document.read(source) if isinstance(source, Path) else Document("the study", _plain(source), {"": ""})


def _plain(value: Any) -> Any:
    """What was given in code as a file would have it: sections as mappings of what was set, paths as text, numpy's numbers as
    Python's."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        given = {
            named(key, fields[key]) if key in fields else key: getattr(value, key) for key in value.model_fields_set
        }
        return _plain(given)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of `opened`, for whoever only reads it."""
    with opened(path, overrides) as (study, _):
        return study


def _study(document: Document) -> Study:
    study: Study = document.validate(Study, document.content)
    for location, folder, entry in study.menu_entries():
        try:
            module = menu.pick(folder, entry.name)
        except InputError as error:
            raise document.error((*location, "name"), str(error)) from None
        document.validate(module.Settings, entry.options, location)
    _check_sections(study, document)
    if study.ablation is not None:
        try:
            design_check.check(study)
        except design_check.Refused as refused:
            raise document.error(refused.location, refused.message) from None
    return study


def _check_sections(study: Study, document: Document) -> None:
    """One design, and the networks it is about."""
    if study.search is None and study.ablation is None:
        raise document.error(("search",), "required, but not given (or ablation, for fixed cells)")
    if study.search is not None and study.ablation is not None:
        raise document.error(("ablation",), "a study has one of search and ablation, this one has both")
    if study.search is not None and study.space is None:
        raise document.error(("space",), "required, but not given")
    if study.search is not None and study.architecture is not None:
        raise document.error(("architecture",), "a search takes its networks from space; expected no architecture")
    if study.space is None and study.architecture is None:
        raise document.error(("architecture",), "required, but not given (or a space, whose base is taken)")
