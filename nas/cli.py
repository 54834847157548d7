"""The command line: one function per verb. Heavy libraries are imported inside, so that `--help` stays fast."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from nas.errors import InputError
from nas.failures import DiskTrouble, disk_trouble
from nas.interruption import EXIT_CODE, Terminated

app = typer.Typer(
    help="Architecture search and ablation for text-to-image diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
supernets = typer.Typer(help="Shared weights of a whole search space, for warm starts.", no_args_is_help=True)
app.add_typer(supernets, name="supernet")
wandb_app = typer.Typer(help="Runs on Weights & Biases.", no_args_is_help=True)
app.add_typer(wandb_app, name="wandb")
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


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="A study file, or the folder that holds study.yaml.")],
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
    root: Annotated[Path, typer.Option(help="Where run directories go.")] = Path("runs"),
    new: Annotated[bool, typer.Option("--new", help="Start afresh instead of continuing an unfinished run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the resolved settings; write nothing.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Trials side by side on this machine; 0: only on workers that join.")
    ] = None,
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
    from nas import interruption, preload

    interruption.install_in_coordinator()
    preload.start()
    from nas import launch

    overrides = [*set_, *([f"workers={workers}"] if workers is not None else [])]
    launch.run(study, overrides, root, new, dry_run, storage, engine, address)


@app.command()
def worker(
    study: Annotated[Path, typer.Argument(help="The study file, or its folder, that nas run was given.")],
    storage: Storage = None,
    root: Annotated[
        Path,
        typer.Option(help="Where run directories are. Share the coordinator's, or trials start over when they move."),
    ] = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials side by side; default one per GPU or core.")
    ] = None,
) -> None:
    """Compute trials for a run that nas run leads from another process or machine, until it ends.

    Example: nas worker studies/quickstart --storage postgresql://me@host/nas --root /shared/runs
    """
    from nas import interruption, preload

    interruption.install_in_coordinator()
    preload.start()
    from nas import joining

    joining.work(study, storage, root, workers, typer.echo)


@app.command()
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
    from nas import launch

    launch.report_runs(runs, out, [suffix for suffix, asked in (("png", png), ("pdf", pdf)) if asked])


@app.command()
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

    from nas import compare as comparing

    found = comparing.of_runs(runs, cast(comparing.Compute, by))
    _print_grid(*comparing.summary(found))
    typer.echo(comparing.verdict(found))
    typer.echo("\n".join(comparing.dominations(found)))
    for path in out:
        typer.echo(f"wrote {comparing.write(found, path)}")


@app.command()
def watch(
    run: Run_,
    every: Annotated[float, typer.Option(help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and end.")] = False,
) -> None:
    """The front, the running trials and the progress of a run that another process is running, until it is over.

    Example: nas watch runs/quickstart
    """
    from nas import watch as watching

    watching.watch(run, every, once)


@app.command()
def dashboard(run: Run_, port: Annotated[int, typer.Option(min=1, max=65535)] = 8080) -> None:
    """Optuna's dashboard on a run, live and read-only, at 127.0.0.1. Needs the extra: pip install 'nas[dashboard]'.

    Example: nas dashboard runs/quickstart --port 8081
    """
    from nas import dashboard as showing

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

    from nas import results
    from nas import wandb_sync as syncing

    aim = syncing.target(results.find(run), entity, project)
    if dry_run:
        return typer.echo(json.dumps(syncing.specification(aim), indent=1))
    for name, address in syncing.sync(aim, typer.echo).items():
        typer.echo(f"{name}: {address}")


@app.command()
def export(
    run: Run_,
    pick: Annotated[str, typer.Option(help="knee | best:COLUMN | trial:NUMBER")] = "knee",
    to: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export/PICK.")] = None,
    format: Annotated[
        str, typer.Option(help="Any of yaml, safetensors, onnx, executorch, coreml.")
    ] = "yaml,safetensors",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or both, for formats that hold graphs.")] = "fp32",
    quantise: Annotated[str | None, typer.Option(help="int8: also quantised, with its loss of quality.")] = None,
) -> None:
    """Write one trial's architecture at deploy scale, its proxy with trained weights, and both for other runtimes.

    Every graph is compared with PyTorch on the spot; README.md is a model card.

    Examples:

        nas export runs/quickstart

        nas export runs/quickstart --pick best:clip_score --to small-model --format safetensors,onnx --quantise int8

        nas export runs/train/knee --format onnx   # graphs of what nas train trained
    """
    from nas import export as exporting
    from nas import launch

    if quantise not in (None, "int8"):
        raise InputError(f"--quantise {quantise}: expected int8")
    if (run / "training.yaml").exists():
        folder = exporting.add_formats(run, _words(format), _words(precision), quantise is not None)
    else:
        run_ = launch.find_run(run)
        folder = exporting.export(run_, pick, to, _words(format), _words(precision), quantise is not None)
    typer.echo(f"wrote {folder}; draw with: nas sample {folder} 'red heart, noto'")


def _words(given: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in given.split(",") if word.strip()]


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A folder that `nas export` wrote.")],
    captions: Annotated[list[str], typer.Argument(help="What to draw, one picture each.")],
    seed: Annotated[int, typer.Option(help="Chooses the initial noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("samples.png"),
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Solver steps; default as in the study.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; default as in the study.")] = None,
    runtime: Annotated[str, typer.Option(help="auto | pytorch | onnxruntime | executorch")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32 | fp16 | int8, where the export has it.")] = None,
) -> None:
    """Draw captions with an exported model, on the runtime of any of its formats.

    Examples:

        nas sample runs/quickstart/2026-01-01_10-00-00/export/knee "red heart, noto" "pizza, twemoji"

        nas sample small-model "red heart, noto" --runtime onnxruntime --steps 5
    """
    from nas import drawing

    for note in drawing.sample(model, captions, seed, out, steps, guidance, runtime, precision):
        typer.echo(f"note: {note}")
    typer.echo(f"wrote {out}")


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="A folder that `nas export` or `nas train` wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7860,
    runtime: Annotated[str, typer.Option(help="auto | pytorch | onnxruntime | executorch")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32 | fp16 | int8, where the export has it.")] = None,
) -> None:
    """A page at 127.0.0.1 that draws from an export: caption, steps, guidance, seed, and the time each part took.

    Example: nas serve runs/quickstart/2026-01-01_10-00-00/export/knee
    """
    from nas import serve as serving

    serving.serve(model, port, runtime, precision, lambda line: print(line, flush=True))


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
def verify(
    model: Annotated[Path, typer.Argument(help="A folder that `nas export` wrote.")],
    cache: Annotated[Path, typer.Option(help="Where encoded data is kept.")] = Path("runs/.cache"),
) -> None:
    """Train an exported architecture again from its recorded seeds; exit 1 when its scores leave the recorded intervals.

    Example: nas verify runs/quickstart/2026-01-01_10-00-00/export/knee
    """
    from nas import verify as verifying

    found = verifying.verify(model, cache)
    _print_grid(*verifying.grid(found))
    if not all(one.agrees for one in found):
        raise typer.Exit(1)


@app.command()
def train(
    what: Annotated[str, typer.Argument(help="A folder that `nas export` wrote, a preset, or an architecture's YAML.")],
    data: Annotated[
        str | None,
        typer.Option(help="Shards (.tar, a folder of them, a pattern), a folder with metadata.jsonl, or {name: ...}."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML; default MobileDiffusion's (--dry-run prints it).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default runs/train/NAME.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="GPUs of this machine, or processes without one.")] = 1,
    strategy: Annotated[str, typer.Option(help="Lightning's: auto | ddp.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32 | bf16; default the recipe's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print the settings, write nothing.")] = False,
    set_: Overrides = [],  # noqa: B006 (typer reads the default)
) -> None:
    """Train a network at deploy scale on your pictures: stages of resolution, moving average, several GPUs.

    The same command continues an interrupted training. The folder is an export: nas sample draws from it.

    Examples:

        nas train runs/quickstart/2026-01-01_10-00-00/export/knee --data "laion/{00000..00099}.tar" --devices 8

        nas train mobilediffusion --data my-pictures --recipe recipe.yaml --out my-model
    """
    from nas import deploy_training
    from nas.interruption import Interrupted
    from nas.training import Hardware

    overrides = [*set_, *([f"precision={precision}"] if precision is not None else [])]
    try:
        deploy_training.start(
            what,
            recipe,
            overrides,
            data,
            out,
            Hardware(devices, strategy),
            dry_run,
            lambda line: print(line, flush=True),
        )
    except Interrupted:
        raise typer.Exit(EXIT_CODE) from None


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


@app.command()
def latency(
    what: Annotated[
        list[str], typer.Argument(help="Presets, architecture YAML files, exports; with --blocks, one search space.")
    ],
    runtime: Annotated[str, typer.Option(help="Any of eager, compile, onnxruntime, executorch.")] = "eager",
    threads: Annotated[int, typer.Option(min=1, help="Threads of one call.")] = 1,
    image_size: Annotated[int, typer.Option(help="Pixels along a side, for architectures.")] = 512,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps; default 1, or an export's own.")] = None,
    decoder: Annotated[str, typer.Option(help="sd15-decoder, or a YAML file with one.")] = "sd15-decoder",
    repeats: Annotated[int, typer.Option(min=1, help="Calls behind a median.")] = 5,
    csv: Annotated[Path | None, typer.Option(help="Add the rows to this table.")] = None,
    blocks: Annotated[
        Path | None,
        typer.Option(help="Measure the blocks of a space instead, into this JSON: deploy.latency of a study."),
    ] = None,
) -> None:
    """Measure text encoder, denoiser step and decoder on runtimes of this machine, one picture at a time.

    Architectures are measured at deploy scale with random weights.

    Examples:

        nas latency mobilediffusion bk-sdm-tiny --runtime eager,onnxruntime --csv studies/table4/results.csv

        nas latency mobilediffusion --blocks runs/blocks.json
    """
    from nas import latency as timing

    if blocks is not None:
        return _measure_blocks(what, blocks, image_size, threads, repeats)
    rows = []
    for name in what:
        subject = timing.subject(name, image_size, steps, decoder)
        for word in _words(runtime):
            rows.append(timing.measure(subject, word, threads, repeats))
            if csv:
                timing.write_csv(rows[-1:], csv)
    _print_grid(*timing.grid(rows))


def _measure_blocks(what: list[str], to: Path, image_size: int, threads: int, repeats: int) -> None:
    """The latency table of one search space."""
    from nas import block_latency, published
    from nas.space import SearchSpace

    if len(what) != 1:
        raise InputError(f"--blocks: expected one search space, got {len(what)} names")
    size = published.latent_size(image_size)
    wanted = block_latency.of_space(SearchSpace.load(what[0]), size, published.TEXT_TOKENS)
    block_latency.measure(wanted, size, published.TEXT_TOKENS, threads, repeats).save(to)
    typer.echo(f"wrote {to}: {len(wanted)} blocks")


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

        nas run studies/quickstart --set training.init=runs/supernets/mobilediffusion.safetensors
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

    The same command goes on where it was interrupted, and adds anchors or seeds to a finished table.

    Examples:

        nas trust studies/quickstart

        nas trust studies/quickstart --anchors 24 --seeds 3 --long 20

        nas trust studies/quickstart --long 0    # only how well two seeds of the brief trials agree
    """
    from nas import preload

    preload.start()
    from nas import anchors as measuring
    from nas import trust as trusting

    plan = measuring.Plan(anchors, seeds, long)
    folder = study if study.is_dir() else study.parent
    found = measuring.run(study, set_, plan, out or Path("runs/trust") / folder.name, store, workers, train)
    _print_grid(*trusting.summary(found))


