"""BoTorch's qLogNEHVI over a recorded table, beside the pool and random search: hypervolume against compute, and the knee.

    pip install botorch==0.18.1                     # with gpytorch and linear_operator; none is a dependency
    python benchmarks/searchers.py                  # studies/search_benchmark; about 10 minutes of a core
    python benchmarks/searchers.py --searchers pool --share 0.5 --trainings 26 --repeats 50       # a wider funnel; two minutes

A Gaussian process, BoTorch's default (Hvarfner et al. 2402.02229), models each score; an axis that a network lacks has a value of
its own. Costs are known exactly. The acquisition (noisy expected hypervolume improvement, Daulton et al. 2105.08195, in its
logarithmic form, Ament et al. 2310.20708) is evaluated for every candidate, so nothing is lost to its optimiser. `botorch`
sees axes and costs. `botorch_looks` looks first at as many networks as the pool would, drawn at random, and chooses among them;
what a look says, moved by a constant, is the mean of its Gaussian process. Its first four trainings are chosen as the pool would.
Seconds are those of looks, trainings and scores; what a model takes to ask is not in them. What is found is judged by the table's
truth where it has one; the knee is that after as many images.
"""

from __future__ import annotations

import argparse
import random
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nas.search import pool
from nas.search.dominance import nondominated, normalised
from nas.search.stopping import Stopping
from nas.space.search_space import SearchSpace
from nas.study.pool import SHARE
from nas.trust.replay import curves, looks
from nas.trust.replay.best_first import BestFirst, funnel
from nas.trust.replay.rules import rule_of
from nas.trust.replay.searches import UNITS, hypervolumes, paid
from nas.trust.replay.simulation import Shuffled, Simulation
from nas.trust.replay.spread import Spread

FIRST = 4  # trainings before there is a model
SAMPLES = 64


class Bayesian:
    """Expected hypervolume improvement over the architectures of a table, or over those that it looked at."""

    def __init__(self, table, space, known, looked, first, seed):
        """`known`: places of the objectives that are costs."""
        self._rng, self._ends, self._known = random.Random(seed), table.values[:, -1], known
        self._left = self._rng.sample(range(len(table)), len(table))
        self._features, self._looks = torch.tensor(flat(space, table.choices)), None
        self.looked_s = 0.0
        if looked is not None:
            self._left = self._left[:first]
            self.looked_s = float(looked.seconds[self._left].sum())
            self._looks = torch.tensor(-looked.values)  # BoTorch makes things large
        self._told = []
        torch.manual_seed(seed)

    def ask(self):
        if not self._left:
            return None
        return self._left.pop(self._best() if len(self._told) >= FIRST else self._early())

    def tell(self, architecture, complete):
        self._told.append(architecture)

    def _early(self):
        """The place of a candidate before there is a model: any, or what looks say adds most."""
        if self._looks is None:
            return 0
        looks = -self._looks.numpy()
        ends = self._ends[self._told]
        return int(np.argmax(pool.expected(looks[self._left], ends - looks[self._told], ends)))

    def _best(self):
        """The place of the candidate that is expected to add most."""
        from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
        from botorch.sampling.get_sampler import get_sampler
        from botorch.sampling.list_sampler import ListSampler

        ends = torch.tensor(-self._ends[self._told])  # BoTorch makes things large
        low, high = ends.min(0).values, ends.max(0).values
        span = torch.where(high > low, high - low, torch.ones(()))
        model = self._model(ends, low, span)
        with torch.no_grad():
            posterior = model.posterior(self._inputs(self._told[:1]))
        shape = torch.Size([SAMPLES])
        sampler = ListSampler(
            *(get_sampler(each, shape, seed=place) for place, each in enumerate(posterior.posteriors))
        )
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model,
            ref_point=[-0.1] * ends.shape[1],
            X_baseline=self._inputs(self._told),
            sampler=sampler,
            prune_baseline=True,
            cache_root=False,
        )
        with torch.no_grad():
            return int(acquisition(self._inputs(self._left)[:, None]).argmax())

    def _inputs(self, which):
        """Features, and behind them costs and looks at scores, both to be made large, in the order of the objectives."""
        behind = torch.tensor(-self._ends[which])
        if self._looks is not None:
            behind[:, ~self._known] = self._looks[which][:, ~self._known]
        return torch.cat([self._features[which], behind], dim=1)

    def _model(self, ends, low, span):
        from botorch.models import ModelList

        inputs, width = self._inputs(self._told), self._features.shape[1]
        models = []
        for place, exact in enumerate(self._known):
            column = Column(width + place, low[place], span[place])
            values = (ends[:, place] - low[place]) / span[place]
            models.append(
                cost_model(column)
                if exact
                else score_model(inputs, values, width, column if self._looks is not None else None)
            )
        return ModelList(*models)


