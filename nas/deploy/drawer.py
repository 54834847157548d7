"""Pictures from an exported folder, on the runtime of any of its formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nas import menu
from nas.deploy import exporters, graphs, imagination, step_graphs
from nas.deploy.contents import export_folder, wiring
from nas.deploy.shown import shown
from nas.deploy.step_graphs import ByStep, Step
from nas.diffusion import solvers
from nas.diffusion.plan import Plan
from nas.documents.document import Document
from nas.errors import InputError
from nas.networks import conditioning
from nas.networks.conditioning import Text, pictures
from nas.runs.pictures import check_name, save_grid
from nas.seeds import Noise
from nas.settings.entries import Entry
from nas.weights import checkpoints
from nas.weights.checkpoints import PROXY, TRAINED

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.deploy.exporters import Network
    from nas.deploy.graphs import Graph
    from nas.deploy.imagination import Imagination
    from nas.deploy.shown import Shown, Start
    from nas.diffusion.editing import Edit
    from nas.diffusion.plan import Plan
    from nas.networks.autoencoders import Autoencoder
    from nas.networks.conditioning import Text, TextEncoder

VERSION = 3  # of the folder. 2 had no draw.json; 1, which is refused, no image_size in a study's pipeline.yaml
READ = (2, VERSION)
PYTORCH = "pytorch"  # the runtime of `safetensors`


@dataclass(frozen=True)
class Drawer:
    """Text encoder, denoiser and decoder on one runtime, and the plan they draw by."""

    networks: Mapping[str, Network]
    """By the names of `nas.deploy.graphs`."""
    encoder: TextEncoder
    """Only its tokeniser is used."""
    latents: tuple[int, int, int]
    """Channels, height, width."""
    plan: Plan
    schedule: dict[str, Any]
    """Configuration of the noise schedule."""
    backbone: nn.Module | None = None
    """The denoiser's module on PyTorch, whose units a plan with a cache keeps."""
    steps: Sequence[Step] = ()
    """Of a plan with a cache, on a runtime of graphs: which network draws each, and what they hand on."""
    imagination: Imagination | None = None
    """The prior, where the denoiser is conditioned on embeddings of pictures; on PyTorch."""
    autoencoder: Autoencoder | None = None
    """What makes latents of pictures; on PyTorch."""

    def encode(self, captions: Sequence[str], noise: Tensor | None = None, image: Tensor | None = None) -> Text:
        """Captions as the denoiser reads them, float32; `noise` (B, E) is what a prior starts from, zeros where none is given.
        `image` (1, E) stands in for what the prior makes."""
        words = self._words(captions)
        if self.imagination is None:
            return words
        if image is not None:
            return self.imagination.told(words, image.expand(len(captions), -1), self._words([""]))
        noise = words.pooled.new_zeros(len(captions), self.imagination.width) if noise is None else noise
        return self.imagination.text(words, noise, self._words([""]))

    def unconditional(self) -> Text:
        """What guidance leads away from, one row."""
        empty = self._words([""])
        return empty if self.imagination is None else self.imagination.unconditional(empty)

    def _words(self, captions: Sequence[str]) -> Text:
        """Captions as the text encoder has them."""
        return Text(*self.networks["text_encoder"](tuple(self.encoder.tokenise(captions).values())))

    def denoise(self, latents: Tensor, time: Tensor, text: Text) -> Tensor:
        """The prediction (B, C, H, W) for latents of that shape at times (B,)."""
        return self.networks["denoiser"]((latents, time, *text))[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        return self.networks["decoder"]((latents,))[0].clamp(-1, 1)

    def draw(
        self,
        captions: Sequence[str],
        seed: int,
        steps: int | None = None,
        guidance: float | None = None,
        first: int = 0,
        image: Tensor | None = None,
        start: Shown | None = None,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]. Picture i, counted from `first`, depends on the seed and i, not on other captions.
        `image` as in `encode`; `start` is a picture that all begin with.

        Raises InputError when what comes out is not finite numbers.
        """
        import torch

        streams = [Noise.of_picture(seed, first + at) for at in range(len(captions))]
        noise = torch.stack([torch.from_numpy(one.draw(self.latents)) for one in streams])
        width = 0 if self.imagination is None else self.imagination.width
        imagined = torch.stack([torch.from_numpy(one.draw((width,))) for one in streams])
        plan = self.plan.changed(steps, guidance)
        edit = None if start is None else start.edit
        latents = self.sample(noise, self.encode(captions, imagined, image), plan, edit=edit)
        pictures = self.decode(latents) if start is None else start.pasted(self.decode(latents))
        if not (latents.isfinite().all() and pictures.isfinite().all()):
            raise InputError(
                f"with guidance {plan.guidance:g} in {plan.steps} steps the picture is not finite numbers; expected less "
                f"guidance, or weights that have not diverged"
            )
        return pictures

    def sample(
        self,
        noise: Tensor,
        text: Text,
        plan: Plan | None = None,
        null: Text | None = None,
        edit: Edit | None = None,
    ) -> Tensor:
        """Latents from noise (B, C, H, W) under embedded captions; `null` is what guidance leads away from, if it is at hand."""

        plan, null = plan or self.plan, self.unconditional() if null is None else null
        if plan.cache is not None and self.steps:
            by_step = ByStep(self.networks, self.steps, self.plan)
            return solvers.sample(by_step, plan, self.schedule, noise, text, null, by_step, edit)
        return solvers.sample(self.denoise, plan, self.schedule, noise, text, null, self.backbone, edit)

    def too_long(self, captions: Sequence[str]) -> list[str]:
        """A line for every caption of which the denoiser reads only the beginning."""
        counts = [(caption, self.encoder.token_count(caption)) for caption in captions]
        return [
            f"{caption!r} has {count} tokens, of which the first {self.encoder.length} are read"
            for caption, count in counts
            if count > self.encoder.length
        ]


@dataclass(frozen=True)
class Model:
    """What was trained together, in PyTorch."""

    pipeline: dict[str, Any]
    """The sections of a study a drawing depends on, and `image_size`."""
    graphs: tuple[Graph, ...]
    encoder: TextEncoder
    latents: tuple[int, int, int]
    autoencoder: Autoencoder
    imagination: Imagination | None = None

    def drawer(self, networks: Mapping[str, Network] | None = None, steps: Sequence[Step] = ()) -> Drawer:
        """It on its own runtime, or on another one that holds the networks."""

        plan, noise = Plan(**self.pipeline["sampling"]), schedule(self.pipeline)
        if networks is not None:
            return Drawer(networks, self.encoder, self.latents, plan, noise, steps=steps)
        own = {graph.name: graph.run for graph in self.graphs}
        return Drawer(
            own,
            self.encoder,
            self.latents,
            plan,
            noise,
            self.backbone,
            imagination=self.imagination,
            autoencoder=self.autoencoder,
        )

    def step_graphs(self) -> tuple[list[Graph], list[Step]]:
        """The graphs by which a runtime keeps the units that the plan keeps, and its steps; none for a plan without a cache.

        Raises InputError for a cache that extrapolates.
        """
        plan, config = Plan(**self.pipeline["sampling"]), cast(Any, self.backbone).config
        (denoiser,) = (graph for graph in self.graphs if graph.name == "denoiser")
        if plan.cache is None:
            return [], []
        return step_graphs.of_plan(denoiser, plan, config.units(self.latents[-1], self.encoder.length))

    @property
    def backbone(self) -> nn.Module:
        """The denoiser as it was trained."""
        (graph,) = (graph for graph in self.graphs if graph.name == "denoiser")
        return cast(graphs.Denoiser, graph.module).network


def schedule(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of the noise schedule that a denoiser was trained with."""

    entry = Entry(**pipeline["objective"])
    return dict(menu.pick("objectives", entry.name).noise_schedule(entry.settings("objectives")).config)


def model(network: nn.Module, pipeline: dict[str, Any], folder: Path) -> Model:
    """A denoiser with the frozen models its pipeline names, for pictures of the size it was trained on (`image_size`).

    `folder`: of the export, which holds the prior if there is one.
    """

    settings = conditioning.Conditioning(**pipeline["conditioning"])
    encoder = conditioning.load(settings)
    prior = imagination.load(folder, pipeline, encoder)
    pooled = pictures.width(settings.image, encoder.pooled_width, settings.image_width)
    entry = Entry(**pipeline["autoencoder"])
    autoencoder = menu.pick("autoencoders", entry.name).load(entry.settings("autoencoders"))
    side = pipeline["image_size"] // autoencoder.factor
    latents = (autoencoder.channels, side, side)
    notes = wiring.notes(wiring.table(encoder, latents, pipeline["image_size"]), schedule(pipeline))
    made = graphs.of_pipeline(network, encoder, autoencoder, side, pooled)
    return Model(
        pipeline, tuple(replace(graph, notes=notes[graph.name]) for graph in made), encoder, latents, autoencoder, prior
    )


def read(folder: Path) -> dict[str, Any]:
    """What an exported folder says of itself. Raises InputError for anything else, and for another version's."""
    path = folder / export_folder.MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder}: not an exported model (no {export_folder.MANIFEST}); make one with: nas export RUN"
        )
    manifest = export_folder.manifest(folder)
    if manifest["version"] not in READ:
        raise InputError(
            f"{path}: version {manifest['version']}, and this nas reads versions {', '.join(map(str, READ))}; "
            "export the run again"
        )
    return manifest


