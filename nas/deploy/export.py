"""The winner as files: its architecture at deploy scale, its proxy with trained weights, and the same networks for other
runtimes, each compared with PyTorch before the export counts as done.

    README.md        the model card          export.yaml    what is there, how large, how close to PyTorch
    deploy.yaml      the architecture, its cost and scores
    pipeline.yaml    text encoder, autoencoder, objective, sampling plan and picture size it was trained with
    study.yaml       every setting of its training and scoring, for `nas verify`
    proxy/           config.yaml, weights.safetensors
    onnx/, ...       text_encoder, denoiser and decoder as graphs
    draw.py, ...     how to draw without nas (`nas.deploy.contents.standalone`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nas import menu
from nas.analysis import picking, results
from nas.deploy import drawer, exporters, graphs, image_decoder, imagination, verify
from nas.deploy.contents import export_folder, model_card, plan_file, standalone, target
from nas.deploy.int8 import export as int8
from nas.diffusion.plan import Plan
from nas.disk.files import write_yaml
from nas.errors import ArgumentError, InputError
from nas.networks import backbones
from nas.runs import description
from nas.runs.directory import RunDirectory
from nas.settings import design, plan_axes
from nas.settings.study import Study
from nas.trial.bench import Bench
from nas.weights import checkpoints

if TYPE_CHECKING:
    from types import ModuleType

    from nas.deploy.exporters import Network
    from nas.settings.study import Study

Say = Callable[[str], None]
PIPELINE = ("conditioning", "autoencoder", "sampling", "objective")  # sections of the study a drawing depends on
FILES = ("yaml", "safetensors")  # formats without a graph
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}  # largest error of an output over its largest number
PICTURE_TOLERANCE = {"fp32": 2 / 255, "fp16": 32 / 255}  # mean difference of pixels in [-1, 1]: 1 and 16 levels of 256
TRIED_BATCH = 3  # another batch than the one that was traced
TRIED_CAPTIONS = 4


@dataclass(frozen=True)
class Picked:
    """A trial that is exported."""

    run: RunDirectory
    how: str
    record: Mapping[str, Any]
    resolved: dict[str, Any]
    """The run's settings, with what the trial's cell changed in them."""
    conditions: Mapping[str, Any] | None = None
    """What its scores depend on, by column, where that is not as in the run."""

    @property
    def weights(self) -> Path:
        return self.run.trial(self.record["trial"]) / "weights.safetensors"

    @property
    def study(self) -> Study:
        return Study.model_validate({name: value for name, value in self.resolved.items() if name != "provenance"})

    @property
    def pipeline(self) -> dict[str, Any]:
        """What a drawing depends on."""
        asked = (*PIPELINE, "prior") if "prior" in self.resolved else PIPELINE
        sections = {section: self.resolved[section] for section in asked}
        return {**sections, "image_size": self.resolved["dataset"]["image_size"]}


def pick_trial(run: RunDirectory, pick: str) -> Picked:
    """The trial `pick` names. Raises InputError when it is not there or was not trained."""
    resolved = description.resolved(run.path)
    number = picking.pick(results.load(run.path), results.objectives(resolved), pick)
    record = run.records()[number]
    picked = Picked(run, pick, record, _of_cell(resolved, record))
    if not picked.weights.exists():
        raise InputError(f"{run.path}: trial {number} ({record['state'].replace('_', ' ')}) has no weights")
    return picked


def _of_cell(resolved: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    if not record.get("settings"):
        return resolved
    study = Study.model_validate({name: value for name, value in resolved.items() if name != "provenance"})
    return {**resolved, **design.changed(study, record["settings"]).resolved()}


def export(
    run: RunDirectory,
    pick: str,
    to: Path | None = None,
    formats: Sequence[str] = FILES,
    precisions: Sequence[str] = ("fp32",),
    quantised: bool = False,
    say: Say = lambda line: None,
    plan: Path | None = None,
    decoder: Path | None = None,
) -> Path:
    """Write the picked trial to a folder and return it; `deploy.yaml` and the model card are always there.

    `quantised`: also as 8-bit integers, in the formats that have them, with size, speed and the study's own scores before
    and after. `say` is told what is done, before it is. `plan`: a file with the sampling plan to draw by in place of the
    study's. `decoder`: what `nas decoder` made, in place of the autoencoder's own. The scores are then of pictures drawn so.

    Raises InputError when the pick or a format is not there, when the folder holds anything but an export, when a format's
    networks differ from PyTorch's by more than TOLERANCE, for a plan that does not fit the network or a format, and for a
    decoder of other latents.
    """

    modules = check_formats(formats, precisions)
    if quantised:
        int8.check(modules, precisions)
    picked = pick_trial(run, pick)
    folder = to or run.path / "export" / pick.replace(":", "-")
    target.check(folder)
    if plan is not None or decoder is not None:
        picked = _changed(picked, plan, decoder, modules, say)
    plan_file.check_formats(Plan(**picked.resolved["sampling"]), modules, quantised)
    imagination.check_formats(picked.pipeline, modules)
    target.empty(folder, picked.resolved)
    write_yaml(folder / "deploy.yaml", _deploy(picked))
    write_yaml(folder / "pipeline.yaml", image_decoder.carried(picked.pipeline))
    write_yaml(folder / "study.yaml", image_decoder.carried(picked.resolved))
    manifest: dict[str, Any] = {"version": drawer.VERSION, "nas": _version(), "formats": {}}
    if notes := image_decoder.put(folder, picked.resolved):
        manifest["notes"] = notes
    if "safetensors" in formats:
        manifest["formats"]["safetensors"] = _proxy(picked, folder)
        if imagination.asked(picked.pipeline):
            say("the prior: loading the study's data")
            prior = entry_of(folder, imagination.write(Bench(picked.study, picked.run.cache), folder))
            manifest["formats"]["safetensors"]["fp32"]["networks"]["prior"] = prior
    if manifest["formats"] or modules:
        say(f"loading trial {picked.record['trial']}, its text encoder and its autoencoder")
        model = drawer.model(_network(picked), picked.pipeline, folder)
        manifest["latents"] = list(model.latents)
        captions = _captions(run) or model.encoder.examples[:TRIED_CAPTIONS]
        _add_graphs(manifest, model, modules, precisions, folder, captions, say)
        if quantised:
            say("int8: preparing the study's data and metrics")
            bench = Bench(picked.study, picked.run.cache)
            int8.add(manifest, model, modules, folder, bench, captions, say)
        if model.imagination is None:
            for line in standalone.write(folder, model.encoder, model.latents, model.pipeline, manifest["formats"]):
                say(line)
    write_yaml(folder / export_folder.MANIFEST, manifest)
    write_card(folder, picked)
    return folder


def _changed(
    picked: Picked, plan: Path | None, decoder: Path | None, modules: Mapping[str, ModuleType], say: Say
) -> Picked:
    """The trial with another sampling plan or image decoder, and with the scores of what it draws so."""
    resolved, record = picked.resolved, picked.record
    if decoder is not None:
        resolved = image_decoder.chosen(resolved, decoder)
    if plan is not None:
        resolved = {**resolved, "sampling": plan_file.read(plan).model_dump(mode="json")}
        record = {**record, **plan_axes.without(record)}
    changed = replace(picked, resolved=resolved)
    plan_file.check_formats(changed.study.sampling, modules)
    bench, network = Bench(changed.study, picked.run.cache), _network(picked)
    if plan is not None:
        plan_file.check(changed.study.sampling, network, bench, str(plan))
    say(f"scoring trial {record['trial']}, drawn by {' and '.join(str(path) for path in (plan, decoder) if path)}")
    *earlier, last = record["rungs"]
    last = {**last, "metrics": bench.score(network, drawer.schedule(changed.pipeline)).metrics}
    return replace(changed, record={**record, "rungs": [*earlier, last]}, conditions=bench.conditions())


def add_formats(
    folder: Path,
    formats: Sequence[str],
    precisions: Sequence[str] = ("fp32",),
    quantised: bool = False,
    say: Say = lambda line: None,
) -> Path:
    """Write the graphs of a network that `nas train` trained beside its weights; return the folder.

    Raises InputError as `export` does, and for int8, whose loss is told in the scores of a study.
    """

    modules = check_formats(formats, precisions)
    if quantised:
        raise ArgumentError(f"quantise int8: {folder} is no trial of a study, whose scores would tell what int8 costs")
    manifest = drawer.read(folder)
    pipeline = export_folder.pipeline(folder)
    say("loading the network, its text encoder and its autoencoder")
    plan_file.check_formats(Plan(**pipeline["sampling"]), modules)
    model = drawer.model(drawer.load_network(folder), pipeline, folder)
    _add_graphs(manifest, model, modules, precisions, folder, model.encoder.examples[:2], say)
    for line in standalone.write(folder, model.encoder, model.latents, pipeline, manifest["formats"]):
        say(line)
    manifest["version"] = drawer.VERSION
    write_yaml(folder / export_folder.MANIFEST, manifest)
    model_card.write_card(folder)
    return folder


def check_formats(formats: Sequence[str], precisions: Sequence[str]) -> dict[str, ModuleType]:
    """The modules behind the formats that hold graphs. Raises InputError with the nearest valid word."""
    offered = [*FILES, *menu.names("exporters")]
    for name in formats:
        if name not in offered:
            raise ArgumentError(f"format: unknown format {name!r}{menu.nearest(name, offered)}")
    for precision in precisions:
        if precision not in TOLERANCE:
            raise ArgumentError(f"precision: unknown {precision!r}{menu.nearest(precision, list(TOLERANCE))}")
    names = [name for name in formats if name not in FILES]
    found = dict(zip(names, exporters.require(names), strict=True))
    for name, module in found.items():
        if not set(precisions) & set(module.PRECISIONS):
            raise ArgumentError(f"precision: format {name} has {', '.join(module.PRECISIONS)}")
    return found


def _network(picked: Picked) -> Any:

    network = backbones.from_dict(picked.record["proxy"]).build()
    checkpoints.load_weights(network, picked.weights, str(picked.run.path))
    return network.eval()


def _proxy(picked: Picked, folder: Path) -> dict[str, Any]:
    proxy = folder / checkpoints.PROXY
    proxy.mkdir(exist_ok=True)
    write_yaml(proxy / "config.yaml", picked.record["proxy"])
    weights = proxy / "weights.safetensors"
    weights.write_bytes(picked.weights.read_bytes())
    return {"fp32": {"networks": {"denoiser": entry_of(folder, weights)}}}


def _add_graphs(
    manifest: dict[str, Any],
    model: drawer.Model,
    modules: Mapping[str, ModuleType],
    precisions: Sequence[str],
    folder: Path,
    captions: Sequence[str],
    say: Say,
) -> None:
    """Write every format in every precision it has, and list them in the manifest."""
    for name, module in modules.items():
        chosen = [precision for precision in precisions if precision in module.PRECISIONS]
        made = {one: _graphs(model, module, folder, name, one, captions, say) for one in chosen}
        manifest["formats"][name] = {**manifest["formats"].get(name, {}), **made}


def _graphs(
    model: drawer.Model, module: ModuleType, folder: Path, name: str, precision: str, captions: Sequence[str], say: Say
) -> dict[str, Any]:
    """Write the networks in one format, and compare each, and the pictures they draw together, with PyTorch."""

    networks: dict[str, Network] = {}
    entries: dict[str, Any] = {}
    by_step, steps = model.step_graphs()
    for graph in (*model.graphs, *by_step):
        say(f"{name} {precision}: {graph.name.replace('_', ' ')}, written and compared with PyTorch")
        stem = graph.name if precision == "fp32" else f"{graph.name}.{precision}"
        path = module.write(graph, folder / name / stem, precision)
        entries[graph.name] = entry_of(folder, path)
        try:
            networks[graph.name] = module.load(path)
        except exporters.NoRuntime as reason:
            entries[graph.name]["not_run"] = str(reason)
            continue
        inputs = graph.random_inputs(TRIED_BATCH, seed=1)
        error = graphs.relative_error(networks[graph.name](inputs), graph.run(inputs))
        entries[graph.name]["max_relative_error"] = error
        if not error <= TOLERANCE[precision]:
            raise InputError(
                f"format {name}: {graph.name} in {precision} differs from PyTorch by {error:.2g} of its largest output; "
                f"expected at most {TOLERANCE[precision]:g}"
            )
    described: dict[str, Any] = {"networks": entries, "tolerance": TOLERANCE[precision]}
    if steps:
        described["steps"] = [asdict(step) for step in steps]
    if len(networks) == len(entries):
        say(f"{name} {precision}: {len(captions)} pictures, drawn here and with PyTorch")
        described["pictures"] = compare_pictures(model.drawer(), model.drawer(networks, steps), captions)
        if not described["pictures"]["mean_difference"] <= PICTURE_TOLERANCE[precision]:
            raise InputError(f"format {name}: pictures in {precision} differ from PyTorch's: {described['pictures']}")
    return described


def compare_pictures(expected: drawer.Drawer, found: drawer.Drawer, captions: Sequence[str]) -> dict[str, Any]:
    """The same captions and noise on two runtimes: differences of pixels in [-1, 1]."""
    difference = (found.draw(captions, seed=0) - expected.draw(captions, seed=0)).abs()
    return {
        "drawn": len(captions),
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
    }


def entry_of(folder: Path, path: Path) -> dict[str, Any]:
    """A file or package of an export: where it is and its size."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    beside = path.with_name(f"{path.name}.data")  # weights beyond what one ONNX file holds
    sizes = [file.stat().st_size for file in (*files, *([beside] if beside.is_file() else []))]
    return {"file": str(path.relative_to(folder)), "bytes": sum(sizes)}


