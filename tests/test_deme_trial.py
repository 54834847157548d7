"""DeMe as a trial of a study, and the study of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_experts import denoiser, same
from test_pairs import BASE
from test_study_scripts import script
from test_training import encoded, on_the_cpu  # noqa: F401 (fixtures)
from test_trial import NETWORK, Small, rung
from test_trial import STUDY as TRIAL

from nas import menu
from nas.errors import InputError
from nas.networks import backbones
from nas.networks.experts import Experts
from nas.objectives import denoising
from nas.settings import design, study_file
from nas.trial import base_model
from nas.trial.checks import check
from nas.weights import checkpoints

STUDY = Path(__file__).parents[1] / "studies/deme"


# --- as a trial ------------------------------------------------------------------------------------------------------

TAUGHT = TRIAL.replace(
    "{name: ufogen, reconstruction: ema_distill}", "{name: deme, experts: 2, table: 4, evaluations: 3}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the benches of these trials keep the base that they share."""
    return tmp_path_factory.mktemp("deme")


def bench_of(folder, training="warmup_images: 0, init: base, learning_rate: 0.003", options=()):
    path = folder / "study.yaml"
    path.write_text(
        TAUGHT.replace("warmup_images: 0, lora: {rank: 2}", training) + BASE.format(json.dumps(NETWORK.to_dict()))
    )
    bench = Small(study_file.load(path, list(options)), folder)
    bench.prepare()
    base_model.train(bench)
    return bench


def test_a_trials_weights_are_one_network_and_rungs_change_nothing(tmp_path, folder):
    bench = bench_of(folder)
    first = rung(bench, tmp_path / "parts", 8)["rung"]
    second = rung(bench, tmp_path / "parts", 16, number=1)["rung"]
    whole = rung(bench, tmp_path / "whole", 16)["rung"]
    parts, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("parts", "whole"))
    assert same(parts, other) and second["metrics"] == whole["metrics"] != first["metrics"]
    base = load_file(base_model.weights_path(bench))
    assert base.keys() == parts.keys() and not same(base, parts)
    logged = {"generator_loss", "expert_1_loss", "coefficient_0", "coefficient_1", "merged_loss_ratio"}
    assert (
        logged <= second["training"].keys()
        and second["training"]["merged_loss_ratio"] == whole["training"]["merged_loss_ratio"]
    )
    assert second["passes"] == 8


def test_a_trial_of_unmerged_experts_is_drawn_and_swept_but_not_exported(tmp_path, folder):
    bench = bench_of(folder, options=("objective.merge=none",))
    made = rung(bench, tmp_path / "trial", 8)
    path, build = tmp_path / "trial" / "weights.safetensors", backbones.from_dict(made["proxy"]).build
    again = checkpoints.restored(build, path, "trial 0")
    config = denoising.noise_schedule(denoising.Settings()).config
    assert (
        isinstance(again, Experts) and bench.denoising_losses(again.eval(), config) == made["rung"]["denoising_losses"]
    )
    with pytest.raises(InputError, match="2 experts by time"):
        checkpoints.load_weights(build(), path, "runs/one")


def test_a_trial_of_adapters_leaves_one_plain_network(tmp_path, folder):
    bench = bench_of(folder, "warmup_images: 0, init: base, learning_rate: 0.003, lora: {rank: 2}")
    rung(bench, tmp_path / "trial", 8)
    found = load_file(tmp_path / "trial" / "weights.safetensors")
    assert found.keys() == load_file(base_model.weights_path(bench)).keys()
    assert not (tmp_path / "trial" / "adapters.safetensors").exists()


# --- the study -------------------------------------------------------------------------------------------------------


def cells(file):
    study = study_file.load(STUDY / file)
    check.check(study, None)  # raises what is wrong
    return {cell.name: design.changed(study, cell.settings) for cell in design.cells(study.ablation)}


def passes(study):
    """All that a cell's training costs."""
    module, images = menu.pick("objectives", study.objective.name), study.training.images_seen
    one = module.Objective(denoiser(0), denoiser(0).requires_grad_(False), study.objective.settings("objectives"))
    return getattr(one, "offline_passes", 0) + one.passes_of(study.training.updates(images)) * images


@pytest.mark.parametrize(("file", "share"), [("study.yaml", 0.04), ("tuning.yaml", 0.0075)])
def test_every_cell_of_the_study_costs_the_same(file, share):
    base = checkpoints.images_seen(STUDY.parents[1] / "nas/assets/base_scenes.safetensors")
    for name, study in cells(file).items():
        assert passes(study) == pytest.approx(share * 3 * base, rel=0.02), name


def test_the_table_of_cosines_corrects_for_chance():
    """Two ranges that share a direction and one against it, each with noise of its own half."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(20_000, generator=generator).double()
    mine = [shared, shared, -shared]
    found = torch.stack(
        [torch.stack([one + torch.randn(20_000, generator=generator) for _ in range(2)]) for one in mine]
    )
    table = script("deme/gradient_cosine.py").table(found).set_index(["range_a", "range_b"])
    assert table.loc[(0, 1), "apart"] == pytest.approx(0.5, abs=0.03)  # signal and noise alike
    assert table.loc[(0, 1), "corrected"] == pytest.approx(1, abs=0.05)
    assert table.loc[(0, 2), "corrected"] == pytest.approx(-1, abs=0.05)
    assert table.loc[(0, 0), "cosine"] == 1 and len(table) == 6
