"""Commands that show what runs found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands.grid import print_grid
from nas.commands.options import Run_, refuse_beside

PANEL = "Runs"
app = typer.Typer()
wandb_app = typer.Typer(help="Runs on Weights & Biases.", no_args_is_help=True)
app.add_typer(wandb_app, name="wandb", rich_help_panel=PANEL)


@app.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories, or studies' folders in runs/ (the latest run)."),
    ],
    out: Annotated[Path, typer.Option(help="The page that holds several runs; one run's is in its directory.")] = Path(
        "report.html"
    ),
    png: Annotated[bool, typer.Option("--png", help="Figures as pictures too, in RUN/figures.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Figures for a paper too, in RUN/figures.")] = False,
) -> None:
    """Write results.csv, report.html and best.yaml of runs again, from their records; several runs also as one page.

    Examples:

        nas report runs/quickstart

        nas report runs/quickstart runs/ffn_ratio --out both.html

        nas report runs/quickstart --pdf
    """
    from nas.study import launch

    launch.report_runs(runs, out, [suffix for suffix, asked in (("png", png), ("pdf", pdf)) if asked])


@app.command(rich_help_panel=PANEL)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two or more runs of searches.")],
    by: Annotated[
        str, typer.Option(help="Equal compute in: macs (of training) | images | seconds (of workers).")
    ] = "macs",
    out: Annotated[
        list[Path], typer.Option(help="Write a page (.html) or the fronts (.png, .pdf, .svg); repeatable.")
    ] = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Studies side by side: fronts, hypervolume at equal compute, who dominates whom. Refuses what was measured differently.

    Example: nas compare runs/quickstart runs/random --out comparison.html
    """
    from typing import cast

    from nas.analysis import compare as comparing
    from nas.report import comparison

    found = comparing.of_runs(runs, cast(comparing.Compute, by))
    print_grid(*comparing.summary(found))
    typer.echo(comparing.verdict(found))
    typer.echo("\n".join(comparing.dominations(found)))
    for path in out:
        typer.echo(f"wrote {comparison.write(found, path)}")


@app.command(rich_help_panel=PANEL)
def judge(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="A run, whose folder keeps the answers; others that drew the same captions."
        ),
    ],
    judge: Annotated[str, typer.Option(help="Who answers; each judge goes on where they stopped.")] = "me",
    trials: Annotated[
        str | None, typer.Option(help="Numbers, with commas between them; default all that were trained to the end.")
    ] = None,
    front: Annotated[bool, typer.Option("--front", help="Only the front's members, with their repeats.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7861,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    results: Annotated[bool, typer.Option("--results", help="Print what was answered so far; no page.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="With --results: write the trials there, judges and metrics beside it, as CSV.")
    ] = None,
) -> None:
    """A page at 127.0.0.1 that shows two pictures of one caption, blind, and asks which is better, by arrow keys.

    The scores are the column human_preference of results, from the next report on; the report says whether the metrics agree.

    Examples:

        nas judge runs/quickstart

        nas judge runs/quickstart --judge ann

        nas judge runs/quickstart --results --output preference.csv
    """
    from nas.errors import InputError

    if output is not None and not results:
        raise InputError(f"--output {output}: expected --results with it")
    if not results:
        from nas.judging import contest, page
        from nas.judging.session import Session

        return page.serve(Session(contest.of(runs, trials, front), judge), port, browser, typer.echo)
    if len(runs) > 1:
        raise InputError(
            f"--results: prints what one run's folder keeps, got {len(runs)} runs; expected the first alone"
        )
    refuse_beside(context, "--results", ("judge", "trials", "front"))
    from nas.analysis.people import judged
    from nas.judging import table

    found = table.of_run(runs[0])
    for grid in table.grids(found):
        print_grid(*grid)
    typer.echo(judged.sentence(found))
    for path in table.write(found, output) if output else ():
        typer.echo(f"wrote {path}")


@app.command(rich_help_panel=PANEL)
def watch(
    run: Run_,
    every: Annotated[float, typer.Option(help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and end.")] = False,
) -> None:
    """The front, the running trials and the progress of a run that another process is running, until it is over.

    Example: nas watch runs/quickstart
    """
    from nas.report.live import watch as watching

    watching.watch(run, every, once)


@app.command(rich_help_panel=PANEL)
def dashboard(run: Run_, port: Annotated[int, typer.Option(min=1, max=65535)] = 8080) -> None:
    """Optuna's dashboard on a run, live and read-only, at 127.0.0.1. Needs the extra: pip install 'nas[dashboard]'.

    Example: nas dashboard runs/quickstart --port 8081
    """
    from nas.report.live import dashboard as showing

    showing.serve(run, port)


@wandb_app.command("sync")
def wandb_sync(
    run: Run_,
    entity: Annotated[
        str | None, typer.Option(help="User or team; default tracking.entity, else the account's own.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Default tracking.project.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent as JSON; needs no key and no connection.")
    ] = False,
) -> None:
    """Upload a run's offline W&B runs, and save a workspace and a report with its front, decisions, samples and effects.

    The same command again uploads what is new and changes both. Needs the extra: pip install 'nas[wandb]'.

    Examples:

        nas wandb sync runs/quickstart --dry-run > specification.json

        nas wandb sync runs/quickstart --entity my-team --project architectures
    """
    import json

    from nas.disk import scratch
    from nas.report.wandb import sync as syncing
    from nas.runs import description

    scratch.hold()
    aim = syncing.target(description.find(run), entity, project)
    if dry_run:
        return typer.echo(json.dumps(syncing.specification(aim), indent=1))
    for name, address in syncing.sync(aim, typer.echo).items():
        typer.echo(f"{name}: {address}")
