"""The command line as its user meets it: one small real study from start to export, and what wrong input costs."""

import json
import subprocess
import sys
from pathlib import Path

import in_process
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from nas.deploy import drawer

ROOT = Path(__file__).parents[1]
SMALL = [
    "search.trials=2",
    "evaluation.images=16",
    "training.images_seen=64",
    "training.batch=16",
    "sampling.steps=2",
    "dataset={name: emoji, limit: 96}",
    "metrics=[fid, clip_score]",
    "stopping.rule=none",
]


def nas(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-c", "from nas.cli import main; main()", *arguments], cwd=cwd, capture_output=True, text=True
    )


def study(root, *overrides, command=nas):
    options = [part for setting in (*SMALL, *overrides) for part in ("--set", setting)]
    return command("run", "studies/emoji", "--root", str(root), *options)


BRIEF = ("workers=1", "stopping.rungs=[1.0]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    result = study(root, *BRIEF)
    assert result.returncode == 0, result.stderr
    (folder,) = (root / "emoji").iterdir()
    return root, folder, result.stdout


def test_a_study_leaves_what_the_readme_promises(finished):
    _, folder, output = finished
    for name in (
        "journal.log",
        "resolved.yaml",
        "conditions.json",
        "captions.json",
        "results.csv",
        "report.html",
        "best.yaml",
    ):
        assert (folder / name).stat().st_size > 0, name
    table = pd.read_csv(folder / "results.csv")
    assert (table.state == "complete").sum() == 2
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["trial"] in table.trial[table.on_front].tolist()
    assert "Pareto front" in output and "report:" in output
    records = [json.loads(path.read_text()) for path in folder.glob("trials/*/record.json")]
    complete = [record for record in records if record["state"] == "complete"]
    for record in complete:
        assert {"fid_efficientnet_lite0", "clip_score", "denoising_loss"} <= set(record["rungs"][-1]["metrics"])
        assert record["cost"]["params"] <= 400e6 and record["cost"]["macs"] <= 200e9


def test_the_report_is_one_offline_file(finished):
    _, folder, _ = finished
    page = (folder / "report.html").read_text()
    assert "<script src=" not in page and "data:image/webp;base64," in page


def test_wandb_keeps_every_trial_offline(finished):
    _, folder, _ = finished
    assert len(list((folder / "wandb").glob("**/*.wandb"))) >= 2


def test_asking_for_more_trials_continues_and_repeats_nothing(finished):
    root, folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/weights.safetensors")}
    result = study(root, *BRIEF, "search.trials=3", "tracking={mode: 'off'}", command=in_process.nas)
    assert result.returncode == 0, result.stderr
    assert "continuing" in result.stdout
    after = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/weights.safetensors")}
    assert len(after) == len(before) + 1
    assert all(after[path] == time for path, time in before.items())


def test_an_exported_model_draws_what_its_trial_drew(finished, tmp_path):
    _, folder, _ = finished
    result = in_process.nas("export", str(folder), "--to", str(tmp_path / "model"))
    assert result.returncode == 0, result.stderr
    deploy = yaml.safe_load((tmp_path / "model" / "deploy.yaml").read_text())
    trained = load_file(folder / "trials" / f"{deploy['from']['trial']:04d}" / "weights.safetensors")
    network = drawer.load_network(tmp_path / "model")
    assert all(torch.equal(weight, trained[name]) for name, weight in network.state_dict().items())
    first, again = (drawer.load(tmp_path / "model").draw(["red heart, noto", "pizza, fluent"], seed=3) for _ in "12")
    assert torch.equal(first, again) and first.shape == (2, 3, 64, 64)
    drawn = in_process.nas("sample", str(tmp_path / "model"), "red heart, noto", "--out", str(tmp_path / "heart.png"))
    assert drawn.returncode == 0 and (tmp_path / "heart.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.learning_rat=1"], ["training.learning_rat", "learning_rate"]),
        (["dataset={name: webdataset, path: none.tar}"], ["none.tar"]),
        (["evaluation.images=500"], ["evaluation.images", "500", "96"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, overrides, words):
    result = study(tmp_path / "runs", *overrides, command=in_process.nas)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert not list((tmp_path / "runs").glob("emoji/*"))


def test_help_is_fast_to_import():
    probe = (
        "import sys; import nas.cli; print([m for m in ('torch', 'lightning', 'optuna', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
