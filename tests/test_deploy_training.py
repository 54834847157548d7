"""nas train: a training in two stages can be interrupted anywhere, and what it leaves is an export."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import converted
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from nas import cli, interruption
from nas.deploy import drawer as drawing
from nas.deploy import export, verify
from nas.deploy.contents.export_folder import MANIFEST
from nas.disk import lock
from nas.errors import InputError
from nas.full_training import job as deploy_job
from nas.full_training import loop, recipe
from nas.networks.backbones.unet import Config, Level
from nas.training.loop import Hardware

NETWORK = Config(
    levels=(
        Level(64, (0,), (0,)),
        Level(64, (1,), (1,), cross_attention=True),
    ),
    time_width=64,
    groups=16,
    head_dim=32,
)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Also where there is a GPU: what is compared here is exact. Signals are left to pytest."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(interruption, "install_in_trainer", lambda: None)


STAGES = [
    {"image_size": 32, "images": 40, "batch": 8, "micro_batch": 4},
    {"image_size": 64, "images": 12, "batch": 4},
]
SMALL = {
    "dataset": {"name": "emoji", "limit": 40},
    "width_divisor": 16,
    "stages": STAGES,
    "warmup_images": 16,
    "precision": "fp32",
    "window": 16,
    "sampling": {"steps": 2},
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "small.yaml"
    path.write_text(yaml.safe_dump(NETWORK.to_dict()))
    return path


def job(network, out, **changed):
    given = recipe.Recipe.model_validate({**SMALL, **changed})
    return deploy_job.load(str(network), given, out, Hardware(accelerator="cpu"))


@pytest.fixture
def told(monkeypatch):
    """Told to stop after so many looks; at no time unless set."""
    looks, after = itertools.count(1), []
    monkeypatch.setattr(interruption, "asked", lambda: bool(after) and next(looks) > after[0])
    return after


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    """An uninterrupted training, and what it said."""
    said, out = [], tmp_path_factory.mktemp("whole") / "model"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    loop.run(job(network, out), said.append)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return out, said


def assert_same_weights(one, other):
    tensors = [load_file(path) for path in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


@pytest.mark.parametrize("after", [3, 7])
def test_an_interrupted_training_ends_with_the_same_weights(network, whole, tmp_path, told, after):
    said, out = [], tmp_path / "model"
    told.append(after)
    with pytest.raises(interruption.Interrupted):
        loop.run(job(network, out), said.append)
    told.clear()
    loop.run(job(network, out), said.append)
    for name in ("network/weights.safetensors", "checkpoint.safetensors"):
        assert_same_weights(whole[0] / name, out / name)
    assert any("going on from" in line for line in said)


def test_killed_in_the_export_it_goes_on_without_training_again(network, whole, tmp_path, monkeypatch):
    said, out = [], tmp_path / "model"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "write_card", killed)  # the manifest is written by then
        with pytest.raises(KeyboardInterrupt):
            loop.run(job(network, out), lambda line: None)
    assert (out / MANIFEST).exists()
    loop.run(job(network, out), said.append)
    assert any("going on from 40 images of stage 1" in line for line in said)
    assert not any(line.startswith("stage 1 (32 px)  ") for line in said)
    for name in ("network/weights.safetensors", "checkpoint.safetensors"):
        assert_same_weights(whole[0] / name, out / name)
    for name in ("deploy.yaml", "pipeline.yaml", "training.yaml", MANIFEST):
        assert (out / name).read_text() == (whole[0] / name).read_text()
    assert {path.name for path in out.iterdir()} == {path.name for path in whole[0].iterdir()}


def test_what_a_training_leaves(whole, tmp_path):
    out, said = whole
    drawn = drawing.load(out)
    assert drawn.latents == (8, 8, 8) and drawn.plan.steps == 2
    assert drawn.draw(["sun", "heart"], seed=1).shape == (2, 3, 64, 64)
    drawing.sample(out, ["sun"], 0, tmp_path / "sun.png")
    card = (out / "README.md").read_text()
    assert "every width divided by 16" in card and "| 64" in card and "CC-BY 4.0" in card and "images/s" in card
    log = (out / "log.csv").read_text().splitlines()
    assert len(log) == 3 and any("images/s" in line and "GiB" in line for line in said)
    assert yaml.safe_load((out / "deploy.yaml").read_text())["images_seen"] == 52
    with_ema = load_file(out / "checkpoint.safetensors")
    average = {name.removeprefix("ema."): v for name, v in with_ema.items() if name.startswith("ema.")}
    weights = load_file(out / "network" / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    assert any(not torch.equal(with_ema[f"generator.{name}"], value) for name, value in average.items())


def test_a_finished_training_is_left_alone(network, whole):
    said, before = [], (whole[0] / "network" / "weights.safetensors").stat().st_mtime_ns
    loop.run(job(network, whole[0]), said.append)
    assert "to the end already" in said[-1]
    assert (whole[0] / "network" / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"holds a training with learning_rate 0\.001, not 0\.002; .* --out"):
        loop.run(job(network, whole[0], learning_rate=0.002), said.append)


def test_another_training_starts_from_its_weights(network, whole, tmp_path):
    made = job(network, tmp_path / "next", start=str(whole[0]), stages=[{"image_size": 64, "images": 4, "batch": 4}])
    frozen = loop._frozen(made.recipe)
    found = loop._network(made, frozen).state_dict()
    wanted = load_file(whole[0] / "network" / "weights.safetensors")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert made.recipe.training(0).init != "scratch"  # so that the moving average keeps the start


def test_a_one_step_generator_learns_from_a_trained_network(network, whole, tmp_path):
    stage = {"image_size": 64, "images": 8, "batch": 4, "micro_batch": 2}
    changed = {"objective": {"name": "ufogen"}, "sampling": {"solver": "one_step"}, "stages": [stage]}
    made = job(network, tmp_path / "next", start=str(whole[0]), **changed)
    loop.run(made, lambda line: None)
    before, after = (load_file(out / "network" / "weights.safetensors") for out in (whole[0], made.out))
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    drawer = drawing.load(made.out)
    assert (drawer.plan.steps, drawer.plan.calls) == (1, 1) and drawer.draw(["sun"], 0).isfinite().all()
    with pytest.raises(InputError, match="--devices 2: objective ufogen has a critic"):
        two = dataclasses.replace(made, hardware=Hardware(devices=2))
        loop._module(two, loop._network(two, loop._frozen(two.recipe)), 0)


def test_the_default_is_the_papers_recipe():
    given = recipe.Recipe()
    first, second = given.stages
    assert (first.image_size, first.batch, first.images // first.batch) == (256, 4096, 750_000)
    assert (second.image_size, second.batch, second.images // second.batch) == (512, 2048, 250_000)
    found = given.training(0)
    assert (found.learning_rate, found.betas, found.weight_decay) == (1e-3, (0.9, 0.999), 0.01)


def test_a_dry_run_prints_a_recipe_and_writes_nothing(network, tmp_path):
    printed, out = [], tmp_path / "model"
    given = (str(network), None, ["seed=3"], "emoji", out, Hardware(), True)
    loop.start(*given, printed.append)
    (tmp_path / "recipe.yaml").write_text(printed[0])
    again = recipe.load(tmp_path / "recipe.yaml")
    assert again.seed == 3 and again.stages == recipe.PAPER and again.dataset.name == "emoji" and not out.exists()


def test_pictures_that_are_made_as_they_are_asked_for_are_refused(network, tmp_path):
    given = (str(network), None, ["autoencoder={name: kl, shipped: scenes}", "conditioning={encoder: scenes}"])
    with pytest.raises(InputError, match="dataset: scenes makes its pictures .* expected folder, webdataset or coco"):
        loop.start(*given, "scenes", tmp_path / "out", Hardware(), True, print)
    assert not (tmp_path / "out").exists()


def test_what_data_means(tmp_path, monkeypatch):
    (tmp_path / "metadata.jsonl").write_text("")
    assert recipe.dataset_of(str(tmp_path)) == {"name": "folder", "path": str(tmp_path)}
    assert recipe.dataset_of("a/{00..09}.tar") == {"name": "webdataset", "path": "a/{00..09}.tar"}
    assert recipe.dataset_of("{00..09}.tar") == {"name": "webdataset", "path": "{00..09}.tar"}
    assert recipe.dataset_of("{cats,dogs}/*.tar") == {"name": "webdataset", "path": "{cats,dogs}/*.tar"}
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert recipe.dataset_of(f"~/{tmp_path.name}") == {"name": "folder", "path": f"~/{tmp_path.name}"}
    assert recipe.dataset_of("emoji") == {"name": "emoji"}
    assert recipe.dataset_of("{name: coco, path: x}") == {"name": "coco", "path": "x"}
    with pytest.raises(InputError, match="--data nowhere: no data set; .*webdataset"):
        recipe.dataset_of("nowhere")


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("stages: [{image_size: 32, images: 1.5, batch: 1}]", (), [":1", "stages.0.images", "1.5"]),
        ("learning_rat: 1", (), ["learning_rat", "did you mean 'learning_rate'"]),
        ("objective: ufogan", (), ["objective", "ufogen"]),
        ("dataset: {name: emoji, image_size: 8}", (), ["given by the stages"]),
        ("seed: 1", ("precision=fp16",), ["precision", "fp16", "bf16"]),
        ("autoencoder: null", (), ["dataset: required", "--data"]),
    ],
)
def test_recipes_that_are_refused(tmp_path, text, overrides, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        recipe.load(path, overrides, None if "dataset" in " ".join(words) or "given" in words[0] else "emoji")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("changed", "hardware", "words"),
    [
        ({}, {"strategy": "fsdp"}, ["--strategy", "fsdp", "ddp"]),
        ({}, {"devices": 3}, ["stages.0.batch", "8", "--devices 3"]),
        ({"objective": "ufogen"}, {}, ["start: required", "ufogen"]),
        (
            {"objective": "mean_flow", "sampling": {"guidance": 1}},
            {},
            ["sampling.solver: ddim in 25", "mean_flow", "one_step"],
        ),
    ],
)
def test_trainings_that_are_refused(network, tmp_path, changed, hardware, words):
    with pytest.raises(InputError) as caught:
        made = recipe.Recipe.model_validate({**SMALL, **changed})
        deploy_job.load(str(network), made, tmp_path / "model", Hardware(**hardware))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stages": [{**STAGES[0], "image_size": 36}]}, ["stages.0.image_size", "36", "multiple of 8"]),
        ({"stages": [{**STAGES[0], "image_size": 8}]}, ["stages.0.image_size", "8", "halved"]),
        ({"width_divisor": 7}, ["width_divisor", "7"]),
    ],
)
def test_pictures_and_widths_that_do_not_divide(network, tmp_path, changed, words):
    with pytest.raises(InputError) as caught:
        loop.run(job(network, tmp_path / "model", **changed), lambda line: None)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "model").exists()


def test_a_folder_of_another_kind_is_left_alone(network, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "export")
    (tmp_path / "export" / "checkpoint.safetensors").unlink()
    with pytest.raises(InputError, match="holds an export that nas train did not write"):
        loop.run(job(network, tmp_path / "export"), lambda line: None)


def test_a_second_process_is_refused_and_writes_nothing(network, whole, tmp_path):
    with lock.hold(whole[0], ""):
        before = {path: path.stat().st_mtime_ns for path in whole[0].iterdir()}
        with pytest.raises(InputError, match=r"another process is training in it; .* --out") as told:
            loop.run(job(network, whole[0]), lambda line: None)
        assert "\n" not in str(told.value)
        changed = [path.name for path, when in before.items() if path.stat().st_mtime_ns != when]
        assert set(changed) <= {lock.NAME}
    loop.run(job(network, whole[0]), lambda line: None)


def test_it_is_no_trial_to_verify(whole, tmp_path):
    with pytest.raises(InputError, match="holds no trial of a study"):
        verify.verify(whole[0], tmp_path)


def test_its_graphs_are_exported_beside_it(whole, tmp_path, tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    folder = shutil.copytree(whole[0], tmp_path / "model")
    with pytest.raises(InputError, match="is no trial of a study"):
        export.add_formats(folder, ["onnx"], quantised=True)
    with converted.shared(tmp_path_factory):
        found = CliRunner().invoke(cli.app, ["export", str(folder), "--format", "onnx"])
    assert found.exit_code == 0, found.exception
    expected, drawn = (drawing.load(folder, runtime).draw(["sun"], seed=2) for runtime in ("pytorch", "onnxruntime"))
    assert drawn.shape == (1, 3, 64, 64) and torch.allclose(drawn, expected, atol=1e-4)
    assert "onnx/denoiser.onnx" in (folder / "README.md").read_text()


# --- as a command ----------------------------------------------------------------------------------------------------


def command(network, out, *more):
    given = ["--data", json.dumps(SMALL["dataset"]), "--out", str(out), *more]
    for name, value in SMALL.items():
        given += [] if name == "dataset" else ["--set", f"{name}={json.dumps(value)}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    script = network.with_name("command.py")  # a file, because Lightning starts it again for the second process
    script.write_text("from nas.cli import main\n\nmain()\n")
    return subprocess.Popen(
        [sys.executable, str(script), "train", str(network), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


@pytest.mark.slow
def test_sigterm_saves_and_the_command_goes_on(network, tmp_path):
    out, stages = tmp_path / "model", json.dumps([{**STAGES[0], "images": 2_000}])
    long = ["--set", f"stages={stages}", "--set", "checkpoint_minutes=0.001"]
    process = command(network, out, *long)
    while not (out / "checkpoint.safetensors").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "the same command goes on" in said, said
    said, _ = (process := command(network, out, *long)).communicate(timeout=300)
    assert process.returncode == 0 and "going on from" in said, said


@pytest.mark.slow
def test_two_processes_train_together(network, tmp_path):
    process = command(network, tmp_path / "model", "--devices", "2", "--strategy", "ddp")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("stage 2 (64 px) is done") == 1
    assert drawing.load(tmp_path / "model").draw(["sun"], seed=1).shape == (1, 3, 64, 64)
