"""The league is at equal compute: images, passes and pairs of every cell, and of the grid its learning rates come from."""

from pathlib import Path

import pytest
from test_objectives import Denoiser, inputs

from nas import menu
from nas.settings import design, study_file
from nas.trial.checks import check
from nas.weights import checkpoints

FOLDER = Path(__file__).parents[1] / "studies/one_step_league"
BASE = Path(__file__).parents[1] / "nas/assets/base_scenes.safetensors"
BUDGET = 0.025 * 3  # passes of the base's own training that a cell may cost: a share, times those of an image


def cells(file):
    study = study_file.load(FOLDER / file)
    return study, {cell.name: design.changed(study, cell.settings) for cell in design.cells(study.ablation)}


def passes(study):
    """All that a cell's training costs."""
    module = menu.pick("objectives", study.objective.name)
    settings = study.objective.settings("objectives")
    made = module.Objective(Denoiser(), Denoiser().requires_grad_(False), settings, **inputs(module))
    images = study.training.images_seen
    return getattr(made, "offline_passes", 0) + made.passes_of(study.training.updates(images)) * images


@pytest.mark.parametrize("file", ["study.yaml", "add.yaml", "perceptual.yaml"])
def test_every_cell_costs_the_same(file):
    for name, study in cells(file)[1].items():
        assert passes(study) == pytest.approx(BUDGET * checkpoints.images_seen(BASE), rel=0.02), name


def test_the_longer_cells_cost_a_fifth_of_the_bases_training():
    for name, study in cells("longer.yaml")[1].items():
        assert passes(study) == pytest.approx(0.2 * 3 * checkpoints.images_seen(BASE), rel=0.002), name


def test_no_cell_of_the_grid_costs_more_than_half_of_it_beside_its_pairs():
    for name, study in cells("tuning.yaml")[1].items():
        pairs = getattr(study.objective.settings("objectives"), "pairs", None)
        trained = passes(study) - (pairs.passes if pairs else 0)
        assert trained <= 1.02 / 2 * BUDGET * checkpoints.images_seen(BASE), name


def test_every_objective_that_a_base_can_teach_a_shorter_way_is_in_it():
    _, found = cells("study.yaml")
    outside = {"add", "denoising", "deme", "feature_distillation", "masked_autoregression"}
    assert {study.objective.name for study in found.values()} == set(menu.names("objectives")) - outside


@pytest.mark.parametrize(
    ("file", "count"),
    [("study.yaml", 11), ("tuning.yaml", 22), ("longer.yaml", 3), ("add.yaml", 3), ("perceptual.yaml", 4)],
)
def test_it_is_accepted(file, count):
    study, found = cells(file)
    check.check(study, None)  # raises what is wrong
    assert len(found) == count
