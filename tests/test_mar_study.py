"""Studies of masked autoregressors: what is refused before anything is trained, and what a search over plans counts."""

import pytest
import yaml

from nas.errors import InputError
from nas.networks import backbones
from nas.settings import plan_axes, study_file
from nas.space.search_space import SearchSpace
from nas.trial.checks import check

SMALL = {
    "backbone": "mar",
    "encoder_depth": 1,
    "decoder_depth": 1,
    "width": 64,
    "heads": 2,
    "head_depth": 1,
    "head_width": 64,
}
STUDY = {
    "space": "mar",
    "dataset": {"name": "scenes", "pictures": 64, "held_out_pictures": 64},
    "autoencoder": {"name": "kl", "shipped": "scenes"},
    "conditioning": {"encoder": "scenes"},
    "objective": "masked_autoregression",
    "training": {"images_seen": 64},
    "sampling": {"solver": "autoregressive", "steps": 4, "iterations": 4},
    "metrics": ["scene_accuracy"],
    "search": {"sampler": "random", "trials": 2, "minimise": ["macs"], "maximise": ["prompt_accuracy"]},
}


def loaded(folder, **given):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in {**STUDY, **given}.items() if value is not None}))
    study = study_file.load(path)
    return study, SearchSpace.load(study.space) if study.space else None


def ablated(folder, levels, **given):
    ablation = {
        "design": "one_factor",
        "factors": {"way": {"levels": levels}},
        "maximise": ["prompt_accuracy"],
        "repeats": 2,
    }
    return loaded(folder, space=None, search=None, architecture=SMALL, ablation=ablation, **given)


def test_a_study_of_masked_autoregressors_is_accepted(tmp_path):
    """As it is, and without a plan that draws token by token."""
    for given in ({}, {"objective": "denoising", "sampling": {"solver": "ddim", "steps": 4}}):
        study, space = loaded(tmp_path, **given)
        check.check(study, space)
        assert space.family == ("backbones", "mar")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"space": "mobilediffusion"}, "^sampling.solver: autoregressive draws token by token, which this family"),
        ({"space": ["mar", "dit"]}, "^sampling.solver: autoregressive draws token by token, which this family"),
        (
            {"space": "dit", "sampling": {"solver": "ddim"}},
            "^objective: masked_autoregression trains networks that draw token by token",
        ),
        ({"objective": "denoising"}, "^sampling.solver: autoregressive, but denoising never tells the network a token"),
        (
            {"objective": {"name": "masked_autoregression", "order": "raster"}},
            "^sampling.order: random, but objective.order is raster",
        ),
    ],
)
def test_a_plan_of_one_family_given_to_another_is_one_line(tmp_path, given, words):
    with pytest.raises(InputError, match=words) as caught:
        check.check(*loaded(tmp_path, **given))
    assert "\n" not in str(caught.value)


def test_cells_are_checked_one_by_one(tmp_path):
    raster = {"objective.order": "raster", "sampling": {"solver": "autoregressive", "order": "raster", "steps": 4}}
    check.check(*ablated(tmp_path, {"random": {}, "raster": raster}))
    with pytest.raises(InputError, match="^sampling.order: cell 'reference': random, but objective.order is raster"):
        check.check(*ablated(tmp_path, {"a": {"objective.order": "raster"}, "b": {}}))


def test_a_search_over_plans_counts_what_drawing_costs(tmp_path):
    search = {**STUDY["search"], "minimise": ["drawing_macs"], "plan": {"iterations": [2, 8], "steps": [4, 10]}}
    study, space = loaded(tmp_path, search=search)
    check.check(study, space)
    config = backbones.from_dict({**SMALL, "patch": 4, "latent_channels": 4})
    for way in plan_axes.ways(study):
        drawn = plan_axes.plan(study, way)
        assert plan_axes.costs(study, config, way)["drawing_macs"] == drawn.macs(config.units(64, 77))
    assert plan_axes.cheapest(study, config) == {"plan.iterations": 2, "plan.steps": 4}
    with pytest.raises(InputError, match="^search.plan.solver: autoregressive draws token by token"):
        wrong = {**search, "plan": {"solver": ["autoregressive"]}}
        given = loaded(tmp_path, space="dit", search=wrong, objective="denoising", sampling={"solver": "ddim"})
        check.check(*given)
