"""What proposes architectures: Optuna's samplers, and random search whose trial n is the same, whoever asks for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from nas.seeds import trial_seed

FIRST_GENERATION = {
    NSGAIISampler._get_generation_key(): 0
}  # what makes a parent of a trial that NSGA-II did not ask for


def sampler(name: str, trials: int, study_seed: int, told: int) -> BaseSampler:
    """Optuna's sampler of a name, for a search of so many trials; a resumed study, with `told` of them, does not replay its
    first suggestions."""
    seed = trial_seed(study_seed, "sampler", told) % 2**32
    if name in ("random", "pool", "evolution"):  # the last two ask for every trial with its parameters
        return NumberedRandomSampler(study_seed)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(4, min(50, trials // 2)))
    if name == "gp":
        return _gp(seed, trials)
    return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=min(10, trials // 2))


def untold(sampler: BaseSampler) -> Iterator[Trial]:
    """The trials that a sampler suggests as long as it is told no result."""
    study = optuna.create_study(storage=InMemoryStorage(), sampler=sampler)
    while True:
        yield study.ask()


def _gp(seed: int, trials: int) -> BaseSampler:
    """Optuna's Gaussian processes. They fit tiny matrices with torch, which more threads only slow down."""
    import torch

    torch.set_num_threads(1)
    return GPSampler(seed=seed, n_startup_trials=min(10, trials // 2))


class NumberedRandomSampler(BaseSampler):
    """Draws every parameter from a stream of its own, (seed, trial number, name), however often a study was interrupted.

    A draw is that of Optuna's RandomSampler with the stream's seed. Making one takes longer than all else in asking, so
    one generator is seeded anew for each stream.
    """

    def __init__(self, seed: int):
        self._seed, self._stream = seed, np.random.RandomState(0)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        digest = sha256(f"{self._seed}/{trial.number}/{param_name}".encode()).digest()
        stream = int.from_bytes(digest[:4], "big")
        if isinstance(param_distribution, CategoricalDistribution):
            self._stream.seed(stream)
            return param_distribution.choices[int(self._stream.random_sample(len(param_distribution.choices)).argmax())]
        if isinstance(param_distribution, IntDistribution) and not param_distribution.log:
            self._stream.seed(stream)
            return _stepped(param_distribution, self._stream)
        return RandomSampler(seed=stream).sample_independent(study, trial, param_name, param_distribution)


def _stepped(distribution: IntDistribution, stream: np.random.RandomState) -> int:
    """A number of a range, all equally likely."""
    low, high, step = distribution.low, distribution.high, distribution.step
    drawn = stream.uniform(low - 0.5 * step, high + 0.5 * step)
    return min(max(math.floor((drawn - low) / step + 0.5) * step + low, low), high)
