"""An ablation as a run: one tiny real one, and the base its cells start from."""

import json
from io import StringIO
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from ablation_study import STUDY, loaded
from at_once import AtOnce, InProcess
from rich.console import Console
from safetensors.torch import load_file

import nas.study.run
from nas import failures
from nas.analysis import results
from nas.deploy import export
from nas.errors import InputError
from nas.networks.backbones import Proxy
from nas.networks.backbones.unet import Config, presets
from nas.objectives import denoising
from nas.report.live.progress import Progress
from nas.runs.directory import RunDirectory, open_run
from nas.settings import design
from nas.settings.study_file import load
from nas.space import fields
from nas.space.search_space import SearchSpace
from nas.study import launch
from nas.study.cells import Cells
from nas.study.pool import Pool
from nas.study.run import Run
from nas.trial import base_model
from nas.trial.bench import Bench, fresh, sampling_conditions
from nas.trial.checks import check
from nas.weights import checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The small study over the kind of attention, which starts from a base model; its folder and how to run it again."""
    patch = pytest.MonkeyPatch()
    patch.setattr(nas.study.run, "Workers", InProcess)
    root = tmp_path_factory.mktemp("ablation")
    (root / "study.yaml").write_text(STUDY)
    options = ["base={training: {images_seen: 32, batch: 16}}", 'ablation.factors={kv: {field: architecture.attention, '
               'levels: [softmax, relu]}}', "training.init=base"]  # fmt: skip
    options += ["architecture={levels: [{channels: 320, down: [0], up: [0]}, {channels: 320, down: [1], up: [1], "
                "self_attention: true, cross_attention: true}]}", "dataset.limit=32"]  # fmt: skip
    launch.run(root / "study.yaml", options, root / "runs")
    (folder,) = (root / "runs" / "small").iterdir()
    yield root, folder, options
    patch.undo()


def test_a_run_trains_every_cell_with_shared_seeds_and_writes_its_tables(finished):
    _, folder, _ = finished
    table = results.load(folder)
    assert sorted(zip(table["cell"], table["repeat"], strict=True)) == list(product(["kv=relu", "kv=softmax"], [0, 1]))
    assert (table["state"] == "complete").all()
    assert table.groupby("repeat")["seed"].nunique().tolist() == [1, 1] and table["seed"].nunique() == 2
    for name in ("effects.csv", "effects.md", "effects.tex", "effects.html", "report.html", "base.json"):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "best.yaml").exists()
    page = (folder / "report.html").read_text()
    assert "Differences from the reference cell" in page and "Which decision mattered" not in page
    written = pd.read_csv(folder / "effects.csv")
    assert set(written["table"]) == {"cells", "differences"}
    cell = written[(written["column"] == "denoising_loss") & (written["table"] == "cells")].set_index("cell")
    by_hand = table[table["cell"] == "kv=relu"]["denoising_loss"].mean()
    assert cell["mean"]["kv=relu"] == pytest.approx(by_hand)


def test_a_failed_cell_runs_again_and_more_repeats_continue(finished, capsys):
    root, folder, options = finished
    record = folder / "trials" / "0003" / "record.json"
    broken = json.loads(record.read_text()) | {"state": "failed", "reason": "made so by the test"}
    record.write_text(json.dumps(broken))
    base = json.loads((folder / "base.json").read_text())["weights"]
    trained = (root / base).stat().st_mtime_ns
    launch.run(root / "study.yaml", [*options, "ablation.repeats=3"], root / "runs")
    assert [path.name for path in (root / "runs" / "small").iterdir()] == [folder.name]
    table = results.load(folder)
    assert table["state"].value_counts().to_dict() == {"complete": 6, "failed": 1}
    again = table[(table["cell"] == broken["cell"]) & (table["repeat"] == broken["repeat"])]
    assert again["denoising_loss"].nunique() == 1  # the same seed gives the same training
    assert (root / base).stat().st_mtime_ns == trained
    assert "continuing" in capsys.readouterr().out


def test_an_exported_cell_draws_as_its_cell_says(finished, tmp_path):
    _, folder, _ = finished
    export.export(RunDirectory(folder), "trial:0", tmp_path / "model")
    assert yaml.safe_load((tmp_path / "model" / "pipeline.yaml").read_text())["sampling"]["steps"] == 2
    # an exported model is a base checkpoint; one of another architecture is refused
    config = Config.from_dict(yaml.safe_load((tmp_path / "model" / "proxy" / "config.yaml").read_text()))
    path = checkpoints.checkpoint_file(tmp_path / "model")
    checkpoints.load_weights(config.build(), path, "base.checkpoint")
    other = Config.from_dict({**config.to_dict(), "latent_channels": 16})
    with pytest.raises(InputError, match=r"base\.checkpoint: .* holds another architecture: .* expected"):
        checkpoints.load_weights(other.build(), path, "base.checkpoint")


def test_initial_weights_agree_where_shapes_do():
    proxy = Proxy(16, 8, 16, 16)
    base = presets()["mobilediffusion"]
    one, two = (fresh(fields.changed(base, [("levels.2.channels", w)]).scaled(proxy), 5) for w in (1024, 1280))
    before = {name: tensor.clone() for name, tensor in two.state_dict().items()}
    checkpoints.copy_agreeing(one, two)
    own, other = two.state_dict(), one.state_dict()
    same = [name for name in own if own[name].shape == other[name].shape]
    assert all(torch.equal(own[name], other[name]) for name in same)
    assert all(torch.equal(own[name], before[name]) for name in own if name not in same)
    assert 0 < len(same) < len(own)


def test_an_objective_that_asks_for_a_teacher_gets_its_own_copy_of_the_base(finished, monkeypatch):
    root, folder, options = finished
    study = load(root / "study.yaml", options)
    bench = Bench(study, RunDirectory(folder).cache)
    network = bench.network(bench.scaled(base_model.architecture(study).to_dict()), seed=1)
    taught = []
    monkeypatch.setattr(denoising.Objective, "requires", frozenset({"teacher"}))
    monkeypatch.setattr(
        denoising.Objective, "__init__", lambda self, generator, teacher, settings: taught.append(teacher)
    )
    bench.objective(network, 0)
    bench.objective(network, 0)
    base = load_file(base_model.weights_path(bench))
    assert taught[0] is not taught[1]
    assert all(torch.equal(tensor, base[name]) for name, tensor in taught[0].state_dict().items())
    assert all(torch.equal(tensor, base[name]) for name, tensor in network.state_dict().items())  # init: base
    assert not any(parameter.requires_grad for parameter in taught[0].parameters())


def test_an_objective_that_asks_for_a_teacher_needs_a_base(tmp_path, monkeypatch):
    monkeypatch.setattr(denoising.Objective, "requires", frozenset({"teacher"}))
    with pytest.raises(
        InputError, match=r"^objective: cell '.*': denoising starts from a trained network.* no base section"
    ):
        check.check(loaded(tmp_path), None)


def test_an_objective_that_is_taught_predicts_what_its_teacher_does(tmp_path):
    def study(prediction):
        taught = (
            f"{{training: {{images_seen: 16, batch: 16}}, objective: {{name: denoising, prediction: {prediction}}}}}"
        )
        return loaded(tmp_path, "training.init=base", f"base={taught}", "objective=ufogen", "sampling={solver: one_step}",
                      "ablation.factors={pace: {field: training.batch, levels: [8, 16]}}",
                      "ablation.minimise=[]")  # fmt: skip

    check.check(study("v"), None)
    with pytest.raises(InputError, match=r"^objective.prediction: cell 'pace=8': 'v', .* with 'epsilon'"):
        check.check(study("epsilon"), None)


def test_the_base_is_cached_by_everything_that_went_into_it(tmp_path):
    def path(*overrides):
        study = loaded(tmp_path, "base={training: {images_seen: 32, batch: 16}}", *overrides)
        return base_model.weights_path(Bench(study, tmp_path / "cache"))

    changes = ("seed=1", "proxy.width_divisor=8", "base.training.images_seen=48", "architecture=sd15",
               "base.objective={name: denoising, prediction: epsilon}", "dataset.limit=64")  # fmt: skip
    paths = [path(), *map(path, changes)]
    assert len(set(paths)) == len(paths)
    assert path("training.images_seen=64", "ablation.repeats=4", "evaluation.images=16", "sampling.steps=1") == paths[0]


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("prepare_base", "base: the loss is nan after 640 images; change base.training, such as its batch or learning_rate"),
        ("prepare", "the preparation: the loss is nan after 640 images; change dataset, autoencoder"),
    ],
)  # fmt: skip
def test_what_no_trial_can_do_without_ends_the_run_in_one_line(tmp_path, fails, said):
    class Ends(AtOnce):
        def compute(self, tag, function, *arguments):
            if function.__name__ == fails:
                raise failures.Failed("the loss is nan after 640 images")
            return {}, ["a", "b"]

    study = loaded(tmp_path, "base={training: {images_seen: 32, batch: 16}}")
    directory, _ = open_run(study, tmp_path / "runs")
    running = Run(study, Cells(study), directory, Progress(Console(file=StringIO())), engine=Ends)
    with pytest.raises(InputError) as refused:
        running.execute()
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_conditions_say_what_the_cells_vary(tmp_path):
    study = loaded(tmp_path)
    assert design.varied(study.ablation) == [
        "architecture.levels.*.ffn_ratio",
        "training.learning_rate",
        "sampling.steps",
    ]
    as_given = study.sampling.model_dump(mode="json")
    assert as_given["steps"] == 2
    assert sampling_conditions(study) == {**as_given, "steps": "as the cell says"}
    assert sampling_conditions(study.model_copy(update={"ablation": None})) == as_given


@pytest.mark.parametrize("name", ["sa_ca_placement", "quickstart"])
def test_a_study_that_names_a_space_is_a_search_only_without_an_ablation(name):
    study = load(Path(__file__).parents[1] / "studies" / name)
    assert study.space is not None
    proposer = launch.proposer_of(study, SearchSpace.load(study.space))
    assert type(proposer) is (Cells if study.ablation else Pool)
