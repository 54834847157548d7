"""Random search whose trial n is the same, whoever asks for it and however often the study was interrupted."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial


class NumberedRandomSampler(BaseSampler):
    """Draws every parameter from a stream of its own: (seed, trial number, name)."""

    def __init__(self, seed: int):
        self._seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        digest = sha256(f"{self._seed}/{trial.number}/{param_name}".encode()).digest()
        stream = RandomSampler(seed=int.from_bytes(digest[:4], "big"))
        return stream.sample_independent(study, trial, param_name, param_distribution)
