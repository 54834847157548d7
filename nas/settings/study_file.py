"""A study file as a Study. Whatever is wrong in it becomes one line: file, line, key, value, what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nas import menu
from nas.documents.document import Document
from nas.errors import InputError
from nas.settings import design_check
from nas.settings.study import Study


@contextmanager
def opened(path: Path, overrides: Sequence[str] = ()) -> Iterator[tuple[Study, Document]]:
    """The study file at `path` with `key.path=value` overrides, for a block of which every InputError about a setting says where
    that was given, as the document does of other messages.

    Raises InputError naming file, line, key and value for anything a study cannot be.
    """
    path = path / "study.yaml" if path.is_dir() else path
    document = Document.read(path)
    for override in overrides:
        document.override(override)
    document.content.setdefault("name", path.resolve().parent.name)
    with document.placing(Study.model_fields):
        yield _study(document), document


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
