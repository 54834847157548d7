"""A run directory as a study leaves it, made of arithmetic instead of training: every state, small pictures."""

import functools
import io
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CAPTIONS = [
    "grinning face",
    "red apple",
    "sailing boat",
    "cat with tears of joy",
    "<script>alert('caption')</script>",
    "snow-capped mountain",
    "black & white flag",
    "violin",
    "person in lotus position: medium-dark skin tone",
    "thermometer",
    "ringed planet",
    "hot pepper",
]
BUDGET = {"params": 4.0e8, "macs": 2.0e11}
METRICS = ("fid_efficientnet_lite0", "clip_score", "caption_accuracy", "denoising_loss")
STARTED = datetime(2025, 3, 1, 9, 0, tzinfo=UTC)
IMAGES_SEEN = (5120, 10240, 20480)

_PATTERN = ("complete", "over_budget", "complete", "stopped", "complete", "duplicate", "complete", "stopped")
_OUTCOMES = {"complete": 3, "stopped": 1}


def write(run_dir, trials=24, states=None, pictures=True, seed=0):
    """Write the directory and return it. `states` gives the state of each trial; by default all of them occur."""
    rng = random.Random(seed)
    (run_dir / "trials").mkdir(parents=True)
    (run_dir / "resolved.yaml").write_text(yaml.safe_dump(_resolved(trials), sort_keys=False))
    (run_dir / "conditions.json").write_text(json.dumps(_conditions()))
    (run_dir / "captions.json").write_text(json.dumps(CAPTIONS))
    for number, state in enumerate(states or _states(trials)):
        folder = run_dir / "trials" / f"{number:04d}"
        folder.mkdir()
        record = _record(number, state, rng, seed)
        (folder / "record.json").write_text(json.dumps(record))
        if pictures and record["rungs"]:
            for rung in record["rungs"]:
                (folder / f"samples_{rung['rung']}.png").write_bytes(_samples(number))
            (folder / "samples.png").write_bytes(_samples(number))
    return run_dir


def _states(trials):
    states = [_PATTERN[number % len(_PATTERN)] for number in range(trials)]
    if trials > 10:
        states[9], states[-1] = "failed", "running"
    return states


def _choices(rng):
    attention = rng.choice([True, False])
    choices = {
        "depth": rng.choice([1, 2, 4]),
        "bottleneck_channels": rng.choice([512, 768, 1024]),
        "self_attention": rng.choice(["[false, true, true]", "[false, false, true]", "[true, true, true]"]),
        "cross_attention": attention,
        "ffn_ratio": rng.choice([2, 3, 4]),
        "convolution": rng.choice(["full", "separable"]),
    }
    return choices | ({"shared_kv": rng.choice([True, False])} if attention else {})


def _cost(choices, scale):
    width = choices["bottleneck_channels"] / 1024
    params = scale * (90e6 + 60e6 * width * choices["depth"] + 25e6 * choices["ffn_ratio"] * width)
    macs = scale * (50e9 + 28e9 * choices["depth"] * width + 30e9 * (choices["convolution"] == "full"))
    names = ("params", "macs", "macs_without_attention", "macs_padding_free", "activation_bytes")
    return dict(zip(names, (int(params), int(macs), int(0.9 * macs), int(0.97 * macs), int(macs / 1000)), strict=True))


def _scores(choices, images_seen, rng):
    power = (
        choices["depth"] * choices["bottleneck_channels"] / 1024 + choices["ffn_ratio"] / 4 + choices["cross_attention"]
    )
    trained = (images_seen / 20480) ** 0.3
    fid = 180 - 22 * power * trained - 30 * trained + rng.gauss(0, 3)
    clip = 14 + (1.8 * power + 3.0 * choices["cross_attention"]) * trained + rng.gauss(0, 0.3)
    return dict(
        zip(METRICS, (fid, clip, min(1.0, max(0.0, (clip - 12) / 30)), 0.5 - 0.03 * power * trained), strict=True)
    )


def _rung(number, choices, rng):
    timings = {"load_s": 0.02, "train_s": 4.0 * 2**number, "sample_s": 1.5, "score_s": 0.4, "save_s": 0.05}
    timings["total_s"] = sum(timings.values()) + 0.03
    metrics = _scores(choices, IMAGES_SEEN[number], rng)
    seen = IMAGES_SEEN[number]
    return {
        "rung": number,
        "images_seen": seen,
        "metrics": metrics,
        "timings": timings,
        "images_per_s": 400.0,
        "peak_memory_mib": 900,
    }


def _reason(state, cost):
    over = [f"{name} {cost[name]:,} > {limit:,.0f}" for name, limit in BUDGET.items() if cost[name] > limit]
    reasons = {
        "over_budget": "over budget: " + " and ".join(over),
        "stopped": "behind 60 % of the trials at 5,120 images",
        "duplicate": "same network as trial 0",
        "failed": "loss is not finite after 640 images <b>bold</b>",
    }
    return reasons.get(state, "")


