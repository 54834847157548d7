"""Commands about one trained network: export, draw, train at scale, time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands.grid import print_grid
from nas.commands.options import Overrides, Run_, refuse_beside
from nas.errors import InputError

PANEL = "Models"
app = typer.Typer()


def _words(given: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in given.split(",") if word.strip()]


def _say(line: str) -> None:
    """A line that is seen at once, in a file too."""
    print(line, flush=True)


@app.command(rich_help_panel=PANEL)
def export(
    run: Run_,
    pick: Annotated[
        str | None, typer.Option(help="knee | knee:COLUMN,COLUMN | best:COLUMN | trial:NUMBER; default knee.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export/PICK.")] = None,
    format: Annotated[
        str, typer.Option(help="Any of yaml, safetensors, onnx, executorch, coreml.")
    ] = "yaml,safetensors",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or both, for formats that hold graphs.")] = "fp32",
    quantise: Annotated[
        str | None, typer.Option(help="int8: onnx, executorch also in 8 bits, with the loss of quality.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="YAML with the sampling plan to draw by, such as `nas schedule` writes; default the study's."
        ),
    ] = None,
    decoder: Annotated[
        Path | None, typer.Option(help="A smaller image decoder, such as `nas decoder` writes; default the study's.")
    ] = None,
) -> None:
    """Write one trial's architecture at deploy scale, its proxy with trained weights, and both for other runtimes.

    Every graph is compared with PyTorch on the spot; README.md is a model card. draw.py draws from the folder without nas.

    Examples:

        nas export runs/quickstart

        nas export runs/quickstart --pick best:prompt_accuracy --to small-model --format safetensors,onnx --quantise int8

        nas export runs/train/knee --format onnx   # graphs of what nas train trained
    """
    import shlex

    from nas import api
    from nas.deploy import drawer

    folder = api.export(
        run,
        pick=pick,
        to=to,
        formats=_words(format),
        precisions=_words(precision),
        quantise=quantise,
        plan=plan,
        decoder=decoder,
    )
    typer.echo(f"wrote {folder}; draw with: nas sample {folder} {shlex.quote(drawer.examples(folder)[0])}")


@app.command(rich_help_panel=PANEL)
def sample(
    model: Annotated[Path, typer.Argument(help="A folder that `nas export` wrote.")],
    captions: Annotated[list[str], typer.Argument(help="What to draw, one picture each.")],
    seed: Annotated[int, typer.Option(help="Chooses the initial noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The picture to write, of the kind its ending says.")] = Path("samples.png"),
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Solver steps; default as in the study.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, max=1000, help="Guidance scale; default as in the study.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="auto | pytorch | onnxruntime | executorch")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32 | fp16 | int8, where the export has it.")] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture to draw variations of, by its embedding; several are fused. For models told of pictures."
        ),
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="Of each picture's embedding in their sum.")] = None,
    edit: Annotated[
        Path | None, typer.Option(help="A picture to start from: image-to-image, or with --mask inpainting.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where --edit is drawn anew; where it is black, the picture stays.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1, help="Share of the steps that --edit takes: 0.6, or with --mask 1, unless given."
        ),
    ] = None,
) -> None:
    """Draw captions with an exported model, on the runtime of any of its formats.

    Examples:

        nas sample runs/quickstart/2026-01-01_10-00-00/export/knee "a large red circle on white" "a small blue cross on grey"

        nas sample small-model "a large red circle on white" --runtime onnxruntime --steps 5

        nas sample small-model "a large blue circle on white" --edit circle.png --strength 0.5 --steps 10
    """
    from nas.deploy import drawer
    from nas.deploy.shown import Start

    told = drawer.sample(
        model,
        captions,
        seed,
        out,
        steps,
        guidance,
        runtime,
        precision,
        picture or (),
        weight or (),
        Start.of(edit, mask, strength),
    )
    for note in told:
        typer.echo(f"note: {note}")
    typer.echo(f"wrote {out}")


@app.command(rich_help_panel=PANEL)
def serve(
    model: Annotated[Path, typer.Argument(help="A folder that `nas export` or `nas train` wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7860,
    runtime: Annotated[str, typer.Option(help="auto | pytorch | onnxruntime | executorch")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32 | fp16 | int8, where the export has it.")] = None,
) -> None:
    """A page at 127.0.0.1 that draws from an export: caption, steps, guidance, seed, runtime, and the time each part took.

    Example: nas serve runs/quickstart/2026-01-01_10-00-00/export/knee
    """
    from nas.deploy import serve as serving

    serving.serve(model, port, runtime, precision, _say)


@app.command(rich_help_panel=PANEL)
def sweep(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, a study's folder in runs/, or an exported folder.")
    ],
    pick: Annotated[
        list[str],
        typer.Option(help="base | knee | best:COLUMN | trial:NUMBER; repeatable. Default: knee, or every cell."),
    ] = [],  # noqa: B006 (typer reads the default)
    scales: Annotated[
        str | None,
        typer.Option(
            help="Guidance scales, with commas between them; default 1,2,3,5,7.5, with --set the network's own."
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Also draw in these numbers of steps, with commas between them.")
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            "-s",
            metavar="FIELD=VALUE,VALUE",
            help="Values of a field of `sampling`; repeatable. Each network is drawn by its own plan with every combination.",
        ),
    ] = [],  # noqa: B006 (typer reads the default)
    repeats: Annotated[int, typer.Option(min=1, help="Of every cell of an ablation, how many repeats.")] = 1,
) -> None:
    """Draw trained networks in many ways: a distance (fid, kid, mind) against a score of captions (clip_score, prompt_accuracy).

    Without --set it sweeps over guidance scales, as trained and in one step. Writes guidance.csv and guidance.png into the run;
    the same command goes on where it was interrupted.

    Examples:

        nas sweep runs/ufogen_lora

        nas sweep runs/ufogen_lora --scales 1,1.5,2,3 --repeats 3

        nas sweep runs/ufogen_lora --scales 1 --steps 1,2,4

        nas sweep runs/ufogen_lora --pick base --set solver=ddim,dpm++,unipc,heun --set steps=2,4,6,10

        nas sweep runs/ufogen_lora --pick base --set spacing=leading,trailing --set "guidance_interval=[0, 999],[200, 799]"
    """
    from nas.report import page
    from nas.study import sweep as sweeping
    from nas.study import sweep_plans

    ways = sweep_plans.ways_of(scales, steps, set_)
    found, picks = sweeping.opened(run, pick)
    sweeping.sweep(found, picks, ways, repeats, typer.echo)
    typer.echo(f"wrote {found.path / sweeping.PICTURE}; report: {page.write(found.path)}")


@app.command(rich_help_panel=PANEL)
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

        nas train runs/quickstart/2026-01-01_10-00-00/export/knee --recipe recipe.yaml --data "laion/{00000..00099}.tar"

        nas train mobilediffusion --data my-pictures --recipe recipe.yaml --out my-model
    """
    from nas.full_training import loop
    from nas.training.loop import Hardware

    overrides = [*set_, *([f"precision={precision}"] if precision is not None else [])]
    hardware = Hardware(devices, strategy)
    loop.start(what, recipe, overrides, data, out, hardware, dry_run, _say)


