"""The verb that makes a trained network's image decoder smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands.grid import print_grid

PANEL = "Models"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def decoder(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|EXPORT|STUDY", help="A run, a folder that nas export wrote, or a study with a base."
        ),
    ],
    ratio: Annotated[list[float], typer.Option(help="Share of the channels that stay, of every width; repeatable.")] = [  # noqa: B006 (typer reads the default)
        0.5
    ],
    pick: Annotated[str | None, typer.Option(help="Of a run: knee (default), best:COLUMN, trial:N or base.")] = None,
    latents: Annotated[int, typer.Option(min=1, help="To draw for the training, once.")] = 2048,
    images_seen: Annotated[int, typer.Option(min=1, help="Latents that each training sees, again and again.")] = 16_384,
    batch: Annotated[int, typer.Option(min=1, help="Latents of an update.")] = 16,
    learning_rate: Annotated[float, typer.Option(min=1e-8, max=1, help="At the start; falls to zero.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; default RUN/decoders/NETWORK.")] = None,
) -> None:
    """Prune the image decoder of a trained network, and train what is left on latents that the network draws.

    The whole decoder's pictures are what is learned; no real picture is seen. Measures nearness to them, the study's scores and
    milliseconds against the ratio. The same command continues an interrupted one; further ratios may be added.

    Examples:

        nas decoder runs/quickstart

        nas decoder runs/quickstart --ratio 0.5 --ratio 0.25 --pick best:prompt_accuracy --out decoders
    """
    from functools import partial

    from nas.decoder_distillation import job
    from nas.report import page
    from nas.report.chapters import decoders as drawing
    from nas.training.decoders import Recipe

    asked = job.Asked(tuple(ratio), latents, Recipe(images_seen, batch, learning_rate, seed))
    subject, folder = job.find(source, pick)
    made = job.Job(subject, asked, out or folder)
    table = job.run(made, partial(print, flush=True))
    print_grid(*drawing.grid(table, job.shown(made)))
    typer.echo(f"wrote {made.folder}")
    if out is None and ((found := folder.parents[1]) / "resolved.yaml").is_file():
        typer.echo(f"report: {page.write(found)}")
    if asked.pruned:
        typer.echo(f"take one with: nas export RUN --decoder {made.file(asked.pruned[-1])}")