def _captions(run: RunDirectory) -> list[str]:
    """Some that the run drew; [] where it kept none."""
    return description.captions(run.path)[:TRIED_CAPTIONS]


def _version() -> str:
    import nas

    return nas.__version__


def _deploy(picked: Picked) -> dict[str, Any]:
    record, run = picked.record, picked.run
    kept = {key: record[key] for key in ("key", "choices", "architecture", "cost", "seed")}
    last = record["rungs"][-1]
    return {
        "from": {"run": str(run.path), "trial": record["trial"], "picked": picked.how},
        **kept,
        "scores": last["metrics"],
        "conditions": picked.conditions or description.conditions(run.path),
        "images_seen": last["images_seen"],
        "captions": description.captions(run.path)[:TRIED_CAPTIONS],
        "intervals": verify.intervals(run.path, record),
        "like": _initialised_like(picked),
        "parent": record.get("parent"),
    }


def _initialised_like(picked: Picked) -> dict[str, Any] | None:
    """Of an ablation's cell: the architecture whose initial weights it took where shapes agree."""
    if picked.study.ablation is None:
        return None

    study = description.resolved(picked.run.path)
    plain = type(picked.study).model_validate({name: value for name, value in study.items() if name != "provenance"})
    assert plain.ablation is not None
    found: dict[str, Any] = design.architectures(plain)[design.reference_cell(plain.ablation).name].to_dict()
    return found


def write_card(folder: Path, picked: Picked) -> None:
    """Write README.md again from the folder's own files."""
    manifest = drawer.read(folder)
    deploy = yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))
    text = model_card.text(deploy, picked.record, picked.resolved, manifest, standalone.read(folder))
    (folder / target.CARD).write_text(text, encoding="utf-8")