def examples(folder: Path) -> list[str]:
    """Captions to try an exported model with: some of those it was scored on; of one that was not, one that says nothing."""
    path = folder / "deploy.yaml"
    deploy = Document.read(path).content if path.is_file() else {}
    return list(deploy.get("captions") or ["a caption"])


def load_network(folder: Path) -> nn.Module:
    """The trained network of an exported folder, in eval mode. Raises InputError when its weights are another network's."""

    read(folder)
    held = next((folder / name for name in (TRAINED, PROXY) if (folder / name / "config.yaml").exists()), None)
    if held is None:
        raise InputError(f"{folder}: holds no weights for PyTorch; export again with --format safetensors")
    network: nn.Module = export_folder.architecture(held / "config.yaml").build()
    checkpoints.load_weights(network, held / "weights.safetensors", str(folder))
    return network.eval()


def runtimes(folder: Path) -> dict[str, str]:
    """Which runtimes an export has files for, and their format; PyTorch first."""
    held = read(folder)["formats"]
    found = {PYTORCH: "safetensors"} if "safetensors" in held else {}
    return found | {menu.pick("exporters", name).RUNTIME: name for name in held if name in menu.names("exporters")}


def choices(folder: Path) -> list[tuple[str, str]]:
    """(runtime, precision) of everything an export can be drawn with on this machine; PyTorch first."""

    held = read(folder)["formats"]
    here = {
        name: form
        for name, form in runtimes(folder).items()
        if name == PYTORCH or exporters.runs_here(menu.pick("exporters", form))
    }
    return [(name, precision) for name, form in here.items() for precision in held[form]]


