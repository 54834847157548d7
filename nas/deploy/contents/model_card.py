"""The README.md of an export: what the model is, how it was found and scored, what it costs, and what may be done with it."""

from __future__ import annotations

import csv
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nas import menu
from nas.deploy import drawer
from nas.deploy.contents import standalone
from nas.deploy.contents.export_folder import LOG, SETTINGS
from nas.weights import worlds

PREDICTED = {
    "v": "The network predicts v = a e - s x_0, so that x_0 = a x_t - s v.",
    "epsilon": "The network predicts e, so that x_0 = (x_t - s e) / a.",
}
UNKNOWN_LICENCE = "Not recorded: ask whoever supplied the pictures before publishing these weights."


def text(
    deploy: Mapping[str, Any],
    record: Mapping[str, Any],
    resolved: Mapping[str, Any],
    manifest: Mapping[str, Any],
    alone: Mapping[str, Any] | None,
) -> str:
    """The card as Markdown, from what an export's files and its run say; `alone` is its draw.json, where it has one."""
    sections = [
        _head(deploy, resolved),
        "## Scores\n\n" + _scores(deploy),
        "## Cost\n\n" + _costs(record, resolved),
        "## Files\n\n" + _files(manifest),
        *_without_nas(alone, _example(deploy)),
        "## Training\n\n" + _training(deploy, resolved),
        "## Licence of the training data\n\n" + licence(resolved["dataset"]["name"]),
        "## Limits\n\n" + _limits(resolved),
    ]
    return "\n\n".join(sections) + "\n"


def trained(
    deploy: Mapping[str, Any],
    settings: Mapping[str, Any],
    manifest: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    alone: Mapping[str, Any] | None,
) -> str:
    """The card of a network that `nas train` trained, from its folder's own files; `alone` is its draw.json."""
    stages = deploy["stages"]
    scale = "deploy scale" if settings["width_divisor"] == 1 else f"every width divided by {settings['width_divisor']}"
    head = [
        "---\npipeline_tag: text-to-image\ntags: [diffusion]\n---",
        f"# {deploy['from']['trained']}",
        "",
        f"The architecture `{deploy['key']}`, {scale}, trained on `{settings['dataset']['name']}` after {stages} of "
        f"{len(settings['stages'])} stages. Its settings are in `training.yaml`.",
        "",
        f"    nas sample THIS_FOLDER {_example(deploy)}",
    ]
    costs = [[name, f"{value:,}"] for name, value in deploy["cost"].items() if isinstance(value, int)]
    return (
        "\n\n".join(
            [
                "\n".join(head),
                "## Training\n\n" + _stages(settings, log, stages),
                "## Cost\n\n" + _table(["one call", "as trained"], costs, ("left", "right")),
                "## Files\n\n" + _files(manifest),
                *_without_nas(alone, _example(deploy)),
                "## Licence of the training data\n\n" + licence(settings["dataset"]["name"]),
                "## Limits\n\nNot scored: nas train reports the training loss only.",
            ]
        )
        + "\n"
    )


def _stages(settings: Mapping[str, Any], log: Sequence[Mapping[str, Any]], stages: int) -> str:
    """Lengths, the last loss of each stage's log, and the median pace; blank where an interruption left no line."""
    rows = []
    for number, stage in enumerate(settings["stages"][:stages], 1):
        own = [row for row in log if int(row["stage"]) == number]
        told = [str(stage["image_size"]), f"{stage['images']:,}", f"{stage['batch']:,}"]
        if own:
            pace = statistics.median(float(row["images_per_s"]) for row in own)
            memory = max(float(row["peak_memory_mib"]) for row in own)
            told += [f"{float(own[-1]['loss']):.4g}", f"{pace:,.4g}", f"{memory:,.0f}"]
            told.append(f"{own[-1]['devices']} x {own[-1]['device']}")
        rows.append(told + [""] * (7 - len(told)))
    heads = ["px", "images", "batch", "loss", "images/s", "peak memory, MiB", "on"]
    return _table(heads, rows)


