"""The winner as files: its architecture at deploy scale, and its proxy with trained weights, ready to draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nas import results
from nas.errors import InputError
from nas.rundir import RunDirectory

if TYPE_CHECKING:
    from torch import Tensor, nn

PIPELINE = ("conditioning", "autoencoder", "sampling", "objective")  # sections of the study a drawing depends on


def export(run: RunDirectory, pick: str, to: Path | None = None) -> Path:
    """Write the picked trial to a folder and return it.

    `deploy.yaml` is the architecture with its cost and scores; `proxy/` holds the trained network: config.yaml and
    weights.safetensors; `pipeline.yaml` names the text encoder, the autoencoder and the sampling plan it was trained
    with. Raises InputError when the pick is not there.
    """
    resolved = yaml.safe_load((run.path / "resolved.yaml").read_text())
    number = results.pick(results.load(run.path), results.objectives(resolved), pick)
    record = run.records()[number]
    weights = run.trial(number) / "weights.safetensors"
    if not weights.exists():
        raise InputError(f"{run.path}: trial {number} ({record['state'].replace('_', ' ')}) has no weights")
    folder = to or run.path / "export" / pick.replace(":", "-")
    proxy = folder / "proxy"
    proxy.mkdir(parents=True, exist_ok=True)
    _write(folder / "deploy.yaml", _deploy(record, run, pick))
    _write(proxy / "config.yaml", record["proxy"])
    (proxy / "weights.safetensors").write_bytes(weights.read_bytes())
    _write(folder / "pipeline.yaml", _pipeline(resolved, record))
    return folder


def _pipeline(resolved: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The sections a drawing depends on, with what the trial's cell changed in them."""
    if record.get("settings"):
        from nas import design
        from nas.settings import Study

        study = Study.model_validate({name: value for name, value in resolved.items() if name != "provenance"})
        resolved = design.changed(study, record["settings"]).resolved()
    return {section: resolved[section] for section in PIPELINE}


def _deploy(record: dict[str, Any], run: RunDirectory, pick: str) -> dict[str, Any]:
    kept = {key: record[key] for key in ("key", "choices", "architecture", "cost", "seed")}
    last = record["rungs"][-1]
    conditions = json.loads((run.path / "conditions.json").read_text())
    return {
        "from": {"run": str(run.path), "trial": record["trial"], "picked": pick},
        **kept,
        "scores": last["metrics"],
        "conditions": conditions,
        "images_seen": last["images_seen"],
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


def load_network(folder: Path) -> nn.Module:
    """The trained proxy of an exported folder, in eval mode."""
    from safetensors.torch import load_file

    from nas.backbones.unet import Config

    proxy = folder / "proxy"
    if not (proxy / "config.yaml").exists():
        raise InputError(f"{folder}: not an exported model (no proxy/config.yaml); make one with: nas export RUN")
    network: nn.Module = Config.from_dict(yaml.safe_load((proxy / "config.yaml").read_text())).build()
    network.load_state_dict(load_file(proxy / "weights.safetensors"))
    return network.eval()


def draw(
    folder: Path, captions: Sequence[str], seed: int, steps: int | None = None, guidance: float | None = None
) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1]. Picture i depends on the seed and i, not on the other captions."""
    import torch

    from nas import conditioning, menu, sampling
    from nas.conditioning import Text
    from nas.settings import Entry
    from nas.training import stream_seed

    network = load_network(folder)
    pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text())
    encoder = conditioning.load(conditioning.Settings(**pipeline["conditioning"]))
    entry = Entry(**pipeline["autoencoder"])
    autoencoder = menu.pick("autoencoders", entry.name).load(entry.settings("autoencoders"))
    entry = Entry(**pipeline["objective"])
    schedule = menu.pick("objectives", entry.name).noise_schedule(entry.settings("objectives"))
    plan = sampling.Plan(**pipeline["sampling"]).changed(steps, guidance)
    side = autoencoder.image_size // autoencoder.factor
    shape = (autoencoder.channels, side, side)
    generators = (torch.Generator().manual_seed(stream_seed(seed, index)) for index in range(len(captions)))
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    text, null = encoder.encode(captions), encoder.encode([""])
    latents = sampling.sample(network, plan, dict(schedule.config), noise, text, Text(*null))
    pictures: Tensor = autoencoder.decode(latents)
    return pictures


def sample(
    folder: Path, captions: Sequence[str], seed: int, out: Path, steps: int | None, guidance: float | None
) -> None:
    """Draw captions and save them as one PNG, at most eight to a row."""
    from nas.pictures import save_grid

    save_grid(draw(folder, captions, seed, steps, guidance), out, columns=min(8, len(captions)))
