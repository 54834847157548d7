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
supernets = typer.Typer(help="Shared weights of a whole search space, for warm starts.", no_args_is_help=True)
app.add_typer(supernets, name="supernet")
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
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Solver steps; default as in the study.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; default as in the study.")] = None,
) -> None:
    """Draw captions with an exported model.

    Example: nas sample runs/quickstart/2026-01-01_10-00-00/export/knee "red heart, noto" "pizza, twemoji"
    """
    from nas import export as exporting

    exporting.sample(model, captions, seed, out, steps, guidance)
    typer.echo(f"wrote {out}")


@app.command(name="sweep-guidance")
def sweep_guidance(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, a study's folder in runs/, or an exported folder.")
    ],
    pick: Annotated[
        list[str],
        typer.Option(help="base | knee | best:COLUMN | trial:NUMBER; repeatable. Default: knee, or every cell."),
    ] = [],  # noqa: B006 (typer reads the default)
    scales: Annotated[str, typer.Option(help="Guidance scales, with commas between them.")] = "1,2,3,5,7.5",
    repeats: Annotated[int, typer.Option(min=1, help="Of every cell of an ablation, how many repeats.")] = 1,
) -> None:
    """Draw the FID-CLIP curve of trained networks over guidance scales, many-step and one-step side by side.

    Writes guidance.csv and guidance.png into the run; the same command goes on where it was interrupted.

    Examples:

        nas sweep-guidance runs/quickstart

        nas sweep-guidance runs/ufogen_lora --scales 1,1.5,2,3 --repeats 3
    """
    from nas import guidance, report

    chosen = guidance.scales_of(scales)
    found, picks = guidance.opened(run, pick)
    guidance.sweep(found, picks, chosen, repeats, typer.echo)
    typer.echo(f"wrote {found.path / guidance.PICTURE}; report: {report.write(found.path)}")


