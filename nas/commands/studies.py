"""Commands that run studies, and those that measure what their trials are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nas.commands.grid import print_grid
from nas.commands.options import Overrides, Storage

PANEL = "Studies"
app = typer.Typer()
supernets = typer.Typer(help="Shared weights of a whole search space, for warm starts.", no_args_is_help=True)
app.add_typer(supernets, name="supernet", rich_help_panel=PANEL)


@app.command(rich_help_panel=PANEL)
def run(
    study: Annotated[Path, typer.Argument(help="A study file, or the folder that holds study.yaml.")],
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
    root: Annotated[Path, typer.Option(help="Where run directories go.")] = Path("runs"),
    new: Annotated[bool, typer.Option("--new", help="Start afresh instead of continuing an unfinished run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the resolved settings; write nothing.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials side by side.")] = None,
    storage: Storage = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where trials are computed: on this machine, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The Ray cluster's head node; default the cluster of this machine."),
    ] = None,
) -> None:
    """Run a study, or continue it where it was interrupted.

    Examples:

        nas run studies/quickstart/study.yaml

        nas run studies/quickstart --set search.trials=40 --set search.sampler=random

        nas run studies/quickstart --workers 4 --storage postgresql://me@host/nas
    """
    from nas import api, interruption

    interruption.install_in_coordinator()
    overrides = [*set_, *([f"workers={workers}"] if workers is not None else [])]
    if dry_run:
        from nas.study import launch

        return launch.show(study, overrides)
    api.run(study, overrides=overrides, root=root, new=new, storage=storage, engine=engine, address=address)


@app.command(rich_help_panel=PANEL)
def trust(
    study: Annotated[Path, typer.Argument(help="A study file, or the folder that holds study.yaml.")],
    anchors: Annotated[int, typer.Option(help="Architectures, spread over the space by multiply-adds.")] = 16,
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 2,
    long: Annotated[
        int,
        typer.Option(help="Length of the long trainings from scratch, in the study's brief trials; 0: none of them."),
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

    The same command goes on where it was interrupted, and adds anchors, seeds or length to a finished table.

    Examples:

        nas trust studies/emoji

        nas trust studies/emoji --anchors 24 --seeds 3 --long 20

        nas trust studies/emoji --long 0    # only how well two seeds of the brief trials agree
    """
    from nas.workers import preload

    preload.start()
    from nas.analysis.statistics import agreement as trusting
    from nas.trust import anchors as measuring

    plan = measuring.Plan(anchors, seeds, long)
    folder = study if study.is_dir() else study.parent
    found = measuring.run(study, set_, plan, out or Path("runs/trust") / folder.name, store, workers, train)
    print_grid(*trusting.summary(found))


@app.command(rich_help_panel=PANEL)
def replay(
    table: Annotated[Path, typer.Argument(help="A folder with curves.csv and the study.yaml it was recorded with.")],
    rules: Annotated[
        str, typer.Option(help="improvement, halving, slope, median, none, multi_metric (Optuna Hub's), by commas.")
    ] = "improvement,halving,slope,median,none,multi_metric",
    samplers: Annotated[
        str,
        typer.Option(
            help="Also samplers: random, tpe, nsga2, gp, pool, optuna, optuna_charged, by commas; "
            "or FILE.py:FUNCTION, which is given a seed and returns an Optuna sampler."
        ),
    ] = "",
    shuffles: Annotated[int, typer.Option(min=1, help="Orders of the architectures, for the rules.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Studies of each sampler; of gp, which is slow, at most 5.")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="Simulated workers.")] = 1,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="A setting of `stopping`, of the first rule; repeatable. Unless set, rungs are the table's.",
        ),
    ] = [],  # noqa: B006 (typer reads the default)
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose rule and settings on one half, report them on the other.")
    ] = False,
    lost: Annotated[float, typer.Option(help="With --tune: share of the hypervolume that may be lost.")] = 0.02,
    trainings: Annotated[
        int | None, typer.Option(min=1, help="End samplers after so many trainings; default when none is left.")
    ] = None,
    record: Annotated[Path | None, typer.Option(metavar="RUN", help="First write curves.csv from this run.")] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="First write truth.csv from this run of the same architectures with other seeds; what is found is judged by it.",
        ),
    ] = None,
    look: Annotated[
        bool, typer.Option("--look", help="First look at every architecture, as a pool does, and write looks.csv.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables and the picture; default TABLE.")] = None,
) -> None:
    """Replay rules of early stopping, and samplers, over recorded learning curves: seconds instead of training.

    Examples:

        nas replay studies/stopping_replay --rules improvement,halving

        nas replay studies/stopping_replay --samplers random,tpe,nsga2,gp --set gain=0.02
    """
    from nas.study import launch
    from nas.trust.replay import command as replaying

    named = tuple(filter(None, rules.split(","))), tuple(filter(None, samplers.split(",")))
    plan = replaying.Plan(*named, shuffles, repeats, workers, tuple(set_), tune, lost, look, trainings)
    recorded, judged = (launch.find_run(run).path if run else None for run in (record, truth))
    replaying.run(table, plan, out, recorded, judged)