@dataclass(frozen=True)
class Column:
    """A column of the inputs, brought to the scale of an objective."""

    place: int
    low: torch.Tensor
    span: torch.Tensor

    def __call__(self, inputs):
        return (inputs[..., self.place] - self.low) / self.span


def cost_model(column):
    from botorch.models.deterministic import GenericDeterministicModel

    return GenericDeterministicModel(lambda inputs: column(inputs)[..., None])


def score_model(inputs, values, width, look):
    """A Gaussian process of a score over the first `width` columns, around a constant, to which what a look says may be added."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from gpytorch.means import ConstantMean
    from gpytorch.mlls import ExactMarginalLogLikelihood

    class Around(ConstantMean):
        def forward(self, inputs):
            return super().forward(inputs) + look(inputs)

    kernel = get_covar_module_with_dim_scaled_prior(ard_num_dims=width, active_dims=tuple(range(width)))
    model = SingleTaskGP(
        inputs,
        values[:, None],
        covar_module=kernel,
        mean_module=None if look is None else Around(),
        outcome_transform=None,
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def flat(space, members):
    """Members as numbers (members, features): a range from 0 to 1, one column for each choice otherwise, one for being absent."""
    columns = []
    for axis in space.axes:
        values = [member.get(axis.name) for member in members]
        if axis.step is not None:
            last = len(axis.choices) - 1
            columns.append([0.5 if value is None else axis.choices.index(value) / last for value in values])
        else:
            columns += [[float(value == choice) for value in values] for choice in axis.choices]
        if any(value is None for value in values):
            columns.append([float(value is None) for value in values])
    return np.array(columns).T


def regret(table, finished):
    """How much worse the knee of what was trained is than the table's best knee: sums of scaled objectives, by the truth.

    A search names its knee by what it saw: the member of its front with the least sum."""
    judged, seen = normalised(table.judged).sum(1), normalised(table.values[:, -1])
    front = [one for one, member in zip(finished, nondominated(seen[finished]), strict=True) if member]
    return float(judged[min(front, key=lambda one: seen[one].sum())] - judged.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("studies/search_benchmark"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trainings", type=int, default=32)
    parser.add_argument("--searchers", default="random,pool,botorch,botorch_looks")
    parser.add_argument(
        "--share", type=float, default=SHARE, help="what looks may take of the denoiser's calls in trainings"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    whole, about = curves.load(arguments.table)
    table, space = whole.at([1.0]), SearchSpace.load(about.space)
    looked = looks.read(arguments.table / looks.NAME, whole, about)
    costs = about.deploy.costs(space.architecture(table.choices[0]))
    known = np.array([column in costs for column in about.objectives])
    makers = {
        "random": lambda first, seed: Shuffled(np.random.default_rng(seed).permutation(len(table)).tolist()),
        "pool": lambda first, seed: BestFirst(table, space, looked, first, seed),
        "botorch": lambda first, seed: Bayesian(table, space, known, None, first, seed),
        "botorch_looks": lambda first, seed: Bayesian(
            table, space, known, looked, max(first, arguments.trainings), seed
        ),
    }
    rows = []
    for name in arguments.searchers.split(","):
        for trainings in paid(arguments.trainings):  # of those that look: how much they look depends on it
            first = funnel(about, round(trainings), arguments.share)
            histories = [
                Simulation(table, makers[name](first, seed), rule_of("none", Stopping()), 1, trainings).run()
                for seed in range(arguments.repeats)
            ]
            images = trainings * table.images[-1]
            knees = Spread.of([regret(table, history.within(images=images)) for history in histories])
            for unit in UNITS:
                found = Spread.of(hypervolumes(table, histories, trainings, unit))
                rows.append(
                    {"searcher": name, "unit": unit, "trainings": trainings, "hypervolume": found.mean}
                    | {"low": found.low, "high": found.high, "knee_regret": knees.mean, "repeats": len(histories)}
                )
            print(
                f"{name:14} {trainings:4g} trainings: hypervolume {rows[-2]['hypervolume']:.3f} by images, "
                f"{rows[-1]['hypervolume']:.3f} by seconds; regret of the knee {knees.mean:.3f}",
                flush=True,
            )
    if arguments.out is not None:
        pd.DataFrame(rows).round(5).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
