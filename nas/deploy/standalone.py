"""What an export needs to be drawn from without nas: its tokenizer, its plan with the noise schedule, and a program.

tokenizer.json   from a caption to numbers (`nas.networks.conditioning.tokenizer_file`)
draw.json        which tensors go where, the schedule, the plan, the networks' files
draw.py          draws; it needs numpy, Pillow and the networks' runtime (nas/assets/draw.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import assets
from nas.deploy import drawer, wiring
from nas.diffusion import solvers
from nas.diffusion.plan import Plan

if TYPE_CHECKING:
    from nas.diffusion.plan import Plan
    from nas.networks.conditioning import TextEncoder

PROGRAM, ABOUT, TOKENIZER = FILES = ("draw.py", "draw.json", "tokenizer.json")
SOURCE = assets.FOLDER / PROGRAM
RUNTIMES = {"onnx": "onnxruntime", "executorch": "executorch (with its torch)"}  # of formats that the program can load
SOLVERS = ("ddim", "dpm++", "heun", "one_step", "renoise")  # that the program knows
FIELDS = ("solver", "steps", "guidance", "spacing", "guidance_interval", "cache")  # of a plan, that it obeys
UNCONDITIONAL = ""  # the caption whose prediction guidance leads away from


def write(
    folder: Path,
    encoder: TextEncoder,
    latents: tuple[int, int, int],
    pipeline: Mapping[str, Any],
    formats: Mapping[str, Any],
) -> list[str]:
    """Write the files into an export's folder; the program only if a format of `formats` (the manifest's) is for it, and
    it knows all that the plan says. Returns a line for whoever asked where it does not.

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
        if told["networks"] and not beyond(told["sampling"]):
            (folder / PROGRAM).write_bytes(SOURCE.read_bytes())
    (folder / ABOUT).write_text(json.dumps(told, indent=1), encoding="utf-8")
    unknown = beyond(told["sampling"]) if told["networks"] else ""
    return [f"no {PROGRAM}: it does not know {unknown} of the plan, by which nas sample draws"] if unknown else []


def read(folder: Path) -> dict[str, Any] | None:
    """What draw.json of an export holds; None where it has none."""
    path = folder / ABOUT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def beyond(sampling: Mapping[str, Any]) -> str:
    """What of a plan the program does not know, as `key: value`; "" if it knows all."""
    unknown = [name for name in sampling if name not in FIELDS or (name == "solver" and sampling[name] not in SOLVERS)]
    return ", ".join(f"{name}: {sampling[name]}" for name in unknown)


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
        "schedule": _schedule(pipeline, plan),
        **_steps(formats),
    }


def _steps(formats: Mapping[str, Any]) -> dict[str, Any]:
    """Of a plan that keeps units: which network draws each step, and what they hand on; alike in all formats."""
    told = [held["steps"] for precisions in formats.values() for held in precisions.values() if "steps" in held]
    return {"steps": told[0]} if told else {}


def _schedule(pipeline: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Constants of the noise, and the times the plan asks about."""

    config = drawer.schedule(pipeline)
    kept = solvers.alphas_cumprod(plan, config)
    return {
        "prediction": wiring.PREDICTIONS[config["prediction_type"]],
        "times": solvers.times(plan, len(kept)),
        "alphas_cumprod": kept,
    }