def chosen(folder: Path, runtime: str = "auto", precision: str | None = None) -> tuple[str, str]:
    """The runtime and precision that are meant: `auto` is the first that has the precision, and no precision its first.

    Raises InputError naming what the export holds.
    """
    held, offered = read(folder)["formats"], runtimes(folder)
    if not offered:
        raise InputError(f"{folder}: holds an architecture without weights; export again with --format safetensors")
    if runtime not in ("auto", *offered):
        raise InputError(f"{folder}: nothing in it runs on {runtime!r}{menu.nearest(runtime, list(offered))}")
    tried = list(offered) if runtime == "auto" else [runtime]
    able = [(name, one) for name in tried for one in held[offered[name]] if precision in (None, one)]
    if not able:
        known = list(dict.fromkeys(one for name in tried for one in held[offered[name]]))
        lacks = "nothing in it is in" if runtime == "auto" else f"{offered[runtime]} has no"
        raise InputError(f"{folder}: {lacks} {precision!r}{menu.nearest(str(precision), known)}")
    return able[0]


def load(folder: Path, runtime: str = "auto", precision: str | None = None, threads: int | None = None) -> Drawer:
    """An exported model on a runtime and in a precision, as `chosen`. Raises InputError naming what the export holds."""
    name, precision = chosen(folder, runtime, precision)
    pipeline = export_folder.pipeline(folder)
    if name == PYTORCH:
        return model(load_network(folder), pipeline, folder).drawer()
    return _on_runtime(folder, runtimes(folder)[name], precision, pipeline, threads)


