"""What a search trains: the sampler proposes, what is over budget is refused on paper, the rest is trained rung by rung.

A network proposed twice takes the result it already has. Where nothing new is proposed for long, an architecture is drawn at
random, and where that finds none, the sampler goes on; at the end undecided members of the front are trained again
(nas.search.racing).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, takewhile
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, Trial

from nas.cost.budget import constraints, over_budget
from nas.networks.backbones import Backbone
from nas.numbers import number_of
from nas.runs.records import UNTRAINED, Record
from nas.search import prior, racing, stopping
from nas.search.peers import Scoreboard
from nas.search.samplers import sampler, untold
from nas.seeds import trial_seed
from nas.settings import beliefs, plan_axes
from nas.settings.study import Study
from nas.space import screen
from nas.space.search_space import Choices, SearchSpace
from nas.study.proposer import Look, Reference
from nas.study.trials import Trials, first_record, numbers, suggestion
from nas.study.workload import Variant, Workload
from nas.trial.given import starts

FRESH_TRIES = 2_000  # random candidates looked at to find one that is new and within budget
ENOUGH_TRIALS = 8  # of a search, for the space's base network to be trained beside them as a line of reference
LOOKED_AT = 200  # suggestions, to time those of typical cost
PATIENCE = 20  # refused or repeated suggestions in a row before a fresh architecture is drawn at random instead


class Candidates:
    """The proposer of a search: members of a space that Optuna suggests."""

    like: Backbone | None = None

    def __init__(self, study: Study, space: SearchSpace, first: Sequence[Choices] | None = None):
        """`first`: members that are tried first, those of `search.start` unless given."""
        assert study.search is not None
        self._study, self._search, self._space = study, study.search, plan_axes.extended(study, space)
        self._networks, self._beliefs = space, beliefs.of(study, self._space)
        first = starts.members(study, space) if first is None else first
        self._starts = [{**start, **plan_axes.cheapest(study, space.architecture(start))} for start in first]

    def sampler(self, known: int) -> BaseSampler:
        return sampler(self._search.sampler, self._search.trials, self._study.seed, known)

    def suggested(self, record: Record) -> FixedTrial:
        return suggestion(self._space, record["choices"])

    def open(self, trials: Trials) -> None:
        self._trials = trials
        self._proposals = Proposals(trials.records.values())
        self._trained_before = sum(len(run["trials"]) for run in trials.earlier())
        self._gave_up = False  # nothing more is proposed in this session
        self._scoreboard = Scoreboard(len(self._study.stopping.rungs), len(self._study.objectives))
        for record in trials.records.values():
            for rung in range(len(record["rungs"])):
                self._score(record, rung)

    def reference(self) -> Reference:
        """The base of the space, trained where it is a member, costs an eighth of the search at most, and the study has no base
        model of its own."""
        base = self._networks.base
        member = screen.position(self._networks, base) is not None
        trained = member and self._study.base is None and self._search.trials >= ENOUGH_TRIALS
        return Reference(Variant(base), trained)

    def workload(self, workers: int) -> Workload:
        """As many trainings as are left, none of them known yet: members within budget stand for them."""
        left = self._left()
        return Workload(self._typical(workers) if left else [], [None] * left)

    def _typical(self, workers: int) -> list[Variant]:
        """Of the networks that come next, as many as there are workers, spread over their multiply-adds."""
        ordered = [member for _, member in sorted(self._coming().values(), key=lambda pair: pair[0])]
        places = [round((place + 0.5) / workers * len(ordered) - 0.5) for place in range(workers)] if ordered else []
        return [Variant(ordered[place]) for place in places]

    def _coming(self) -> dict[str, tuple[float, Backbone]]:
        """Multiply-adds and network, by key, of what would be trained next if no result were learned from; of the first LOOKED_AT
        suggestions."""
        numbered = enumerate(untold(self.sampler(0)))
        suggestions = (self._space.suggest(asked) for number, asked in numbered if number >= len(self._trials.records))
        found: dict[str, tuple[float, Backbone]] = {}
        left = self._left()
        for choices in chain(self._starts, islice(suggestions, LOOKED_AT)):
            member, key = self._space.architecture(choices), self._key(choices)
            cost = plan_axes.costs(self._study, member, choices)
            if not over_budget(cost, self._study.budget) and not self._proposals.of(key):
                found[key] = cost["macs"], member
            if len(found) == left:
                break
        return found

    def _left(self) -> int:
        """Trainings that are still to be done, the repeats at the end among them; a running one counts as a whole."""
        ended = [
            record for record in self._trials.records.values() if record["state"] in ("complete", "stopped", "failed")
        ]
        raced = sum(bool(record.get("race")) for record in ended)
        searched = len(ended) - raced
        return max(0, self._search.trials - searched) + max(0, self._study.racing.trials - raced)

    # -- asking --------------------------------------------------------------------------------------------------

    def ask(self) -> Record | Look | None:
        """The next architecture to train, a repeat when the search has all it asked for; None when that is done too."""
        return self._propose() or self._race()

    def _propose(self) -> Record | None:
        if self._gave_up or self._proposals.begun >= self._search.trials:
            return None
        why = f"gave up after {number_of(self._search.max_refusals, 'refused or repeated candidate')} in a row"
        random_too = ""
        for _ in range(self._search.max_refusals):
            refused, wanted = self._refused_in_a_row(), self._next_start() or self._likely()
            if wanted is None and refused and refused % PATIENCE == 0 and (wanted := self._fresh()) is None:
                if self._few:
                    self._give_up("every architecture within budget has been tried; stopping here")
                    return None
                random_too = f"; none of {FRESH_TRIES:,} random ones is new and within budget"
            record = self._consider(self._trials.ask(wanted))
            if record["state"] not in UNTRAINED:
                return record
        self._give_up(why + random_too)
        return None

    def _next_start(self) -> dict[str, Any] | None:
        """The parameters of the next network of `search.start`."""
        for choices in self._starts:
            if not self._proposals.of(self._key(choices)):
                return self._space.parameters(choices)
        return None

    def _likely(self) -> dict[str, Any] | None:
        """The parameters of a network drawn from the study's beliefs, now and then (nas.search.prior)."""
        coin = random.Random(trial_seed(self._study.seed, "prior", self._proposals.begun))  # one for each training
        if not self._beliefs or coin.random() >= prior.share(self._ended()):
            return None
        rng = random.Random(trial_seed(self._study.seed, "belief", len(self._trials.records)))
        return self._untried(self._beliefs.draw(rng) for _ in range(PATIENCE))

    def _ended(self) -> int:
        """Trainings of the search that ended, whose scores speak against beliefs; those of earlier runs too."""
        ended = sum(record["state"] in ("complete", "stopped") for record in self._trials.records.values())
        return ended + self._trained_before

    def _give_up(self, why: str) -> None:
        self._gave_up = True
        self._trials.say(why)

    def _refused_in_a_row(self) -> int:
        """How many of the latest trials were not to be trained; on disk, so that interruptions don't change the search."""
        latest = reversed(self._trials.records.values())
        return sum(1 for _ in takewhile(lambda r: r["state"] in UNTRAINED, latest))

    def _consider(self, asked: Trial) -> Record:
        """The record of a trial that is begun, refused, or repeats an architecture."""
        record = self._entry(self._trials.number(asked), self._space.suggest(asked))
        self._constrain(asked, record)
        self._decide(record)
        return record

    def begin(self, asked: FrozenTrial) -> Record:
        record = self._entry(asked.number, self._space.suggest(FixedTrial(asked.params)))
        self._decide(record)
        return record

    def _entry(self, number: int, choices: Choices) -> Record:
        """The first record of a trial, with its plan where plans are searched."""
        config = self._space.architecture(choices)
        record = first_record(self._study, number, choices, config)
        if own := plan_axes.settings(self._study, choices):
            record["settings"] = own
            record["key"] = self._key(choices)
            record["cost"] = numbers(plan_axes.costs(self._study, config, choices))
        return record

    def _seed(self, key: str, repeat: int) -> int:
        """That of the network: with another plan it is the same training, so that plans are compared without its noise."""
        return trial_seed(self._study.seed, plan_axes.network_key(key), repeat)

    def _key(self, choices: Choices) -> str:
        return plan_axes.key(self._study, self._space.architecture(choices), choices)

    def _decide(self, record: Record) -> None:
        """Refuse a trial that is over budget, give a repeated one the result that is there, and begin any other."""
        over = over_budget(record["cost"], self._study.budget)
        earlier = self._proposals.of(record["key"])
        if over:
            self._trials.conclude(record, "over_budget", over)
        elif len(earlier) > self._search.repeats:
            self._trials.reuse(record, earlier[0])
        else:
            record["repeat"] = len(earlier)
            record["seed"] = self._seed(record["key"], len(earlier))
            self._trials.start(record)
        self._proposals.add(record)

    def _constrain(self, asked: Trial, record: Record) -> None:
        for name, excess in constraints(record["cost"], self._study.budget).items():
            asked.set_constraint(name, excess)

    def _fresh(self) -> dict[str, Any] | None:
        """The parameters of an untried architecture within budget; None if random drawing finds none, nor a look at all where
        they are few."""
        rng = random.Random(trial_seed(self._study.seed, "fresh", len(self._trials.records)))
        drawn = (self._space.sample(rng) for _ in range(FRESH_TRIES))
        return self._untried(chain(drawn, self._space.enumerate() if self._few else ()))

    @cached_property
    def _few(self) -> bool:
        """Whether the space has no more members than are drawn at random."""
        return self._space.size() <= FRESH_TRIES

    def _untried(self, drawn: Iterable[Choices]) -> dict[str, Any] | None:
        """The parameters of the first of these that is new and within budget."""
        for choices in drawn:
            cost = plan_axes.costs(self._study, self._space.architecture(choices), choices)
            if not self._proposals.of(self._key(choices)) and not over_budget(cost, self._study.budget):
                return self._space.parameters(choices)
        return None

    # -- repeats -------------------------------------------------------------------------------------------------

    def _race(self) -> Record | None:
        """A repeat, with a new seed, of an architecture whose place on the front is undecided.

        None while the search still runs, when all repeats are spent, and when nothing is left to decide.
        """
        raced = sum(bool(record.get("race")) for record in self._trials.records.values())
        searched = (record for record in self._trials.records.values() if not record.get("race"))
        if raced >= self._study.racing.trials or any(record["state"] == "running" for record in searched):
            return None
        values = self._repeated_values()
        undecided = racing.next_repeats(values, confidence=self._study.racing.confidence) if values else []
        running = {record["key"] for record in self._trials.records.values() if record["state"] == "running"}
        key = next((key for key in undecided if key not in running), None)
        return self._repeat(key) if key is not None else None

    def _repeat(self, key: str) -> Record:
        """Train an architecture once more, straight to the last rung."""
        first, *others = [
            record for record in self._trials.records.values() if record["key"] == key and "seed" in record
        ]
        asked = self._trials.ask(self._space.parameters(first["choices"]))
        self._space.suggest(asked)
        self._constrain(asked, first)
        repeat = 1 + max(record["repeat"] for record in (first, *others))
        record: Record = {
            **self._entry(self._trials.number(asked), first["choices"]),
            "race": True,
            "repeat": repeat,
            "seed": self._seed(key, repeat),
        }
        self._trials.start(record)
        self._proposals.add(record)
        return record

    def _repeated_values(self) -> dict[str, list[list[float]]]:
        """The objectives of every complete trial, all to be minimised, by architecture."""
        values: dict[str, list[list[float]]] = {}
        for record in self._trials.records.values():
            if record["state"] == "complete":
                values.setdefault(record["key"], []).append(self._values(record, -1))
        return values

    # -- early stopping ------------------------------------------------------------------------------------------

    def scored(self, record: Record) -> str | None:
        if record.get("race"):
            return None
        self._score(record, -1)
        if len(record["rungs"]) == len(self._study.stopping.rungs):
            return None
        curve, others = self._scoreboard.curve(record["trial"]), self._scoreboard.others(record["trial"])
        if stopping.goes_on(curve, others, self._study.stopping):
            return None
        return stopping.reason(curve, others, self._study.stopping, self._study.objectives)

    def _score(self, record: Record, rung: int) -> None:
        """Note a trial's objectives for early stopping, unless it is a repeat at the end."""
        if not record.get("race"):
            self._scoreboard.add(record["trial"], self._values(record, rung))

    def _values(self, record: Record, rung: int) -> list[float]:
        """The objectives at a rung, all to be minimised."""
        return minimised({**record["cost"], **record["rungs"][rung]["metrics"]}, self._study.objectives)


def minimised(row: Mapping[str, float], objectives: Mapping[str, str]) -> list[float]:
    """The objectives of a network with these scores and costs, all to be minimised."""
    return [row[column] if way == "minimise" else -row[column] for column, way in objectives.items()]


class Proposals:
    """The trials of a search by architecture, so that a new one need not be compared with all."""

    def __init__(self, records: Iterable[Record]):
        self.begun = 0  # how many were to be trained, repeats at the end aside
        self._trials: dict[str, list[Record]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """A new trial."""
        self.begun += record["state"] not in UNTRAINED and not record.get("race")
        if "duplicate_of" not in record:
            self._trials.setdefault(record["key"], []).append(record)

    def of(self, key: str) -> list[Record]:
        """The trials of an architecture, first to last, without those that took another's result."""
        return self._trials.get(key, [])