@app.command(rich_help_panel=PANEL)
def verify(
    model: Annotated[Path, typer.Argument(help="A folder that `nas export` wrote.")],
    cache: Annotated[Path, typer.Option(help="Where encoded data is kept.")] = Path("runs/.cache"),
) -> None:
    """Train an exported architecture again from its recorded seeds; exit 1 when its scores leave the recorded intervals.

    Example: nas verify runs/quickstart/2026-01-01_10-00-00/export/knee
    """
    from nas.deploy import verify as verifying

    found = verifying.verify(model, cache)
    print_grid(*verifying.grid(found))
    if not all(one.agrees for one in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
def score(
    what: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER|EXPORT...", help="Folders of pictures, or folders that nas export wrote."),
    ],
    metrics: Annotated[
        str, typer.Option(help="Names in nas/metrics, by commas; with settings as {name: fid, features: inception}.")
    ],
    captions: Annotated[
        Path | None,
        typer.Option(
            help="A caption a line, of a folder's pictures by name, or to draw. Default metadata.jsonl, or held out."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Real pictures: a folder, or a data set as `nas train --data` takes it. Default an export's own."
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="How many, at most; an export draws 256 by default.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Pixels along a side; default the first picture's shorter side.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of an export's noise.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a score, one a line.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this file as well.")] = None,
    cache: Annotated[Path, typer.Option(help="Where features of a data set are kept.")] = Path("runs/.cache"),
) -> None:
    """Score any pictures by any metrics: those of a folder, or what an export draws.

    Examples:

        nas score my-pictures --metrics vendi,clip_score

        nas score my-pictures --metrics mind,precision_recall --reference emoji --csv runs/scores.csv

        nas score runs/quickstart/2026-01-01_10-00-00/export/knee --metrics scene_accuracy,mind --images 512 --json
    """
    from functools import partial

    from nas.deploy import score as scoring
    from nas.disk import files

    say = partial(typer.echo, err=True)
    rows = scoring.score(what, scoring.Asked(metrics, captions, reference, images, size, seed, cache), say)
    if csv:
        files.write_csv(csv, [row.plain() for row in rows])
    if json:
        typer.echo("\n".join(scoring.lines(rows)))
    else:
        print_grid(*scoring.grid(rows))


def _measure_blocks(what: list[str], to: Path, image_size: int, threads: int, repeats: int) -> None:
    """The latency table of one search space."""
    from nas import menu
    from nas.deploy.speed import block_latency
    from nas.space import published
    from nas.space.search_space import SearchSpace

    if len(what) != 1:
        raise InputError(f"--blocks: expected one search space, got {len(what)} names")
    size = published.latent_size(image_size)
    space = SearchSpace.load(what[0])
    wanted = block_latency.of_space(space, size, published.TEXT_TOKENS)
    build = menu.pick(*space.family).build_block
    block_latency.measure(wanted, build, size, published.TEXT_TOKENS, threads, repeats).save(to)
    typer.echo(f"wrote {to}: {len(wanted)} blocks")


@app.command(rich_help_panel=PANEL)
def latency(
    context: typer.Context,
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

        nas latency mobilediffusion bk-sdm-tiny --runtime eager,onnxruntime --csv runs/latency.csv

        nas latency mobilediffusion --blocks runs/blocks.json
    """
    from nas.deploy.speed import latency as timing
    from nas.deploy.speed import latency_rows

    if blocks is not None:
        refuse_beside(context, "--blocks", ("runtime", "steps", "decoder", "csv"))
        return _measure_blocks(what, blocks, image_size, threads, repeats)
    rows = []
    for name in what:
        subject = timing.subject(name, image_size, steps, decoder)
        for word in _words(runtime):
            rows.append(timing.measure(subject, word, threads, repeats))
            if csv:
                latency_rows.write_csv(rows[-1:], csv)
    print_grid(*latency_rows.grid(rows))
