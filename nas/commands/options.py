"""What several verbs take."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from nas.errors import InputError

Overrides = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a setting of the study file; repeatable."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="postgresql://user@host/database, or a journal file; default the journal of the run."
    ),
]
Run_ = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or a study's folder in runs/ (its latest run).")
]


def refuse_beside(context: typer.Context, option: str, ignored: Iterable[str]) -> None:
    """Raises InputError where one of the options was given that a command ignores with this one."""
    for name in ignored:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name}: ignored with {option}; expected one of the two")