def _head(deploy: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    came = deploy["from"]
    return "\n".join(
        [
            "---\npipeline_tag: text-to-image\ntags: [diffusion, architecture-search]\n---",
            f"# {resolved['name']}, trial {came['trial']}",
            "",
            f"Picked as `{came['picked']}` of the study *{resolved['name']}*. {resolved.get('question') or ''}".rstrip(),
            "",
            f"`deploy.yaml` is the architecture `{deploy['key']}` at deploy scale, without weights. What draws is its proxy, "
            f"every width divided by {resolved['proxy']['width_divisor']}:",
            "",
            f"    nas sample THIS_FOLDER {_example(deploy)}",
        ]
    )


def _example(deploy: Mapping[str, Any]) -> str:
    """A caption of the run's own, as a shell takes it."""
    return shlex.quote((deploy.get("captions") or ["a caption"])[0])


def _scores(deploy: Mapping[str, Any]) -> str:
    rows = []
    for column, value in deploy["scores"].items():
        conditions = deploy["conditions"].get(column, {})
        better = "higher" if conditions.get("higher_is_better") else "lower"
        hidden = {"unit", "higher_is_better"}
        said = [f"{name} {given}" for name, given in conditions.items() if name not in hidden and given is not None]
        rows.append([column, f"{value:.5g}", conditions.get("unit", ""), better, ", ".join(said)])
    table = _table(["score", "value", "unit", "better", "measured with"], rows)
    return f"Of the proxy's pictures, not of the deploy-scale network's.\n\n{table}"


def _costs(record: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    proxy = record.get("proxy_cost") or {}
    rows = [
        [name, f"{value:,}", f"{proxy[name]:,}" if name in proxy else ""]
        for name, value in record["cost"].items()
        if isinstance(value, int)
    ]
    deploy = resolved["deploy"]
    heads = ["one call", f"deploy scale ({deploy['image_size']} px, {deploy['text_tokens']} tokens)", "proxy"]
    return _table(heads, rows, ("left", "right", "right"))


def _files(manifest: Mapping[str, Any]) -> str:
    rows, notes = [], []
    for name, precisions in manifest["formats"].items():
        for precision, held in precisions.items():
            for part, entry in held["networks"].items():
                error = entry.get("max_relative_error")
                shown = "" if error is None else f"{error:.1e}"
                rows.append([f"`{entry['file']}`", part, name, precision, f"{entry['bytes'] / 1e6:.2f}", shown])
            if pictures := held.get("pictures"):
                mean, largest = pictures["mean_difference"], pictures["max_difference"]
                notes.append(
                    f"- {name}, {precision}: {pictures['drawn']} pictures differ from PyTorch's by {mean:.2g} in the mean "
                    f"and {largest:.2g} at most (pixels in [-1, 1])."
                )
            notes += [f"- {name}: not run here: {reason}" for reason in _reasons(held)]
            notes += [f"- {line}" for line in held.get("quality", {}).get("told", [])]
    notes += [f"- {line}" for line in manifest.get("notes", [])]
    table = _table(["file", "network", "format", "precision", "MB", "error"], rows)
    about = "*error*: largest difference from PyTorch over the largest output on random inputs; in int8 on what calibrated it."
    return "\n\n".join(filter(None, [table, about, "\n".join(notes)]))


def _without_nas(alone: Mapping[str, Any] | None, example: str) -> list[str]:
    """The section on drawing from the folder alone, from its draw.json."""
    if alone is None:
        return []
    plan, schedule = alone["sampling"], alone["schedule"]
    rows = [
        [
            network,
            side.removesuffix("s"),
            f"`{one['name']}`",
            " x ".join(map(str, one["shape"])),
            one["dtype"],
            one[way],
        ]
        for network, sides in alone["tensors"].items()
        for side, way in (("inputs", "from"), ("outputs", "to"))
        for one in sides[side]
    ]
    heads = ["network", "side", "tensor", "shape", "type", "comes from, goes to"]
    told = [
        "## Drawing without nas",
        _program(alone, example),
        _table(heads, rows),
        "The batch is free in ONNX files, and 1 in ExecuTorch's and Core ML's.",
        f"`draw.json` holds this table, the plan (`{plan['solver']}`, {plan['steps']} steps, guidance {plan['guidance']:g}) "
        "and, for every step, the weights by which its latents are a sum of the noise and of the predictions before it; `last` "
        "are those of the clean latents. Guidance w takes null + w (prediction - null), where null is the prediction for the "
        f"empty caption (`unconditional`){_when(plan)}. Other plans follow from the noise: `alphas_cumprod[t]` is a^2 of x_t = "
        f"a x_0 + s e with a^2 + s^2 = 1, at the times t = 0 .. {len(schedule['alphas_cumprod']) - 1}; this plan asks about "
        f"`times`. {PREDICTED[schedule['prediction']]}",
    ]
    return ["\n\n".join(told)]


def _when(plan: Mapping[str, Any]) -> str:
    """At which times a plan guides, where that is not always."""
    interval = plan.get("guidance_interval")
    return "" if interval is None else ", at times from {} to {}; at others the prediction stands".format(*interval)


def _program(alone: Mapping[str, Any], example: str) -> str:
    """How a caption becomes numbers here, and which program draws."""
    carried, networks = alone.get("tokenizer"), alone["networks"]
    if carried is None:
        return (
            "There is no draw.py here: what the text encoder's tokenizer does cannot be said in a tokenizer.json. Captions have "
            "to become `input_ids` as in the encoder's own package."
        )
    who = "the package `tokenizers`" if carried["reader"] == "package" else "tokenizer.py"
    if unknown := standalone.beyond(alone["sampling"]):
        return (
            f"There is no draw.py here: it does not know what the plan says, {unknown}; `nas sample` draws by it. "
            f"`{carried['file']}` is the text encoder's tokenizer in Hugging Face's format. {carried['about']}"
        ).strip()
    read = f"`{carried['file']}` is the text encoder's tokenizer in Hugging Face's format, read by {who}."
    read = " ".join(filter(None, [read, carried["about"]]))
    if not networks:
        return f"{read} A program that draws needs graphs: `nas export --format onnx`."
    packages = {name.split()[0] for name in networks}
    runtimes = [words for name, words in standalone.RUNTIMES.items() if name in packages]
    needs = ["numpy", "Pillow", *(["tokenizers"] if carried["reader"] == "package" else []), " or ".join(runtimes)]
    return (
        f"    python draw.py {example} --seed 1 --out drawn.png\n\n"
        f"needs {', '.join(needs[:-1])} and {needs[-1]}, and draws what `nas sample` draws with the seed. {read}"
    )


def _table(heads: list[str], rows: list[list[str]], align: tuple[str, ...] | None = None) -> str:
    """A Markdown table of words."""
    import pandas as pd

    return str(pd.DataFrame(rows, columns=heads).to_markdown(index=False, disable_numparse=True, colalign=align))


def _reasons(held: Mapping[str, Any]) -> list[str]:
    return sorted({entry["not_run"] for entry in held["networks"].values() if "not_run" in entry})


def _training(deploy: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    training, provenance = resolved["training"], resolved.get("provenance") or {}
    parent = deploy.get("parent")
    begun = f"`{training['init']}`" if parent is None else f"the weights of trial {parent} of its run"
    lines = [
        f"- {deploy['images_seen']:,} images seen, seed {deploy['seed']}, started from {begun}",
        f"- objective `{resolved['objective']['name']}`, data set `{resolved['dataset']['name']}`",
        f"- commit {provenance.get('commit') or 'unknown'}, {provenance.get('device') or 'unknown device'}",
    ]
    return "\n".join(lines)


def _limits(resolved: Mapping[str, Any]) -> str:
    foreign = (resolved.get("provenance") or {}).get(worlds.RECORDED)
    others = f"Parts of it were {foreign}.\n\n" if foreign else ""
    return others + (
        "The weights are those of a small network trained briefly to compare architectures. It draws what its data set "
        f"(`{resolved['dataset']['name']}`) shows and little else; its scores order architectures, and say nothing about "
        "other data. Train `deploy.yaml` before using it for anything else."
    )


def licence(dataset: str) -> str:
    """What is known of the licence of a data set's pictures."""
    return str(getattr(menu.pick("datasets", dataset), "LICENCE", UNKNOWN_LICENCE))


def write_card(out: Path) -> None:
    """Write README.md of a folder that `nas train` made, from its own files."""
    deploy, settings = (yaml.safe_load((out / name).read_text(encoding="utf-8")) for name in ("deploy.yaml", SETTINGS))
    with (out / LOG).open(newline="", encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    written = trained(deploy, settings, drawer.read(out), log, standalone.read(out))
    (out / "README.md").write_text(written, encoding="utf-8")
