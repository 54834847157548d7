"""The verb that makes a trained network faster without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands.grid import print_grid

PANEL = "Models"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def schedule(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|EXPORT|STUDY", help="A run, a folder that nas export wrote, or a study with a base."
        ),
    ],
    pick: Annotated[str | None, typer.Option(help="Of a run: knee (default), best:COLUMN, trial:N or base.")] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Schedules to score, the heuristics among them.")] = 400,
    images: Annotated[int, typer.Option(min=1, help="Pictures, of training captions, that score a schedule.")] = 16,
    population: Annotated[int, typer.Option(min=4, help="Of NSGA-II.")] = 32,
    quality: Annotated[
        str, typer.Option(help="`distance` from the uncached pictures, or a column of the study's metrics.")
    ] = "distance",
    cost: Annotated[str, typer.Option(help="macs | ms (of the units, measured here).")] = "macs",
    keep: Annotated[
        int, typer.Option(min=2, help="Members of the front that are drawn for the evaluation captions.")
    ] = 12,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; default RUN/schedules/NETWORK.")] = None,
) -> None:
    """Search which units of a trained network are computed at which step, and which are kept: faster pictures, no training.

    NSGA-II starts from the heuristics of the literature (FORA, DeepCache, T-GATE, TaylorSeer). The front is then scored on the
    study's evaluation captions. The same command continues an interrupted search.

    Examples:

        nas schedule runs/quickstart

        nas schedule runs/quickstart --pick best:prompt_accuracy --quality prompt_accuracy --images 64 --out by-score

        nas schedule studies/one_step_league   # the base of a study: its shipped network
    """
    from typing import cast

    from nas.errors import InputError
    from nas.report import page
    from nas.report.chapters import schedules as drawing
    from nas.schedules import gain, search, subjects

    if cost not in ("macs", "ms"):
        raise InputError(f"--cost {cost}: expected macs or ms")
    asked = search.Settings(images, evaluations, population, quality, cast(search.Cost, cost), keep, seed)
    subject, folder = subjects.find(source, pick)
    found = search.run(subject, asked, out or folder, typer.echo)
    print_grid(*search.grid(found, subject))
    typer.echo(gain.sentence(gain.gain(found.table, found.distances)))
    for path in drawing.save(found.table, found.plans, subject.units, out or folder):
        typer.echo(f"wrote {path}")
    if out is None and ((run := folder.parents[1]) / "resolved.yaml").is_file():
        typer.echo(f"report: {page.write(run)}")
