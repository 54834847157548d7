"""An export's graphs again in 8-bit integers, and what that costs: sizes, errors, speed and the study's own scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nas import machine, menu
from nas.deploy import export, graphs
from nas.deploy.int8 import methods, quality
from nas.errors import ArgumentError

if TYPE_CHECKING:
    from nas.deploy.drawer import Model
    from nas.deploy.export import Say
    from nas.deploy.exporters import Network
    from nas.deploy.graphs import Graph, Tensors
    from nas.deploy.int8.methods import Calibration
    from nas.trial.bench import Bench


def formats() -> list[str]:
    """The formats that have it."""
    return [name for name in menu.names("exporters") if hasattr(menu.pick("exporters", name), "quantise")]


def check(chosen: Mapping[str, ModuleType], precisions: Sequence[str]) -> None:
    """Raises InputError when no chosen format has 8-bit integers, or none is made in fp32 to compare them with."""
    if not set(chosen) & set(formats()):
        named = f"format {', '.join(chosen)} has no int8" if chosen else "no format that holds graphs"
        raise ArgumentError(f"quantise int8: {named}; add the format {' or '.join(formats())}")
    if "fp32" not in precisions:
        raise ArgumentError("quantise int8: it is made from fp32 and compared with it; add the precision fp32")


def add(
    manifest: dict[str, Any],
    model: Model,
    chosen: Mapping[str, ModuleType],
    folder: Path,
    bench: Bench,
    captions: Sequence[str],
    say: Say,
) -> None:
    """Quantise what `manifest` lists in fp32, and list that too; a format without int8 gets a note. All formats are calibrated
    with the same inputs; `captions` are drawn with PyTorch and in 8 bits. Raises InputError when an output is not finite.
    """
    calibrating = quality.calibration_captions(bench)
    say(f"int8: {len(calibrating)} captions, drawn to see the ranges of activations")
    calibration = methods.recorded(model.drawer(), calibrating, seed=1)
    for name, module in chosen.items():
        if name in formats():
            held = manifest["formats"][name]
            plain = held["fp32"]["networks"]
            held[methods.PRECISION] = _quantised(model, module, plain, folder, bench, calibration, captions, say)
        else:
            manifest.setdefault("notes", []).append(f"{name} has no int8 here; it holds {', '.join(module.PRECISIONS)}")


def _quantised(
    model: Model,
    module: ModuleType,
    plain: Mapping[str, Mapping[str, Any]],
    folder: Path,
    bench: Bench,
    calibration: Calibration,
    captions: Sequence[str],
    say: Say,
) -> dict[str, Any]:
    """One format's files in 8 bits beside those in fp32, as the manifest describes them."""
    files = {part: folder / entry["file"] for part, entry in plain.items()}
    before = model.drawer({part: module.load(path) for part, path in files.items()})
    networks: dict[str, Network] = {}
    entries: dict[str, Any] = {}
    name = f"{module.RUNTIME} {methods.PRECISION}"
    for graph in model.graphs:
        say(f"{name}: {graph.name.replace('_', ' ')}, quantised, compared and timed")
        path, method, inputs = files[graph.name], methods.METHODS[graph.name], calibration[graph.name]
        target = path.with_name(f"{graph.name}.{methods.PRECISION}{path.suffix}")
        small = module.quantise(graph, path, target, method, inputs)
        network = networks[graph.name] = module.load(small)
        entry = export.entry_of(folder, small)
        entries[graph.name] = entry | {
            "method": method,
            "max_relative_error": _error(graph, network, inputs),
            "size_ratio": entry["bytes"] / plain[graph.name]["bytes"],
            "speed_ratio": quality.speed_ratio(before.networks[graph.name], network, inputs[-1]),
        }
    after = model.drawer(networks)
    say(f"{name}: {len(bench.drawn[2])} pictures, drawn and scored in fp32 and in int8")
    scores = {"fp32": quality.scores(bench, before), methods.PRECISION: quality.scores(bench, after)}
    device = machine.device()[0]
    told = quality.told(scores, entries, module.RUNTIME, device)
    return {
        "networks": entries,
        "pictures": export.compare_pictures(model.drawer(), after, captions),
        "quality": {"scores": scores, "told": [*told, f"{module.RUNTIME}: {module.INT8}"], "device": device},
    }


def _error(graph: Graph, network: Network, calibration: Sequence[Tensors]) -> float:
    """The worst error against PyTorch on calibration inputs; random ones leave the ranges that were fixed. Raises InputError."""
    errors = [graphs.relative_error(network(inputs), graph.run(inputs)) for inputs in calibration]
    if not all(map(math.isfinite, errors)):
        raise ArgumentError(f"quantise int8: {graph.name} gives numbers that are not finite")
    return max(errors)