@app.command()
def replay(
    table: Annotated[Path, typer.Argument(help="A folder with curves.csv and the study.yaml it was recorded with.")],
    rules: Annotated[
        str, typer.Option(help="halving, slope, median, none, multi_metric (Optuna Hub's), by commas.")
    ] = "halving,slope,median,none,multi_metric",
    samplers: Annotated[
        str, typer.Option(help="Also samplers: random, tpe, nsga2, gp, optuna, optuna_charged, by commas.")
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
            help="A setting of `stopping`; repeatable. Unless set, rungs are the table's.",
        ),
    ] = [],  # noqa: B006 (typer reads the default)
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose rungs, keep and min_peers on one half, report them on the other.")
    ] = False,
    lost: Annotated[float, typer.Option(help="With --tune: share of the hypervolume that may be lost.")] = 0.02,
    record: Annotated[Path | None, typer.Option(metavar="RUN", help="First write curves.csv from this run.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables and the picture; default TABLE.")] = None,
) -> None:
    """Replay rules of early stopping, and samplers, over recorded learning curves: seconds instead of training.

    Examples:

        nas replay studies/stopping_replay --rules halving,slope

        nas replay studies/stopping_replay --samplers random,tpe,nsga2,gp --set keep=0.4
    """
    from nas import launch
    from nas import replay as replaying

    named = tuple(filter(None, rules.split(","))), tuple(filter(None, samplers.split(",")))
    plan = replaying.Plan(*named, shuffles, repeats, workers, tuple(set_), tune, lost)
    replaying.run(table, plan, out, launch.find_run(record).path if record else None)


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


def _leave(code: int) -> NoReturn:
    """End without the seconds that Python takes to free what is loaded: the scheduler that said so does not wait."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Entry point: an InputError is one line and exit code 2; an interrupt, or a full disk, says how to go on."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        print(f"nas: {error}", file=sys.stderr)
        sys.exit(2)
    except Terminated:
        print("\nnas: told to end; the same command goes on from here", file=sys.stderr)
        _leave(EXIT_CODE)
    except (OSError, DiskTrouble) as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        print(
            f"nas: {trouble}; nothing finished is lost, the same command goes on once that is repaired", file=sys.stderr
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nnas: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
