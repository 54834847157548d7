"""Random search: the draws of Optuna's own random sampler, of a stream for each trial and parameter."""

from hashlib import sha256

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from nas.search.samplers import NumberedRandomSampler

DISTRIBUTIONS = [
    CategoricalDistribution((1, 2, 3)),
    CategoricalDistribution(("one", "two")),
    CategoricalDistribution((False, True, None)),
    IntDistribution(768, 1280, step=128),
    IntDistribution(-3, 9),
    IntDistribution(1, 64, log=True),
    FloatDistribution(0.0, 1.0),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_a_draw_is_that_of_optunas_sampler_with_the_streams_seed(distribution):
    study = optuna.create_study()
    ours, drawn = NumberedRandomSampler(5), set()
    for number in range(60):
        trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
        trial.number = number
        seed = int.from_bytes(sha256(f"5/{number}/axis".encode()).digest()[:4], "big")
        expected = RandomSampler(seed=seed).sample_independent(study, trial, "axis", distribution)
        found = ours.sample_independent(study, trial, "axis", distribution)
        assert found == expected and type(found) is type(expected)
        drawn.add(found)
    assert len(drawn) > 1
