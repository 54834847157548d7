"""NSGA-II over cache schedules: which units of a network are computed at which step of a drawing (ECAD, arXiv 2506.15682).

Quality is worth what it costs only beside other schedules, so two numbers are minimised at once. pymoo has the algorithm: binary
tournaments, crossover at four points with probability 0.9, survival of the best ranks among parents and children (Deb et al.
2002). Ours are the genes, mutation, and what counts as the same schedule.

A gene is the mode of one unit at one step. Where a network has skip connections, one more gene a step says how deep it is
computed, as DeepCache's branches do, and the modes speak of what is computed. Mutation changes each gene of each child with
the probability of one in their number; ECAD's own setting, a twentieth of that, lives off its first population alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import PointCrossover

from nas.cost.units import COMPUTE, WHOLE, Modes, Units
from nas.search.dominance import nondominated

Genome = NDArray[np.int64]  # (genes,)
CROSSOVER, POINTS = 0.9, 4
HIGHEST = 2  # order of extrapolation that is searched


@dataclass(frozen=True)
class Genes:
    """Between schedules of one network in so many steps and rows of numbers."""

    units: Units
    steps: int

    @property
    def inner(self) -> NDArray[np.int64]:
        """Places of the units with a gene each."""
        return np.flatnonzero(self.units.components != WHOLE)

    @property
    def depths(self) -> int:
        """Skip connections that a step can be computed up to; 0 for a network that has none."""
        return max(0, int(self.units.depths.max(initial=-1)))

    @property
    def most(self) -> Genome:
        """(genes,): the largest value of each. A step's genes stand together, its depth first."""
        step = [*([self.depths] if self.depths else []), *[HIGHEST - COMPUTE] * len(self.inner)]
        return np.array(step * self.steps)

    def modes(self, genome: Genome) -> Modes:
        """(steps, units), in its one spelling."""
        rows = genome.reshape(self.steps, -1)
        found = np.full((self.steps, len(self.units)), COMPUTE, dtype=np.int8)
        found[:, self.inner] = rows[:, bool(self.depths) :] + COMPUTE
        if self.depths:
            kept = self.depths - rows[:, :1]  # depth gene 0: computed whole; 1: all but what is deepest; and so on
            found[(self.units.depths > kept) & (rows[:, :1] > 0)] = 0
        return self.units.canonical(found)

    def genome(self, modes: Modes) -> Genome:
        """The genes of a schedule; of one that keeps whole units otherwise than by depth, those of the nearest."""
        whole = self.units.components == WHOLE
        inner = modes[:, self.inner].astype(np.int64) - COMPUTE
        if not self.depths:
            return inner.clip(0, HIGHEST - COMPUTE).reshape(-1)
        kept = np.where((modes != COMPUTE) & whole, self.units.depths, self.depths + 1).min(axis=1)
        depth = (self.depths + 1 - kept).clip(0, self.depths)
        return np.column_stack([depth, inner.clip(0, HIGHEST - COMPUTE)]).reshape(-1)


class _Changed(Mutation):  # type: ignore[misc]
    """Each gene takes another value with the probability of one in their number."""

    def _do(
        self, problem: Problem, x: NDArray[np.int64], *, random_state: np.random.Generator, **_: object
    ) -> NDArray[np.int64]:
        changed = random_state.random(x.shape) < 1 / problem.n_var
        others = random_state.integers(1, problem.xu.astype(int) + 1, x.shape)
        return np.where(changed, (x + others) % (problem.xu.astype(int) + 1), x)


class _Same(DuplicateElimination):  # type: ignore[misc]
    """Schedules are the same when what they do is."""

    def __init__(self, genes: Genes):
        super().__init__()
        self.genes = genes

    def _do(self, pop: Population, other: Population | None, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        seen = set() if other is None else {self._key(one) for one in other.get("X")}
        for place, key in enumerate(map(self._key, pop.get("X"))):
            is_duplicate[place] |= key in seen
            if other is None:
                seen.add(key)
        return is_duplicate

    def _key(self, genome: Genome) -> bytes:
        return self.genes.modes(genome).tobytes()


Score = Callable[[Modes], tuple[float, float]]  # of a schedule in its one spelling: both are minimised


@dataclass
class Archive:
    """Everything that was scored, in order, each once."""

    score: Score
    modes: list[Modes] = field(default_factory=list)
    scores: list[tuple[float, float]] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)

    def of(self, modes: Modes) -> tuple[float, float]:
        """The scores of a schedule, from here or fresh."""
        key = modes.tobytes()
        if key not in self.places:
            found = self.score(modes)
            self.places[key] = len(self.modes)
            self.modes.append(modes)
            self.scores.append(found)
        return self.scores[self.places[key]]

    def front(self) -> list[int]:
        """Places of those that no other dominates, the cheapest by the second score first."""
        values = np.array(self.scores)
        places = np.flatnonzero(nondominated(values))
        return [int(place) for place in places[np.lexsort((values[places, 0], values[places, 1]))]]


def evolve(genes: Genes, archive: Archive, start: Sequence[Modes], population: int, seed: int) -> Iterator[int]:
    """Score the schedules to start from, then children, generation by generation, until the caller has enough.

    Yields the number of the generation. The same arguments give the same schedules in the same order, so that a search that
    was interrupted goes on when its archive answers for what it has.
    """
    problem = Problem(n_var=len(genes.most), n_obj=2, xl=0, xu=genes.most, vtype=int)
    first = np.unique(np.array([genes.genome(genes.units.canonical(modes)) for modes in start]), axis=0)
    algorithm = NSGA2(
        pop_size=population,
        sampling=first,
        crossover=PointCrossover(n_points=min(POINTS, len(genes.most) - 1), prob=CROSSOVER),
        mutation=_Changed(),
        eliminate_duplicates=_Same(genes),
    )
    algorithm.setup(problem, seed=seed, verbose=False, termination=NoTermination())
    for generation in count():
        asked = algorithm.ask()
        if asked is None or not len(asked):  # nothing new is left
            return
        asked.set("F", np.array([archive.of(genes.modes(genome)) for genome in asked.get("X")]))
        algorithm.tell(infills=asked)
        yield generation
