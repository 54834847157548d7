"""What people believe of a space, and how a search forgets it."""

import random
from dataclasses import replace
from math import log, prod

import numpy as np
import pytest
import test_pool
from at_once import AtOnce
from free_study import coordinate, free

from nas.cost.budget import over_budget
from nas.errors import InputError
from nas.runs import looks
from nas.runs.records import UNTRAINED
from nas.search import prior
from nas.seeds import trial_seed
from nas.settings import beliefs, plan_axes, study_file
from nas.settings.beliefs import Beliefs
from nas.space.search_space import SearchSpace
from nas.trial.checks import check

STUDY = """
name: believed
space: mobilediffusion
dataset: emoji
budget: {params: 400M, macs: 200G}
search: {sampler: tpe, trials: 12, minimise: [fid_efficientnet_lite0, macs]}
stopping: {rule: none, rungs: [1.0]}
tracking: {mode: "off"}
workers: 1
"""
LIKELY = "search.prior={ffn_ratio: {value: 2.0, confidence: high}, conv_64: {value: separable}}"
pooled = test_pool.execute
engine = test_pool.engine


@pytest.fixture(scope="module")
def space():
    return SearchSpace.load("mobilediffusion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("believed")
    (path / "study.yaml").write_text(STUDY)
    return path


def asked(folder, *overrides):
    return study_file.load(folder / "study.yaml", overrides)


@pytest.fixture(scope="module")
def small(space):
    """Three axes, one of which is there under a condition only."""
    named = {axis.name: axis for axis in space.axes}
    axes = (named["self_attention_16"], named["conv_64"], replace(named["ffn_ratio"], when=({"conv_64": ("full",)},)))
    return replace(space, axes=axes)


def chance(space, member):
    """The probability of a member where all active choices are equally likely."""
    return prod(1 / len(space.axis(name).choices) for name in member)


def test_draws_are_distributed_as_the_weights_say(small):
    """Weights are ratios of probabilities: they add up to 1 over members, and are what draws are counted to be."""
    believed = Beliefs(small, {"conv_64": ("full", 0.5), "ffn_ratio": (small.axis("ffn_ratio").choices[0], 0.75)})
    members = list(small.enumerate())
    expected = [chance(small, member) * believed.weight(member) for member in members]
    assert sum(expected) == pytest.approx(1)
    rng, counts = random.Random(0), [0] * len(members)
    for _ in range(4_000):
        counts[members.index(believed.draw(rng))] += 1
    deviations = (np.array(counts) - 4_000 * np.array(expected)) / np.sqrt(4_000 * np.array(expected))
    assert np.abs(deviations).max() < 4


def test_a_weight_by_hand(small):
    choices = small.axis("ffn_ratio").choices
    believed = Beliefs(small, {"ffn_ratio": (choices[0], 0.75)})
    member = {"self_attention_16": True, "conv_64": "full", "ffn_ratio": choices[0]}
    assert believed.weight(member) == pytest.approx(0.25 + 0.75 * len(choices))
    assert believed.weight({**member, "ffn_ratio": choices[1]}) == pytest.approx(0.25)
    assert believed.weight({"self_attention_16": True, "conv_64": "separable"}) == 1  # the axis is not there


def test_draws_are_half_at_first_and_bounded():
    assert prior.share(0) == 0.5 and prior.share(prior.FADES) == 0.25
    for trials in (1, 8, 64, 1_000):
        bound = prior.FADES / 2 * log(1 + trials / prior.FADES) + 0.5
        assert bound - 0.5 < sum(map(prior.share, range(trials))) < bound


def test_a_weight_decays_with_evidence():
    rated, weights = np.array([1.0, 1.2]), np.array([3.0, 0.25])
    assert prior.weighted(rated, weights, 0) == pytest.approx(rated * weights)
    assert prior.weighted(rated, weights, 3) == pytest.approx(rated * np.sqrt(np.sqrt(weights)))
    assert [int(np.argmax(prior.weighted(rated, weights, n))) for n in (0, 12, 13, 100)] == [0, 0, 1, 1]
    assert np.array_equal(prior.weighted(rated, np.ones(2), 5), rated)


class Free(AtOnce):
    """The free objective, one at a time, in this process."""

    slots = 1

    def compute(self, tag, function, *arguments):
        function, *arguments = free(function, arguments)
        return function(*arguments)


def test_an_optuna_sampler_gives_way_to_draws(folder, space, tmp_path):
    """One coin for each training, whatever is refused before it; which draw it is follows from the seed and the trial."""
    done = coordinate(folder / "study.yaml", tmp_path / "runs", make=Free, overrides=[LIKELY])
    believed = beliefs.of(done.study, space)
    begun, ended, drawn, tried = 0, 0, 0, set()
    for number, record in done.records.items():
        if random.Random(trial_seed(0, "prior", begun)).random() < 4 / (8 + ended):
            rng = random.Random(trial_seed(0, "belief", number))
            members = (space.architecture(choices := believed.draw(rng)) for _ in range(20))
            costs = ((member, done.study.deploy.costs(member)) for member in members)
            first = next(m for m, cost in costs if m.key not in tried and not over_budget(cost, done.study.budget))
            assert record["key"] == first.key and record["choices"] == choices
            drawn += 1
        tried.add(record["key"])
        begun += record["state"] not in UNTRAINED
        ended += record["state"] == "complete"
    assert ended == 12 and drawn >= 3


def test_a_run_that_goes_on_draws_on(folder, tmp_path):
    root = tmp_path / "runs"
    begun = coordinate(folder / "study.yaml", root, make=Free, overrides=[LIKELY, "search.trials=2"])
    done = coordinate(folder / "study.yaml", root, make=Free, overrides=[LIKELY, "search.trials=4"])
    assert done.directory.path == begun.directory.path
    assert sum(record["state"] == "complete" for record in done.records.values()) == 4


def test_a_pool_looks_at_more_that_is_likely(pooled):
    told = "search.prior={conv_64: {value: separable, confidence: high}}"
    plain, believed = (looks.read(pooled("search.trials=1", *given).path) for given in ([], [told]))
    counts = [sum(look["choices"]["conv_64"] == "separable" for look in some.values()) for some in (plain, believed)]
    assert counts[1] > counts[0]


def test_a_pool_trains_the_likely_first(pooled):
    """Of candidates that add alike the one that is likely; brute force over what was looked at."""
    done = pooled("search.trials=1", "search.prior={conv_64: {value: separable, confidence: high}}")
    pool = done.run.proposer
    keys = list(pool._points)
    trained = done.records[0]["key"]
    pool._proposals = type(pool._proposals)([])
    pool._trials.records.clear()
    rated = pool._expected(keys)
    weights = [0.25 + 0.75 * 2 * (pool._choices[key]["conv_64"] == "separable") for key in keys]
    assert keys[int(np.argmax(rated * np.array(weights)))] == trained


def test_a_pool_with_beliefs_goes_on(pooled):
    told = "search.prior={conv_64: {value: separable}}"
    begun = pooled(told, "search.trials=2")
    done = pooled(told)
    assert done.path == begun.path and len(done.records) == 5
    assert [done.records[number]["key"] for number in (0, 1)] == [r["key"] for r in begun.records.values()]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "{ffn_ration: {value: 2}}",
            "search.prior.ffn_ration: no axis 'ffn_ration' in space 'mobilediffusion'; did you mean",
        ),
        ("{ffn_ratio: {value: 2.5}}", "search.prior.ffn_ratio.value: 2.5 is not on the axis"),
        (
            "{conv_64: {value: seperable}}",
            "search.prior.conv_64.value: 'seperable' is not on the axis; did you mean 'separable'?",
        ),
        ("{self_attention_16: {value: 1}}", "search.prior.self_attention_16.value: 1 is not on the axis"),
    ],
)
def test_what_is_not_in_the_space_is_one_line(folder, space, given, said):
    study = asked(folder, f"search.prior={given}")
    with pytest.raises(InputError) as refused:
        beliefs.of(study, space)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["search.prior={conv_64: {value: full, confidence: hihg}}"],
            "--set search.prior.conv_64.confidence: unknown confidence 'hihg'; did you mean 'high'? expected one of: low,",
        ),
        (["search.prior={conv_64: {}}"], "--set search.prior.conv_64.value: required, but not given"),
        (
            ["search.prior={conv_64: full}"],
            "--set search.prior.conv_64: expected a section of keys and values, got 'full'",
        ),
        ([LIKELY, "search.sampler=random"], "--set search.prior: sampler random learns nothing; expected one of: tpe,"),
    ],
)
def test_what_no_belief_is_is_one_line(folder, overrides, said):
    with pytest.raises(InputError) as refused:
        asked(folder, *overrides)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_it_is_written_only_where_it_is_given(folder):
    assert "prior" not in asked(folder).resolved()["search"]
    assert asked(folder, LIKELY).resolved()["search"]["prior"]["conv_64"] == {
        "value": "separable",
        "confidence": "medium",
    }


def test_values_of_plans_may_be_likely(folder, space):
    study = asked(folder, "search.plan={steps: [4, 10]}", "search.prior={plan.steps: {value: 10}}")
    assert beliefs.of(study, plan_axes.extended(study, space)).likely == {"plan.steps": (10, 0.5)}


def test_a_study_is_checked_with_its_beliefs(folder, space):
    with pytest.raises(InputError, match="^search.prior.plan.steps.value: 5 is not on the axis"):
        check.check(asked(folder, "search.plan={steps: [4, 10]}", "search.prior={plan.steps: {value: 5}}"), space)
