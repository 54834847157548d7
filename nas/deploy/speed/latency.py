"""How long the networks behind a picture take on this machine: text encoder, denoiser step, decoder, and all together.

The columns are those of table 4 of the MobileDiffusion paper (arXiv 2311.16567). A time is the median over calls on one
picture, after a warm-up, with its quartiles; `*_cpu_ms` is the processor time of this process, which other programs on the
machine disturb less. Rows measured on different devices are never put in one table.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import menu
from nas.deploy import drawer, exporters, graphs, image_decoder
from nas.deploy.contents import export_folder
from nas.deploy.drawer import PYTORCH
from nas.deploy.graphs import as_tuple
from nas.deploy.speed.latency_rows import Row
from nas.diffusion.plan import AUTOREGRESSIVE, Plan
from nas.documents.document import Document
from nas.errors import InputError
from nas.machine import device
from nas.networks import conditioning
from nas.networks.conditioning import clip
from nas.networks.decoders import kl
from nas.networks.decoders.kl import stored
from nas.space import published

if TYPE_CHECKING:
    from nas.deploy.exporters import Network
    from nas.deploy.graphs import Graph

EAGER, COMPILE = "eager", "compile"
TOWERS = {768: "ViT-L-14", 1024: "ViT-H-14"}  # width of its tokens -> an open_clip model
DECODER = "sd15-decoder"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, over repeats."""

    median_ms: float
    low_ms: float
    """First quartile."""
    high_ms: float
    """Third quartile."""
    cpu_ms: float
    """Median of the processor time."""


