"""Plans searched beside architectures: what a trial costs and is called, what is trained twice, and what is refused."""

import free_study
import pytest

from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.networks import backbones
from nas.runs import directory, records
from nas.settings import plan_axes, study_file
from nas.space.search_space import SearchSpace
from nas.trial.checks import check

PLAN = "plan: {steps: [4, 10], cache: [null, {name: fora, every: 2}, {name: deepcache, every: 2, branch: 1}]}, "


def written(folder, plan=PLAN, trials=12, minimise="fid_efficientnet_lite0, drawing_macs"):
    path = folder / "study.yaml"
    text = free_study.STUDY.format(trials=trials, workers=1).replace("[fid_efficientnet_lite0, macs]", f"[{minimise}]")
    path.write_text(text.replace("search: {", f"search: {{{plan}"))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    return free_study.coordinate(written(folder), folder / "runs").directory.path


def test_a_trial_is_a_network_with_its_plan(run):
    found = records.read_all(run)
    trained = [record for record in found.values() if record["state"] == "complete"]
    assert len(trained) == 12 and len({record["key"] for record in trained}) == 12
    for record in trained:
        steps, cache = record["choices"]["plan.steps"], record["choices"]["plan.cache"]
        settings = record["settings"]
        assert settings["sampling.steps"] == steps
        assert plan_axes.spelled(settings["sampling.cache"]) == cache
        plan = Plan(steps=steps, cache=settings["sampling.cache"])
        config = backbones.from_dict(record["architecture"])
        assert record["cost"]["drawing_macs"] == plan.macs(config.units(64, 77))
        if cache == "none":
            assert record["cost"]["drawing_macs"] == 2 * steps * record["cost"]["macs"]
        assert record["key"].startswith(config.key + "-")
    assert {record["choices"]["plan.cache"] for record in trained} == {
        "none",
        "fora every 2",
        "deepcache every 2 branch 1",
    }


def test_the_same_network_with_another_plan_is_another_trial(tmp_path):
    study = study_file.load(written(tmp_path))
    config = SearchSpace.load("mobilediffusion").base
    keys = {
        plan_axes.key(study, config, {"plan.steps": steps, "plan.cache": cache})
        for steps in (4, 10)
        for cache in ("none", "fora every 2")
    }
    assert len(keys) == 4


def test_a_search_without_plans_is_what_it_was(tmp_path):
    study = study_file.load(written(tmp_path, plan="", minimise="fid_efficientnet_lite0, macs"))
    space = SearchSpace.load("mobilediffusion")
    assert plan_axes.extended(study, space) is space and plan_axes.key(study, space.base, {}) == space.base.key
    assert plan_axes.costs(study, space.base, {}) == study.deploy.costs(space.base)
    now = study.resolved()
    before = {**now, "search": {key: value for key, value in now["search"].items() if key != "plan"}}
    assert now["search"]["plan"] == {} and not directory._differing(before, now)  # a run of an older nas goes on


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("plan: {step: [4]}, ", "search.plan.step: unknown field of sampling; did you mean 'steps'"),
        ("plan: {steps: [4, 0]}, ", "search.plan: steps 0: steps: expected greater than or equal to 1"),
        ("plan: {steps: [4, 4]}, ", "search.plan.steps: a value is listed twice"),
        ("plan: {cache: [{name: fora, evry: 2}]}, ", "unknown key"),
        (
            "plan: {cache: [{name: deepcache, branch: 40}]}, ",
            "search.plan.cache: deepcache every 2 branch 40: cache.branch: 40; expected at most",
        ),
        ("plan: {steps: [4]}, sampler: pool, ", "search.plan: sampler pool looks at networks"),
    ],
)
def test_bad_plans_are_refused_before_anything_is_written(tmp_path, plan, message):
    path = written(tmp_path, plan)
    if "pool" in plan:
        path.write_text(path.read_text().replace("sampler: random, ", ""))
    with pytest.raises(InputError) as refused:
        study = study_file.load(path)
        check.check(study, SearchSpace.load(study.space))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("steps", ["[1, 100]", "[100, 1]"])
def test_a_budget_of_a_picture_refuses_dear_plans_and_no_search(tmp_path, steps):
    """Whatever the order of the values; a start is tried by its cheapest plan."""
    path = written(tmp_path, f"plan: {{steps: {steps}}}, start: [mobilediffusion], ", trials=3)
    path.write_text(path.read_text().replace("budget: {params: 400M, macs: 200G}", "budget: {drawing_macs: 3000G}"))
    study = study_file.load(path)
    check.check(study, SearchSpace.load(study.space))
    found = records.read_all(free_study.coordinate(path, tmp_path / "runs").directory.path)
    trained = [record for record in found.values() if record["state"] == "complete"]
    assert len(trained) == 3 and all(record["choices"]["plan.steps"] == 1 for record in trained)
    assert all(record["cost"]["drawing_macs"] <= 3e12 for record in trained)


def test_plans_of_one_network_are_compared_on_one_training(tmp_path):
    study = study_file.load(written(tmp_path))
    config = SearchSpace.load("mobilediffusion").base
    keys = [plan_axes.key(study, config, {"plan.steps": steps, "plan.cache": "none"}) for steps in (4, 10)]
    assert keys[0] != keys[1] and {plan_axes.network_key(key) for key in keys} == {config.key}


def test_plans_that_the_objective_does_not_draw_by_are_refused(tmp_path):
    path = written(tmp_path, "plan: {guidance: [1, 3]}, ")
    path.write_text(path.read_text() + "objective: mean_flow\nsampling: {solver: one_step}\n")
    study = study_file.load(path)
    with pytest.raises(InputError, match="sampling.guidance: 3, but mean_flow"):
        check.check(study, SearchSpace.load(study.space))


def test_a_cache_of_a_study_is_checked_before_anything_is_trained(tmp_path):
    path = written(tmp_path, plan="", minimise="fid_efficientnet_lite0, macs")
    path.write_text(path.read_text() + "sampling: {cache: {name: deepcache, branch: 40}}\n")
    study = study_file.load(path)
    with pytest.raises(InputError, match="^sampling.cache.branch: 40; expected at most"):
        check.check(study, SearchSpace.load(study.space))


def test_a_search_for_cheap_pictures_needs_plans(tmp_path):
    study = study_file.load(written(tmp_path, plan=""))
    with pytest.raises(InputError, match="drawing_macs"):
        check.check(study, SearchSpace.load(study.space))