def _record(number, state, rng, seed=0):
    choices = _choices(random.Random(f"{2 if number == 4 else number}:{seed}"))
    if state == "over_budget":
        choices |= {
            "depth": 4,
            "bottleneck_channels": 1024,
            "ffn_ratio": 4,
            "convolution": rng.choice(["full", "separable"]),
        }
    cost = _cost(choices, 1.15 if state == "over_budget" else 0.93)
    repeat = int(number == 4 and state == "complete")  # the network of trial 2 again, with another seed
    started = STARTED + timedelta(seconds=30 * number)
    return {
        "trial": number,
        "key": f"{2 if repeat else number:012x}",
        "state": state,
        "reason": _reason(state, cost),
        "duplicate_of": 0 if state == "duplicate" else None,
        "repeat": repeat,
        "seed": 1000 + number,
        "choices": choices,
        "architecture": {"levels": [{"channels": 320}, {"channels": 640}]},
        "cost": cost,
        "proxy_cost": {name: value // 64 for name, value in cost.items()},
        "rungs": [_rung(rung, choices, rng) for rung in range(_OUTCOMES.get(state, 0))],
        "init": "supernet",
        "started": started.isoformat(),
        "finished": None if state == "running" else (started + timedelta(seconds=28)).isoformat(),
    }


@functools.cache
def _samples(number, columns=4, tile=64, gap=2):
    """A PNG: one flat-coloured tile per caption with a gradient, so that crops of the wrong tile are visible."""
    rows = -(-len(CAPTIONS) // columns)
    canvas = np.full((rows * (tile + gap) - gap, columns * (tile + gap) - gap, 3), 255, dtype=np.uint8)
    ramp = np.linspace(0, 60, tile, dtype=np.uint8)
    for index in range(len(CAPTIONS)):
        top, left = (index // columns) * (tile + gap), (index % columns) * (tile + gap)
        colour = [(37 * index + 13 * number) % 190, (91 * index) % 190, (53 * number) % 190]
        canvas[top : top + tile, left : left + tile] = np.array(colour, dtype=np.uint8) + ramp[:, None, None]
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "png")
    return file.getvalue()


def _resolved(trials):
    return {
        "name": "synthetic",
        "question": "Which UNet under 400 M parameters & 200 GMACs draws best?",
        "search": {
            "sampler": "tpe",
            "trials": trials,
            "minimise": ["fid_efficientnet_lite0", "macs"],
            "maximise": ["clip_score"],
        },
        "budget": BUDGET,
        "training": {"init": "supernet", "images_seen": 20480, "batch": 64},
        "provenance": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "versions": {"python": "3.11.7", "torch": "2.15.0", "optuna": "5.0.0"},
            "device": "cpu, 2 threads",
            "started": STARTED.isoformat(),
        },
    }


def _conditions():
    drawn = {"images": 256, "guidance": 3.0, "steps": 10, "seed": 0}
    return {
        "fid_efficientnet_lite0": {
            "unit": "",
            "higher_is_better": False,
            "extractor": "efficientnet_lite0, 64 px",
            **drawn,
        },
        "clip_score": {"unit": "100 * cosine", "higher_is_better": True, "judge": "emoji-clip", **drawn},
        "caption_accuracy": {"unit": "share", "higher_is_better": True, "judge": "emoji-clip", **drawn},
        "denoising_loss": {"unit": "", "higher_is_better": False, "images": 256, "seed": 0},
    }


LINES = {
    "real": {"fid_efficientnet_lite0": 21.0, "clip_score": 31.5, "caption_accuracy": 0.875},
    "held_out": {"fid_efficientnet_lite0": 26.0, "clip_score": 30.0, "caption_accuracy": 0.82},
    "autoencoded": {"fid_efficientnet_lite0": 55.0, "clip_score": 29.0, "caption_accuracy": 0.8125},
    "base": {"fid_efficientnet_lite0": 110.0, "clip_score": 22.0, "caption_accuracy": 0.4, "denoising_loss": 0.41},
    "untrained": {"fid_efficientnet_lite0": 437.0, "clip_score": 0.1, "caption_accuracy": 0.01, "denoising_loss": 0.95},
}


def write_lines(run_dir: Path, **scores):
    """Lines of reference with pictures; `scores` replaces those of a line, by name."""
    lines = {name: {"told": f"what {name} is", "scores": scores.get(name, found)} for name, found in LINES.items()}
    lines["base"]["cost"] = {"macs": 1.2e11, "params": 2.5e8}
    (run_dir / "reference_lines.json").write_text(json.dumps(lines))
    for number, name in enumerate(("real", "autoencoded", "base", "untrained")):
        folder = run_dir / "lines" / name
        folder.mkdir(parents=True)
        (folder / "samples.png").write_bytes(_samples(100 + number))
    return run_dir


def copy_with(run_dir: Path, number: int, **changes):
    """Change fields of one trial's record in place."""
    path = run_dir / "trials" / f"{number:04d}" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_cells(run_dir: Path, repeats=3):
    """A finished ablation of one factor with two levels, `repeats` of each, where the second is better by ten."""
    write(run_dir, trials=2 * repeats, states=["complete"] * (2 * repeats))
    levels = {"slow": {}, "fast": {"training.learning_rate": 1.0e-3}}
    settings = yaml.safe_load((run_dir / "resolved.yaml").read_text())
    goals = {name: settings["search"][name] for name in ("minimise", "maximise")}
    goals["minimise"] = goals["minimise"][:1]
    del settings["search"]
    settings["ablation"] = {
        "design": "one_factor",
        "factors": {"pace": {"levels": levels}},
        "repeats": repeats,
        **goals,
    }
    settings["ablation"]["reference"] = {"pace": "slow"}
    (run_dir / "resolved.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for number in range(2 * repeats):
        level, repeat = ("slow", "fast")[number % 2], number // 2
        record = json.loads((run_dir / "trials" / f"{number:04d}" / "record.json").read_text())
        for rung in record["rungs"]:
            rung["metrics"]["fid_efficientnet_lite0"] = 100.0 - 10 * (level == "fast") + repeat + 0.1 * number
        cell = {"cell": level if number % 2 else "reference", "choices": {"pace": level}, "settings": levels[level]}
        copy_with(run_dir, number, **cell, repeat=repeat, key="one network", rungs=record["rungs"])
    return run_dir