def timed(call: Callable[[], object], repeats: int, warmup: int = 1) -> Timing:
    """Times of `call` in wall and processor time."""
    spent: list[tuple[float, float]] = []
    for repeat in range(warmup + repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        if repeat >= warmup:
            spent.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    return summary(spent)


def summary(spent: Sequence[tuple[float, float]]) -> Timing:
    """Median and quartiles of (wall, processor) times in milliseconds."""
    import numpy as np

    low, median, high = np.quantile([wall for wall, _ in spent], [0.25, 0.5, 0.75])
    return Timing(float(median), float(low), float(high), statistics.median(cpu for _, cpu in spent))


def runtimes() -> list[str]:
    """Every runtime there is a format for."""
    return [EAGER, COMPILE, *(menu.pick("exporters", name).RUNTIME for name in menu.names("exporters"))]


def _format(runtime: str) -> str:
    """The format whose files it runs."""
    return next(name for name in menu.names("exporters") if runtime == menu.pick("exporters", name).RUNTIME)


def version(runtime: str) -> str:
    """The version of the package that runs it."""
    from importlib import metadata

    package = "torch" if runtime in (EAGER, COMPILE) else menu.pick("exporters", _format(runtime)).PACKAGES[-1]
    return f"{package} {metadata.version(package)}"


def on_runtime(graph: Graph, runtime: str, threads: int, scratch: Path, written: Path | None = None) -> Network:
    """The graph ready to run, from the file it was `written` to, or one in `scratch`.

    Raises InputError for an unknown runtime or one that is not installed.
    """

    offered = runtimes()
    if runtime not in offered:
        raise InputError(f"--runtime: unknown runtime {runtime!r}{menu.nearest(runtime, offered)}")
    if runtime == EAGER:
        return graph.run
    if runtime == COMPILE:
        return _compiled(graph)
    (module,) = exporters.require([_format(runtime)])
    network: Network = module.load(written or module.write(graph, scratch / graph.name, "fp32"), threads)
    return network


def _compiled(graph: Graph) -> Network:
    import torch

    compiled = torch.compile(graph.module, dynamic=False)

    def network(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return as_tuple(compiled(*inputs))

    return network


@dataclass(frozen=True)
class Keeping:
    """An export's plan that keeps units."""

    folder: Path
    plan: Plan

    def check(self, runtime: str) -> None:
        """Raises InputError for a runtime that the export keeps nothing on."""
        able = [EAGER, *(name for name in drawer.runtimes(self.folder) if name != PYTORCH)]
        if runtime not in able:
            raise InputError(
                f"--runtime: {runtime} cannot draw by the plan of {self.folder}; expected among {', '.join(able)}"
            )

    def timed(self, runtime: str, threads: int, repeats: int) -> Timing:
        """A call of the denoiser, as a mean over those of one picture, with what the solver takes."""
        import torch

        drawing = drawer.load(self.folder, PYTORCH if runtime == EAGER else runtime, "fp32", threads)
        text, null, noise = (
            drawing.encode(drawing.encoder.examples[:1]),
            drawing.unconditional(),
            torch.zeros(1, *drawing.latents),
        )
        found, calls = timed(partial(drawing.sample, noise, text, self.plan, null), repeats), self.plan.calls
        return Timing(*(value / calls for value in (found.median_ms, found.low_ms, found.high_ms, found.cpu_ms)))


@dataclass(frozen=True)
class Subject:
    """What is timed: three graphs, and how often the denoiser is called for one picture."""

    name: str
    weights: str
    image_size: int
    decoder: str
    steps: int
    graphs: tuple[Graph, ...]
    files: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """Of an export: by runtime and graph, what is written already, in fp32."""
    keeping: Keeping | None = None
    """Of a plan that keeps units: its calls of the denoiser are timed together, as they differ."""


def subject(what: str, image_size: int, steps: int | None, decoder: str = DECODER) -> Subject:
    """An export (a folder), or an architecture (a preset or a YAML file) at deploy scale with random weights.

    Raises InputError for anything else, and for an image size the network cannot take.
    """
    return _of_export(Path(what), steps) if Path(what).is_dir() else _of_architecture(what, image_size, steps, decoder)


def _of_export(folder: Path, steps: int | None) -> Subject:

    drawer.read(folder)
    pipeline = export_folder.pipeline(folder)
    model = drawer.model(drawer.load_network(folder), pipeline, folder)
    plan = Plan(**pipeline["sampling"]).changed(steps)
    whole = plan.cache is not None or plan.solver == AUTOREGRESSIVE  # calls say nothing of what they cost
    keeping = Keeping(folder, plan) if whole else None
    size = model.graphs[2].run(model.graphs[2].random_inputs(1))[0].shape[-1]
    decoder = pipeline["autoencoder"]["name"]
    if (own := folder / image_decoder.FILE).is_file():
        decoder += f" ratio {stored.about(own, 'decoder')['ratio']}"
    return Subject(str(folder), "trained", size, decoder, plan.calls, model.graphs, _files(folder), keeping)


def _files(folder: Path) -> dict[str, dict[str, Path]]:

    held = drawer.read(folder)["formats"]
    return {
        menu.pick("exporters", name).RUNTIME: {
            part: folder / entry["file"] for part, entry in held[name]["fp32"]["networks"].items()
        }
        for name in menu.names("exporters")
        if "fp32" in held.get(name, {})
    }


def _of_architecture(what: str, image_size: int, steps: int | None, decoder: str) -> Subject:

    config = published.architecture(what)
    side = published.latent_size(image_size)
    latents = (config.latent_channels, side, side)
    try:
        config.cost(side, published.TEXT_TOKENS)
    except ValueError as error:
        raise InputError(f"{what}: {error}") from None
    text = (published.TEXT_TOKENS, config.text_width)
    made = (
        graphs.text_encoder(text_tower(config.text_width)),
        graphs.denoiser(config.build(), latents, text, config.pooled_width or config.text_width),
        graphs.decoder(_decoder(decoder, config.latent_channels), latents),
    )
    return Subject(what, "random", image_size, decoder, steps or 1, made)


def text_tower(width: int) -> Any:
    """CLIP's text encoder of this width with random weights. Raises InputError when no published one has it."""
    import open_clip

    if width not in TOWERS:
        raise InputError(f"text_width {width}: no text encoder of this width; expected {', '.join(map(str, TOWERS))}")
    model = clip.build(open_clip.get_model_config(TOWERS[width]) | {"vision_cfg": TINY_VISION})
    return conditioning.OpenClip.of(clip.frozen(model), open_clip.get_tokenizer(TOWERS[width]), 77)


TINY_VISION = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}  # is not run


def _decoder(name: str, latent_channels: int) -> Any:

    known = kl.presets()
    if name in known:
        return replace(known[name], latent_channels=latent_channels).build()
    if not name.endswith((".yaml", ".yml")):
        raise InputError(f"--decoder: unknown decoder {name!r}{menu.nearest(name, list(known))} (or a YAML file)")

    document = Document.read(Path(name))
    location = ("architecture",) if "architecture" in document.content else ()
    try:
        found = kl.Config.from_dict(document.content.get("architecture", document.content))
    except (ValueError, TypeError) as error:
        raise document.error(location, f"{error}; expected a decoder") from None
    return replace(found, latent_channels=latent_channels).build()


def measure(what: Subject, runtime: str, threads: int, repeats: int) -> Row:
    """One row: every network of the subject on one runtime, one picture at a time."""
    import torch

    if what.keeping is not None:
        what.keeping.check(runtime)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for graph in what.graphs:
                if what.keeping is not None and graph.name == "denoiser":
                    found = what.keeping.timed(runtime, threads, repeats)
                else:
                    written = what.files.get(runtime, {}).get(graph.name)
                    network = on_runtime(graph, runtime, threads, Path(scratch), written)
                    found = timed(partial(network, graph.random_inputs(1)), repeats)
                times |= {
                    f"{graph.name}_ms": found.median_ms,
                    f"{graph.name}_low_ms": found.low_ms,
                    f"{graph.name}_high_ms": found.high_ms,
                    f"{graph.name}_cpu_ms": found.cpu_ms,
                }
    finally:
        torch.set_num_threads(before)
    overall, cpu = (
        times[f"text_encoder_{unit}"] + what.steps * times[f"denoiser_{unit}"] + times[f"decoder_{unit}"]
        for unit in ("ms", "cpu_ms")
    )
    words, fingerprint = device()
    return Row(
        network=what.name,
        weights=what.weights,
        runtime=runtime,
        runtime_version=version(runtime),
        threads=threads,
        image_size=what.image_size,
        decoder=what.decoder,
        steps=what.steps,
        overall_ms=overall,
        overall_cpu_ms=cpu,
        repeats=repeats,
        load=os.getloadavg()[0],
        device=words,
        fingerprint=fingerprint,
        **times,
    )
