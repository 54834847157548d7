"""A search as a run: the sampler proposes, what is over budget is refused on paper, the rest is trained rung by rung.

A network proposed twice takes the result it already has. Where nothing new is proposed for long, an architecture is drawn at
random; at the end undecided members of the front are trained again (nas.search.racing).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, Trial

from nas.cost.budget import constraints, over_budget
from nas.networks.backbones import Backbone
from nas.report.progress import Progress
from nas.runs.directory import RunDirectory, now
from nas.runs.records import UNTRAINED, Record, State
from nas.search import racing, stopping
from nas.search.peers import Scoreboard
from nas.search.samplers import sampler
from nas.seeds import trial_seed
from nas.settings.study import Search, Study
from nas.space import screen
from nas.space.search_space import Choices, SearchSpace
from nas.study.run import MakeEngine, Run
from nas.trial.pace import Pace

FRESH_TRIES = 2_000  # random candidates looked at to find one that is new and within budget
ENOUGH_TRIALS = 8  # of a search, for the space's base network to be trained beside them as a line of reference
LOOKED_AT = 200  # random members, to time those of typical cost
PATIENCE = 20  # refused or repeated suggestions in a row before a fresh architecture is drawn at random instead


class SearchRun(Run):
    """One search in one run directory."""

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        directory: RunDirectory,
        progress: Progress,
        url: str | None = None,
        engine: MakeEngine | None = None,
    ):
        self.space = space
        super().__init__(study, directory, progress, url, engine)
        self._twins: dict[int, list[int]] = {}  # running trial -> later trials that asked for its architecture
        self._proposals = Proposals(self.records.values())
        self._scoreboard = Scoreboard(len(study.stopping.rungs), len(study.objectives))
        for record in self.records.values():
            for rung in range(len(record["rungs"])):
                self._score(record, rung)

    @property
    def search(self) -> Search:
        assert self.study.search is not None
        return self.study.search

    def sampler(self) -> BaseSampler:
        return sampler(
            self.search.sampler, self.search.trials, self.study.seed, len(self.records) + len(self.ledger.damaged)
        )

    def suggested(self, record: Record) -> FixedTrial:
        fixed = FixedTrial(self.space.parameters(record["choices"]))
        self.space.suggest(fixed)
        return fixed

    def reference(self) -> tuple[dict[str, Any], Backbone, bool]:
        """The base of the space, trained where it is a member and costs an eighth of the search at most."""
        member = screen.position(self.space, self.space.base) is not None
        return {}, self.space.base, member and self.study.base is None and self.search.trials >= ENOUGH_TRIALS

    def typical(self, count: int) -> list[tuple[dict[str, Any], Backbone]]:
        """Members within budget, spread over their multiply-adds; none where the search has all it asked for."""
        if not self._left():
            return []
        rng = random.Random(self.study.seed)
        members = [self.space.architecture(self.space.sample(rng)) for _ in range(LOOKED_AT)]
        costs = [self.study.deploy.costs(member) for member in members]
        within = [pair for pair in zip(costs, members, strict=True) if not over_budget(pair[0], self.study.budget)]
        ordered = [member for _, member in sorted(within, key=lambda pair: pair[0]["macs"])]
        places = [round((place + 0.5) / count * len(ordered) - 0.5) for place in range(count)] if ordered else []
        return [({}, ordered[place]) for place in places]

    def outstanding(self, paces: Sequence[Pace | None]) -> list[float]:
        known = [each.trial_s(self.study) for each in paces if each is not None]
        return [sum(known) / len(known)] * self._left()

    def _left(self) -> int:
        """Trainings that are still to be done, the repeats at the end among them; a running one counts as a whole."""
        states = [record["state"] for record in self.records.values()]
        ended = sum(states.count(state) for state in ("complete", "stopped", "failed"))
        return max(0, self.search.trials + self.study.racing.trials - ended)

    # -- asking --------------------------------------------------------------------------------------------------

    def ask(self) -> tuple[int, int] | None:
        """The next architecture to train, a repeat when the search has all it asked for; None when that is done too."""
        return self._propose() or self._race()

    def _propose(self) -> tuple[int, int] | None:
        if self._proposals.trained >= self.search.trials:
            return None
        for _ in range(self.search.max_refusals):
            refused = self._refused_in_a_row()
            if refused and refused % PATIENCE == 0 and not self._enqueue_fresh():
                self.progress.say("every architecture within budget has been tried; stopping here")
                return None
            number = self._consider(self.optuna.ask())
            if number is not None:
                return number, 0
        self.progress.say(f"gave up after {self.search.max_refusals} refused or repeated candidates in a row")
        return None

    def _refused_in_a_row(self) -> int:
        """How many of the latest trials were not to be trained; on disk, so that interruptions don't change the search."""
        return sum(1 for _ in takewhile(lambda r: r["state"] in UNTRAINED, reversed(self.records.values())))

    def _consider(self, asked: Trial) -> int | None:
        """The trial's number if it is to be trained; None if it was refused or repeats an architecture."""
        record = self._proposed(asked.number, self.space.suggest(asked))
        self._constrain(asked, record)
        self._decide(record)
        return None if record["state"] in UNTRAINED else asked.number

    def begun(self, asked: FrozenTrial) -> Record:
        record = self._proposed(asked.number, self.space.suggest(FixedTrial(asked.params)))
        self._decide(record)
        return record

    def _proposed(self, number: int, choices: Choices) -> Record:
        """The first record of a member of the space."""
        config = self.space.architecture(choices)
        return self.new_record(number, choices, config, self.study.deploy.costs(config))

    def _decide(self, record: Record) -> None:
        """Refuse a trial that is over budget, give a repeated one the result that is there, and begin any other."""
        over = over_budget(record["cost"], self.study.budget)
        earlier = self._proposals.of(record["key"])
        if over:
            self.conclude(record, "over_budget", over)
        elif len(earlier) > self.search.repeats:
            self._reuse(record, earlier[0])
        else:
            record["repeat"] = len(earlier)
            record["seed"] = trial_seed(self.study.seed, record["key"], len(earlier))
            self.start(record)
        self._proposals.add(record)

    def _constrain(self, asked: Trial, record: Record) -> None:
        for name, excess in constraints(record["cost"], self.study.budget).items():
            asked.set_constraint(name, excess)

    def _reuse(self, record: Record, earlier: Record) -> None:
        """A repeated architecture takes the earlier one's result, now or when it is there."""
        record["duplicate_of"] = earlier["trial"]
        if earlier["state"] == "running":
            self._twins.setdefault(earlier["trial"], []).append(record["trial"])
            record["state"] = "duplicate"
            self.ledger.save(record)
        else:
            self.conclude(record, "duplicate", f"same network as trial {earlier['trial']}", earlier)

    def _enqueue_fresh(self) -> bool:
        """Put an untried architecture within budget next in line; False if random drawing finds none."""
        rng = random.Random(trial_seed(self.study.seed, "fresh", len(self.records)))
        for _ in range(FRESH_TRIES):
            choices = self.space.sample(rng)
            config = self.space.architecture(choices)
            cost = self.study.deploy.costs(config)
            if not self._proposals.of(config.key) and not over_budget(cost, self.study.budget):
                self.optuna.enqueue_trial(self.space.parameters(choices))
                return True
        return False

    # -- repeats -------------------------------------------------------------------------------------------------

    def _race(self) -> tuple[int, int] | None:
        """A repeat, with a new seed, of an architecture whose place on the front is undecided, as (trial, last rung).

        None while the search still runs, when all repeats are spent, and when nothing is left to decide.
        """
        raced = sum(bool(record.get("race")) for record in self.records.values())
        searched = (record for record in self.records.values() if not record.get("race"))
        if raced >= self.study.racing.trials or any(record["state"] == "running" for record in searched):
            return None
        values = self._repeated_values()
        undecided = racing.next_repeats(values, confidence=self.study.racing.confidence) if values else []
        running = {record["key"] for record in self.records.values() if record["state"] == "running"}
        key = next((key for key in undecided if key not in running), None)
        return self._repeat(key) if key is not None else None

    def _repeat(self, key: str) -> tuple[int, int]:
        """Train an architecture once more, straight to the last rung."""
        first, *others = [record for record in self.records.values() if record["key"] == key and "seed" in record]
        self.optuna.enqueue_trial(self.space.parameters(first["choices"]))
        asked = self.optuna.ask()
        self.space.suggest(asked)
        self._constrain(asked, first)
        repeat = 1 + len(others)
        record: Record = {
            "trial": asked.number,
            "key": key,
            "state": "running",
            "reason": "",
            "init": first["init"],
            "choices": first["choices"],
            "architecture": first["architecture"],
            "cost": first["cost"],
            "rungs": [],
            "started": now(),
            "race": True,
            "repeat": repeat,
            "seed": trial_seed(self.study.seed, key, repeat),
        }
        self.start(record)
        self._proposals.add(record)
        return asked.number, self.next_rung(record)

    def _repeated_values(self) -> dict[str, list[list[float]]]:
        """The objectives of every complete trial, all to be minimised, by architecture."""
        values: dict[str, list[list[float]]] = {}
        for record in self.records.values():
            if record["state"] == "complete":
                values.setdefault(record["key"], []).append(self._values(record, -1))
        return values

    def next_rung(self, record: Record) -> int:
        """A repeat has no earlier rungs."""
        return len(self.study.stopping.rungs) - 1 if record.get("race") else super().next_rung(record)

    # -- early stopping ------------------------------------------------------------------------------------------

    def scored(self, record: Record) -> None:
        self._score(record, -1)

    def _score(self, record: Record, rung: int) -> None:
        """Early stopping looks at the trials the sampler asked for."""
        if not record.get("race"):
            self._scoreboard.add(record["trial"], self._values(record, rung))

    def why_stopped(self, record: Record) -> str | None:
        curve, others = self._scoreboard.curve(record["trial"]), self._scoreboard.others(record["trial"])
        if stopping.goes_on(curve, others, self.study.stopping):
            return None
        return stopping.reason(curve, others, self.study.stopping, self.study.objectives)

    def _values(self, record: Record, rung: int) -> list[float]:
        """The objectives at a rung, all to be minimised."""
        row = {**record["cost"], **record["rungs"][rung]["metrics"]}
        return [row[c] if way == "minimise" else -row[c] for c, way in self.study.objectives.items()]

    # -- twins ---------------------------------------------------------------------------------------------------

    def conclude(self, record: Record, state: State, reason: str, outcome: Record | None = None) -> None:
        super().conclude(record, state, reason, outcome)
        for twin in self._twins.pop(record["trial"], []):
            self.conclude(self.records[twin], "duplicate", f"same network as trial {record['trial']}", record)

    def retell(self, record: Record) -> None:
        """A twin takes its result when that is there."""
        twin_of = record.get("duplicate_of")
        twin_of = record["trial"] if twin_of is None else twin_of
        source = self.records.get(twin_of)
        if source is None:
            self.ledger.forget(record["trial"])
        elif source["state"] == "running":
            self._twins.setdefault(source["trial"], []).append(record["trial"])
        elif source is record:
            super().retell(record)
        else:
            self.conclude(record, "duplicate", f"same network as trial {source['trial']}", source)


class Proposals:
    """The trials of a search by architecture, so that a new one need not be compared with all."""

    def __init__(self, records: Iterable[Record]):
        self.trained = 0  # how many were to be trained, repeats at the end aside
        self._trials: dict[str, list[Record]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """A new trial."""
        self.trained += record["state"] not in UNTRAINED and not record.get("race")
        if "duplicate_of" not in record:
            self._trials.setdefault(record["key"], []).append(record)

    def of(self, key: str) -> list[Record]:
        """The trials of an architecture, first to last, without those that took another's result."""
        return self._trials.get(key, [])
