"""Commands about architectures, which train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nas.commands.grid import print_grid
from nas.commands.options import Overrides, refuse_beside
from nas.errors import InputError

PANEL = "On paper"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def cost(
    context: typer.Context,
    networks: Annotated[
        list[str], typer.Argument(help="Names of published networks, or YAML files with an architecture.")
    ],
    paper: Annotated[
        bool, typer.Option("--paper", help="Beside the published numbers, with what explains each.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="component: break each network's cost down.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Where to draw what they cost at every resolution (png, svg, pdf).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a network, one a line.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this file as well.")] = None,
    image_size: Annotated[int, typer.Option(help="Pixels along a side of the image.")] = 512,
    text_tokens: Annotated[int | None, typer.Option(help="Text tokens; default as each network is published.")] = None,
) -> None:
    """Parameters and multiply-adds of networks, in the three conventions papers use.

    Examples:

        nas cost mobilediffusion sd15 dit-xl-2 --paper

        nas cost runs/quickstart/2026-01-01_10-00-00/best.yaml --by component

        nas cost mobilediffusion sd15 --picture networks.png
    """
    from nas.disk import files
    from nas.space import cost_picture, published

    if by not in (None, "component"):
        raise InputError(f"--by {by}: expected component")
    if by:
        refuse_beside(context, "--by", ("paper", "json", "csv"))
    if picture:
        found = {network: published.parts_table(network, image_size, text_tokens) for network in networks}
        cost_picture.save(cost_picture.draw(found), picture)
        typer.echo(f"wrote {picture}")
    if by:
        for network in networks:
            typer.echo(network)
            print_grid(*published.part_grid(published.parts_table(network, image_size, text_tokens)))
        return
    rows = published.cost_table(networks, image_size, text_tokens)
    if csv:
        files.write_csv(csv, [row.plain() for row in rows])
    if json:
        typer.echo("\n".join(published.lines(rows)))
    else:
        print_grid(*published.grid(rows, paper))


@app.command(rich_help_panel=PANEL)
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
    from nas.space import published, screen
    from nas.space.search_space import SearchSpace

    latent_size = published.latent_size(image_size)
    seen = screen.survey(SearchSpace.load(space), screen.limits(budget), latent_size, text_tokens, seed)
    print_grid(*screen.axes_grid(seen.space))
    typer.echo(screen.summary(seen))
    print_grid(*screen.quantile_grid(seen))
    if picture:
        screen.save_picture(seen, picture)
        typer.echo(f"wrote {picture}")


@app.command(rich_help_panel=PANEL)
def screen(
    space: Annotated[str, typer.Argument(help="A name in search_spaces/, or a YAML file.")],
    budget: Annotated[
        str, typer.Option(help="Upper limits, for example params=400M,macs=200G.")
    ] = "params=400M,macs=200G",
    top: Annotated[int, typer.Option(min=1, help="How many to list.")] = 50,
    order: Annotated[
        Literal["nearest", "spread", "smallest", "largest"] | None,
        typer.Option(
            help="nearest: to the limits of the budget. spread: evenly over a cost. smallest, largest: of a cost. "
            "Default nearest, smallest with --by.",
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="The cost that is ordered by; macs unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a candidate, one a line.")] = False,
    image_size: Annotated[int, typer.Option(help="Pixels along a side of the image.")] = 512,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 77,
    seed: Annotated[int, typer.Option(help="Of the sample, where a space is too large to look at as a whole.")] = 0,
) -> None:
    """List members of a search space within budget, without training anything.

    Examples:

        nas screen mobilediffusion --budget params=400M,macs=200G --top 5

        nas screen mobilediffusion --order spread --by params --json
    """
    from nas.space import published
    from nas.space import screen as screening
    from nas.space.search_space import SearchSpace

    latent_size, limits = published.latent_size(image_size), screening.limits(budget)
    loaded = SearchSpace.load(space)
    ordered = order or ("smallest" if by else "nearest" if limits else "spread")
    found = screening.screen(loaded, limits, top, ordered, by or "macs", latent_size, text_tokens, seed)
    if json:
        return typer.echo("\n".join(screening.lines(found.candidates)))
    headings, cells, shared = screening.candidate_grid(loaded, found.candidates)
    typer.echo(found.told)
    print_grid(headings, cells)
    if shared:
        typer.echo(f"the same in all: {shared}")


@app.command("zero-cost", rich_help_panel=PANEL)
def zero_cost(
    study: Annotated[Path, typer.Argument(help="A study file of a search, or the folder that holds study.yaml.")],
    members: Annotated[int, typer.Option(min=2, help="Members to score, spread over the space by multiply-adds.")] = 32,
    by: Annotated[
        str, typer.Option(help="What they are ordered by, by commas: the mean of a member's ranks.")
    ] = "grad_norm,snip,synflow,naswot,zico",
    top: Annotated[int, typer.Option(min=1, help="How many to print; ranking.csv holds all.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; default runs/zero_cost/STUDY.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Networks side by side; 0 is one a core.")] = 0,
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Rank members of a study's space by scores that need no training, on the study's own pictures.

    Beside them stands how such rankings agreed with long trainings, where `nas trust` has measured it on this proxy.

    Examples:

        nas zero-cost studies/emoji --members 16

        nas zero-cost studies/emoji --by grad_norm --top 5
    """
    from nas.analysis.statistics import agreement
    from nas.numbers import amount
    from nas.trust import ranking

    folder = study if study.is_dir() else study.parent
    to, signals = out or Path("runs/zero_cost") / folder.name, [name for name in by.split(",") if name]
    found = ranking.run(study, set_, members, signals, to, Path("runs/.cache"), workers, typer.echo)
    best = found.members.head(top).to_dict("records")
    scores = [name for name in map(str, found.members) if name not in ("key", "params", "macs", "choices")]
    cells = [
        [row["key"], amount(row["params"]), amount(row["macs"]), *(f"{row[name]:.4g}" for name in scores)]
        for row in best
    ]
    print_grid(["key", "params", "macs", *scores], cells)
    print_grid(["key", "choices"], [[row["key"], row["choices"]] for row in best])
    typer.echo(f"wrote {to / 'ranking.csv'}")
    if found.trust:
        typer.echo("\nagreement with long trainings, as it was measured on this proxy (1: the same order, 0: chance)\n")
        print_grid(*agreement.summary(found.trust))
    else:
        typer.echo(f"How these orders agree with trainings was not measured on this proxy: nas trust {study}")
