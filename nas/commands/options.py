"""What several verbs take."""

from pathlib import Path
from typing import Annotated

import typer

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
