"""What an export needs to be drawn from without nas: its tokenizer, its plan with the noise schedule, and a program.

tokenizer.json   from a caption to numbers (`nas.networks.conditioning.tokenizer_file`)
draw.json        which tensors go where, the schedule, the plan step by step, the networks' files
draw.py          draws; it needs numpy, Pillow and the networks' runtime
tokenizer.py     reads tokenizer.json for it
runtime.py       loads a network for it

The programs are in nas/assets/alone, with a tokenizer.py for every reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import assets
from nas.deploy import drawer
from nas.deploy.contents import wiring
from nas.deploy.step_graphs import Step
from nas.diffusion import solvers
from nas.diffusion.plan import AUTOREGRESSIVE, Plan
from nas.diffusion.unrolled import unrolled

if TYPE_CHECKING:
    from nas.networks.conditioning import TextEncoder

PROGRAM, RUNTIME, READER = PROGRAMS = ("draw.py", "runtime.py", "tokenizer.py")
ABOUT, TOKENIZER = DATA = ("draw.json", "tokenizer.json")
FILES = PROGRAMS + DATA
SOURCES = assets.FOLDER / "alone"
RUNTIMES = {"onnx": "onnxruntime", "executorch": "executorch (with its torch)"}  # of formats that the program can load
UNCONDITIONAL = ""  # the caption whose prediction guidance leads away from


def write(
    folder: Path,
    encoder: TextEncoder,
    latents: tuple[int, int, int],
    pipeline: Mapping[str, Any],
    formats: Mapping[str, Any],
) -> list[str]:
    """Write the files into an export's folder; the programs only if a format of `formats` (the manifest's) is for them, and they
    can draw by the plan. Returns a line for whoever asked where they cannot.

    `latents` are (C, H, W), `pipeline` is what pipeline.yaml holds.
    """
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    told = about(encoder, latents, pipeline, formats)
    carried = encoder.tokenizer_file()
    if carried is not None:
        told["tokenizer"] = {"file": TOKENIZER, "reader": carried.reader, "about": carried.about}
        text = json.dumps(carried.content, ensure_ascii=False, indent=1)
        (folder / TOKENIZER).write_text(text, encoding="utf-8")
        if told["networks"] and "steps" in told:
            copy_programs(carried.reader, folder)
    (folder / ABOUT).write_text(json.dumps(told, indent=1), encoding="utf-8")
    unknown = beyond(told["sampling"]) if told["networks"] else ""
    return [f"no {PROGRAM}: it does not know {unknown} of the plan, by which nas sample draws"] if unknown else []


def copy_programs(reader: str, folder: Path) -> None:
    """draw.py and what it needs, for a tokenizer that is read so (`TokenizerFile.reader`)."""
    sources = {PROGRAM: PROGRAM, RUNTIME: RUNTIME, READER: f"tokenizer_{reader}.py"}
    for name, source in sources.items():
        (folder / name).write_bytes((SOURCES / source).read_bytes())


def read(folder: Path) -> dict[str, Any] | None:
    """What draw.json of an export holds; None where it has none."""
    path = folder / ABOUT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def beyond(sampling: Mapping[str, Any]) -> str:
    """What of a plan the program cannot draw by, as `key: value`; "" if it can."""
    plan = Plan(**sampling)
    if plan.solver == AUTOREGRESSIVE:
        return f"solver: {plan.solver}"
    return "" if plan.experts is None else f"experts: {list(plan.experts)}"


def about(
    encoder: TextEncoder, latents: tuple[int, int, int], pipeline: Mapping[str, Any], formats: Mapping[str, Any]
) -> dict[str, Any]:
    """What draw.json holds, without the tokenizer's part."""
    plan, null = Plan(**pipeline["sampling"]), encoder.tokenise([UNCONDITIONAL])
    return {
        "tensors": wiring.table(encoder, latents, pipeline["image_size"]),
        "latents": list(latents),
        "unconditional": {"caption": UNCONDITIONAL, **{name: rows.tolist() for name, rows in null.items()}},
        "sampling": plan.model_dump(),
        "networks": {
            f"{name} {precision}": {part: entry["file"] for part, entry in held["networks"].items()}
            for name, precisions in formats.items()
            if name in RUNTIMES
            for precision, held in precisions.items()
        },
        "schedule": _schedule(plan, drawer.schedule(pipeline)),
        **({} if beyond(pipeline["sampling"]) else _steps(plan, drawer.schedule(pipeline), formats)),
    }


def _steps(plan: Plan, config: Mapping[str, Any], formats: Mapping[str, Any]) -> dict[str, Any]:
    """The plan unrolled. Each step says which network it asks, and what that takes over and hands on; alike in all formats."""
    kept = [held["steps"] for precisions in formats.values() for held in precisions.values() if "steps" in held]
    if plan.cache is not None and not kept:
        return {}  # no graphs that keep what it keeps
    found = unrolled(plan, config)
    plain = [asdict(Step("denoiser"))] * len(found.evaluations)
    steps = [
        {**asdict(evaluation), **step} for evaluation, step in zip(found.evaluations, [*kept, plain][0], strict=True)
    ]
    return {"fresh_noise": found.fresh_noise, "steps": steps, "last": found.last}


def _schedule(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """Constants of the noise, and the times the plan asks about."""
    kept = solvers.alphas_cumprod(plan, config)
    return {
        "prediction": wiring.PREDICTIONS[config["prediction_type"]],
        "times": solvers.times(plan, len(kept)),
        "alphas_cumprod": kept,
    }