@supernets.command("train")
def supernet_train(
    space: Annotated[str, typer.Argument(help="A name in search_spaces/, or a YAML file.")],
    study: Annotated[
        Path, typer.Option(help="The study whose data, autoencoder, text encoder, proxy and budget are used.")
    ] = Path("studies/quickstart/study.yaml"),
    images: Annotated[int, typer.Option(help="Images seen in total.")] = 900_000,
    learning_rate: Annotated[float, typer.Option(help="Falls to a tenth in three stages.")] = 1e-3,
    largest_until: Annotated[
        float, typer.Option(help="Share of the images until which each update trains the largest member alone.")
    ] = 0.0,
    sandwich_from: Annotated[
        float, typer.Option(help="Share of the images after which each update trains several members; before, one.")
    ] = 0.0,
    members: Annotated[int, typer.Option(help="How many, the largest and the smallest among them.")] = 4,
    ends_every: Annotated[
        int,
        typer.Option(
            help="The largest and the smallest are trained in every so many updates; between them one teaches only."
        ),
    ] = 1,
    warmup_images: Annotated[int, typer.Option(min=0, help="Over which the learning rate rises.")] = 12_800,
    start: Annotated[Path | None, typer.Option(help="A supernet of the same space to go on from.")] = None,
    out: Annotated[Path | None, typer.Option(help="Default runs/supernets/SPACE_DATASET.safetensors.")] = None,
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Train one set of weights whose slices are the members of a space. The same command continues an interrupted one.

    Examples:

        nas supernet train mobilediffusion --images 900000

        nas supernet train mobilediffusion --study studies/emoji --largest-until 0.6 --out runs/emoji.safetensors

        nas run studies/quickstart --set training.init=runs/supernets/mobilediffusion_scenes.safetensors
    """
    from nas.trial import supernet_training

    recipe = supernet_training.Recipe(
        images, learning_rate, largest_until, sandwich_from, members, ends_every, warmup_images
    )
    supernet_training.run(space, study, set_, recipe, out, start)


@app.command(rich_help_panel=PANEL)
def init(
    data: Annotated[
        Path,
        typer.Argument(help="A folder with metadata.jsonl, tar shards (a folder, file or pattern), or COCO's images."),
    ],
    annotations: Annotated[Path | None, typer.Option(help="COCO's captions: the data are its images.")] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="A setting of the data set, as caption_key=caption; repeatable."
        ),
    ] = [],  # noqa: B006 (typer reads the default)
    image_size: Annotated[int, typer.Option(min=8, help="Pixels along a side that are trained on.")] = 64,
    look: Annotated[int, typer.Option(min=1, help="Pictures that are looked at, at most.")] = 5000,
    to: Annotated[Path | None, typer.Option(help="The study's folder; default studies/NAME OF THE DATA.")] = None,
) -> None:
    """Look at your captioned pictures, say what is wrong with them, and write a first study of them.

    It names an autoencoder, a judge and a supernet of these pictures, which nas prepare makes.

    Examples:

        nas init my-pictures --to studies/pictures

        nas init "laion/{00000..00099}.tar" --set held_out=0.2 --to studies/laion
    """
    from nas.preparation import draft, survey

    folder = to or Path("studies") / draft.name_for(data)
    draft.vacant(folder)
    section = survey.described(data, annotations, image_size, set_)
    seen = survey.look(section, look)
    for name, value in seen.lines():
        typer.echo(f"{name:<20}{value}")
    for line in seen.warnings():
        typer.echo(f"note: {line}")
    path = draft.write(folder, section, seen)
    typer.echo(f"wrote {path}; next: nas prepare {path.parent}")


@app.command(rich_help_panel=PANEL)
def prepare(
    study: Annotated[Path, typer.Argument(help="A study file, or the folder that holds study.yaml.")],
    check: Annotated[
        bool, typer.Option("--check", help="Say what is missing and what it costs; exit code 1 where something is.")
    ] = False,
    autoencoder: Annotated[float, typer.Option(help="Minutes of a core, where autoencoder.path is not there.")] = 4,
    judge: Annotated[float, typer.Option(help="Minutes of a core, where the judge of a metric is not there.")] = 10,
    supernet: Annotated[float, typer.Option(help="Minutes of a core, where training.init is not there.")] = 15,
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Make what a study needs before its first trial, and say what it is worth on the study's pictures.

    An autoencoder (.safetensors), a judge (a folder) or a supernet (.safetensors) that the study names by a path where nothing
    is gets trained on its pictures. Then come latents, embeddings, features and the scores of real pictures, of the
    autoencoder's copies and of an untrained network. The same command goes on where it was interrupted.

    Examples:

        nas prepare studies/quickstart --check

        nas prepare studies/quickstart --supernet 30
    """
    from functools import partial

    from nas.preparation import job

    asked = job.Asked(autoencoder, judge, supernet)
    say = partial(print, flush=True)
    whole = job.run(study, set_, asked, Path("runs/.cache"), check, say, print_grid)
    if not whole:
        typer.echo(f"next: nas prepare {study}")
        raise typer.Exit(1)
    typer.echo(f"nothing is missing; next: nas run {study}")
