"""The command line: one function per verb. Heavy libraries are imported inside, so that `--help` stays fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nas.errors import InputError

app = typer.Typer(
    help="Architecture search and ablation for text-to-image diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
Overrides = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a setting of the study file; repeatable."),
]
Run_ = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or a study's folder in runs/ (its latest run).")
]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="A study file, or the folder that holds study.yaml.")],
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
    root: Annotated[Path, typer.Option(help="Where run directories go.")] = Path("runs"),
    new: Annotated[bool, typer.Option("--new", help="Start afresh instead of continuing an unfinished run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the resolved settings; write nothing.")
    ] = False,
) -> None:
    """Run a study, or continue it where it was interrupted.

    Examples:

        nas run studies/quickstart/study.yaml

        nas run studies/quickstart --set search.trials=40 --set search.sampler=random
    """
    from nas import preload

    preload.start()
    from nas import launch

    launch.run(study, set_, root, new, dry_run)


@app.command()
def report(run: Run_) -> None:
    """Write results.csv, report.html and best.yaml of a run again, from its records.

    Example: nas report runs/quickstart
    """
    from nas import launch

    launch.summarise(launch.find_run(run))


@app.command()
def export(
    run: Run_,
    pick: Annotated[str, typer.Option(help="knee | best:COLUMN | trial:NUMBER")] = "knee",
    to: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export/PICK.")] = None,
) -> None:
    """Write one trial's architecture at deploy scale, and its proxy with trained weights.

    Examples:

        nas export runs/quickstart

        nas export runs/quickstart --pick best:clip_score --to small-model
    """
    from nas import export as exporting
    from nas import launch

    folder = exporting.export(launch.find_run(run), pick, to)
    typer.echo(f"wrote {folder}; draw with: nas sample {folder} 'red heart, noto'")


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A folder that `nas export` wrote.")],
    captions: Annotated[list[str], typer.Argument(help="What to draw, one picture each.")],
    seed: Annotated[int, typer.Option(help="Chooses the initial noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("samples.png"),
    steps: Annotated[int | None, typer.Option(help="Solver steps; default as in the study.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default as in the study.")] = None,
) -> None:
    """Draw captions with an exported model.

    Example: nas sample runs/quickstart/2026-01-01_10-00-00/export/knee "red heart, noto" "pizza, twemoji"
    """
    from nas import export as exporting

    exporting.sample(model, captions, seed, out, steps, guidance)
    typer.echo(f"wrote {out}")


def main() -> None:
    """Entry point: an InputError is one line and exit code 2; an interrupt says how to go on."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        print(f"nas: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nnas: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