@app.command()
def cost(
    networks: Annotated[
        list[str], typer.Argument(help="Names of published networks, or YAML files with an architecture.")
    ],
    paper: Annotated[
        bool, typer.Option("--paper", help="Beside the published numbers, with what explains each.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="component: break each network's cost down.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a network, one a line.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this file as well.")] = None,
    image_size: Annotated[int, typer.Option(help="Pixels along a side of the image.")] = 512,
    text_tokens: Annotated[int | None, typer.Option(help="Text tokens; default as each network is published.")] = None,
) -> None:
    """Parameters and multiply-adds of networks, in the three conventions papers use.

    Examples:

        nas cost mobilediffusion sd15 dit-xl-2 --paper

        nas cost runs/quickstart/2026-01-01_10-00-00/best.yaml --by component
    """
    from nas import published

    if by not in (None, "component"):
        raise InputError(f"--by {by}: expected component")
    if by:
        for network in networks:
            typer.echo(network)
            _print_grid(*published.part_grid(published.parts_table(network, image_size, text_tokens)))
        return
    rows = published.cost_table(networks, image_size, text_tokens)
    if csv:
        published.write_csv(rows, csv)
    if json:
        typer.echo("\n".join(published.lines(rows)))
    else:
        _print_grid(*published.grid(rows, paper))


@app.command()
def space(
    space: Annotated[str, typer.Argument(help="A name in search_spaces/, or a YAML file.")],
    budget: Annotated[
        str, typer.Option(help="Upper limits, for example params=400M,macs=200G.")
    ] = "params=400M,macs=200G",
    picture: Annotated[Path | None, typer.Option(help="Where to draw parameters against MACs (png, svg, pdf).")] = None,
    image_size: Annotated[int, typer.Option(help="Pixels along a side of the image.")] = 512,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 77,
    seed: Annotated[int, typer.Option(help="Of the sample, where a space is too large to count.")] = 0,
) -> None:
    """What a search space holds: its axes, its size, the share within budget, and where published networks lie in it.

    Example: nas space mobilediffusion --picture mobilediffusion.png
    """
    from nas import published, screen
    from nas.space import SearchSpace

    latent_size = published.latent_size(image_size)
    seen = screen.survey(SearchSpace.load(space), screen.limits(budget), latent_size, text_tokens, seed)
    _print_grid(*screen.axes_grid(seen.space))
    typer.echo(screen.summary(seen))
    _print_grid(*screen.quantile_grid(seen))
    if picture:
        screen.save_picture(seen, picture)
        typer.echo(f"wrote {picture}")


@app.command()
def screen(
    space: Annotated[str, typer.Argument(help="A name in search_spaces/, or a YAML file.")],
    budget: Annotated[
        str, typer.Option(help="Upper limits, for example params=400M,macs=200G.")
    ] = "params=400M,macs=200G",
    top: Annotated[int, typer.Option(min=1, help="How many to list.")] = 50,
    by: Annotated[str, typer.Option(help="The cost to sort by, smallest first.")] = "macs",
    largest: Annotated[
        bool, typer.Option("--largest", help="Largest first: the networks that use the budget up.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a candidate, one a line.")] = False,
    image_size: Annotated[int, typer.Option(help="Pixels along a side of the image.")] = 512,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 77,
    seed: Annotated[int, typer.Option(help="Of the sample, where a space is too large to look at as a whole.")] = 0,
) -> None:
    """List members of a search space within budget, without training anything.

    Example: nas screen mobilediffusion --budget params=400M,macs=200G --top 50 --by macs
    """
    from nas import published
    from nas import screen as screening
    from nas.space import SearchSpace

    latent_size, limits = published.latent_size(image_size), screening.limits(budget)
    loaded = SearchSpace.load(space)
    found = screening.screen(loaded, limits, top, by, latent_size, text_tokens, largest, seed)
    if json:
        typer.echo("\n".join(screening.lines(found)))
    else:
        _print_grid(*screening.candidate_grid(loaded, found))


@supernets.command("train")
def supernet_train(
    space: Annotated[str, typer.Argument(help="A name in search_spaces/, or a YAML file.")],
    study: Annotated[
        Path, typer.Option(help="The study whose data, autoencoder, text encoder, proxy and budget are used.")
    ] = Path("studies/quickstart/study.yaml"),
    images: Annotated[int, typer.Option(help="Images seen in total.")] = 900_000,
    learning_rate: Annotated[float, typer.Option(help="AdamW's; falls to a tenth in three stages.")] = 1e-3,
    sandwich_from: Annotated[
        float, typer.Option(help="Share of the images after which each update trains four members; before, one.")
    ] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Default runs/supernets/SPACE.safetensors.")] = None,
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Train one set of weights whose slices are the members of a space. The same command continues an interrupted one.

    Examples:

        nas supernet train mobilediffusion --images 900000

        nas run my-study --set training.init=runs/supernets/mobilediffusion.safetensors
    """
    from nas import supernet_training

    recipe = supernet_training.Recipe(images, learning_rate, sandwich_from)
    supernet_training.run(space, study, set_, recipe, out)


@app.command()
def trust(
    study: Annotated[Path, typer.Argument(help="A study file, or the folder that holds study.yaml.")],
    anchors: Annotated[int, typer.Option(help="Architectures, spread over the space by multiply-adds.")] = 16,
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 2,
    long: Annotated[
        int, typer.Option(help="Length of the long trainings from scratch, in the study's brief trials.")
    ] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; default runs/trust/STUDY.")] = None,
    store: Annotated[Path, typer.Option(help="Where reports of studies on this proxy find the result.")] = Path(
        "runs/.cache"
    ),
    workers: Annotated[int, typer.Option(help="Trainings side by side; 0 is one a core.")] = 0,
    train: Annotated[bool, typer.Option(help="--no-train: only the tables of what was measured so far.")] = True,
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Measure how well brief trials, supernet slices and scores on paper order architectures as long trainings do.

    The same command goes on where it was interrupted, and adds anchors or seeds to a finished table.

    Examples:

        nas trust studies/quickstart

        nas trust studies/quickstart --anchors 24 --seeds 3 --long 20
    """
    from nas import preload

    preload.start()
    from nas import anchors as measuring
    from nas import trust as trusting

    plan = measuring.Plan(anchors, seeds, long)
    folder = study if study.is_dir() else study.parent
    found = measuring.run(study, set_, plan, out or Path("runs/trust") / folder.name, store, workers, train)
    _print_grid(*trusting.summary(found))


def _print_grid(headings: list[str], cells: list[list[str]]) -> None:
    """A table as wide as it needs to be; columns of numbers to the right."""
    widths = [max(len(row[i]) for row in [headings, *cells]) for i in range(len(headings))]
    right = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells) for i in range(len(headings))]
    for row in [headings, *cells]:
        pairs = zip(row, widths, right, strict=True)
        typer.echo(
            "  ".join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in pairs).rstrip()
        )
    typer.echo()


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