def _on_runtime(folder: Path, form: str, precision: str, pipeline: dict[str, Any], threads: int | None) -> Drawer:

    manifest = read(folder)
    (module,) = exporters.require([form])
    held = manifest["formats"][form][precision]["networks"]
    files = {part: folder / entry["file"] for part, entry in held.items()}
    return Drawer(
        {part: module.load(path, threads) for part, path in files.items()},
        conditioning.load(conditioning.Conditioning(**pipeline["conditioning"])),
        tuple(manifest["latents"]),
        Plan(**pipeline["sampling"]),
        schedule(pipeline),
        steps=[Step(**step) for step in manifest["formats"][form][precision].get("steps", ())],
    )


def check_captions(captions: Sequence[str]) -> None:
    """Raises InputError for a caption without words."""
    for number, caption in enumerate(captions, 1):
        if not caption.strip():
            raise InputError(f"caption {number}: {caption!r} is empty; expected words")


def sample(
    folder: Path,
    captions: Sequence[str],
    seed: int,
    out: Path,
    steps: int | None = None,
    guidance: float | None = None,
    runtime: str = "auto",
    precision: str | None = None,
    fused: Sequence[Path] = (),
    weights: Sequence[float] = (),
    start: Start | None = None,
) -> list[str]:
    """Draw captions and save them as one picture, at most eight to a row. Returns notes for whoever asked.

    `fused`: pictures whose embeddings, summed by `weights`, stand in for what the prior makes of the captions. `start`: a picture
    that all drawings start from.
    """

    check_name(out)
    check_captions(captions)
    drawer = load(folder, runtime, precision)
    image = _fused(drawer, folder, fused, weights)
    begun = None if start is None else _shown(drawer, folder, steps, start)
    drawn = drawer.draw(captions, seed, steps, guidance, image=image, start=begun)
    save_grid(drawn, out, columns=min(8, len(captions)))
    return drawer.too_long(captions)


def _shown(drawer: Drawer, folder: Path, steps: int | None, start: Start) -> Shown:
    """The picture that drawings start from. Raises InputError where they cannot."""
    if drawer.autoencoder is None:
        raise InputError(
            f"--edit: {folder}: only PyTorch has what makes latents of a picture; expected --runtime pytorch"
        )
    if start.mask is None and (steps or drawer.plan.steps) == 1:
        raise InputError("--edit: in one step nothing of the picture is left; expected --steps, or --mask")
    return shown(drawer.autoencoder, drawer.latents[-1] * drawer.autoencoder.factor, start)


def _fused(drawer: Drawer, folder: Path, fused: Sequence[Path], weights: Sequence[float]) -> Tensor | None:
    """The embedding (1, E) of pictures; None where there are none."""
    if not fused:
        if weights:
            raise InputError("--weight: of no picture; expected --picture too")
        return None
    if drawer.imagination is None:
        raise InputError(
            f"--picture: {folder} is told of captions alone; expected an export of a study with conditioning.image"
        )
    return drawer.imagination.fused(fused, weights)
