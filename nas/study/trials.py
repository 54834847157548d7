"""The trials of a run, as its proposer sees them: what is known of each, the next one, its first word and its last.

A trial may take another's result, now or when that is there. Records are written first, then Optuna is told, then the tracker and
the screen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.trial import FixedTrial, Trial

from nas.networks.backbones import Backbone
from nas.report.live.progress import Progress
from nas.report.wandb.tracking import Tracker
from nas.runs import earlier, evolution, looks
from nas.runs.directory import RunDirectory, now
from nas.runs.earlier import Earlier
from nas.runs.evolution import Round
from nas.runs.ledger import Ledger
from nas.runs.looks import Looks
from nas.runs.records import UNTRAINED, Damaged, Record, State
from nas.settings.study import Study
from nas.space.search_space import Choices, SearchSpace
from nas.trial.rung import CHECKPOINT


class Trials:
    """The trials of one run, by number."""

    def __init__(
        self,
        ledger: Ledger,
        directory: RunDirectory,
        progress: Progress,
        tracker: Tracker,
        alive: Callable[[], None] = lambda: None,
    ):
        """`alive` says that this process lives, however many trials in a row are refused."""
        self._ledger, self._directory, self._progress, self._tracker = ledger, directory, progress, tracker
        self._alive = alive
        self._twins: dict[int, list[int]] = {}  # running trial -> later trials that take its result

    @property
    def records(self) -> dict[int, Record]:
        """What is known of every trial, by number."""
        return self._ledger.records

    def looks(self) -> Looks:
        """The looks of this run so far."""
        try:
            return looks.read(self._directory.path)
        except Damaged as error:
            self.say(f"{error}; what it was about is looked at again")
            return {}

    def keep(self, found: Looks) -> None:
        """Write down all looks."""
        self._directory.write_json(looks.NAME, found)

    def rounds(self) -> list[Round]:
        """The rounds of this run's evolution so far."""
        try:
            return evolution.read(self._directory.path)
        except Damaged as error:
            self.say(f"{error}; what is not decided is looked at again")
            return []

    def keep_rounds(self, rounds: Sequence[Round]) -> None:
        """Write down all rounds."""
        self._directory.write_json(evolution.NAME, rounds)

    def earlier(self) -> list[Earlier]:
        """The earlier runs that this one learns from."""
        return earlier.read(self._directory.path)

    def number(self, asked: Trial) -> int:
        """The number in this run of a trial that was asked for."""
        return self._ledger.number(asked)

    def ask(self, parameters: dict[str, Any] | None = None, attributes: dict[str, Any] | None = None) -> Trial:
        """Optuna's next trial: one that its sampler suggests, or with these parameters."""
        self._alive()
        if parameters is not None:
            self._ledger.optuna.enqueue_trial(parameters, attributes)
        return self._ledger.optuna.ask()

    def start(self, record: Record) -> None:
        """Write down a trial that is to be trained."""
        self._ledger.save(record)
        self._progress.started(record)

    def conclude(self, record: Record, state: State, reason: str, scored: bool = False) -> None:
        """Write down how a trial ended; `scored`: with a new rung."""
        self._end(record, state, reason, record, scored)

    def scored(self, record: Record) -> None:
        """Write down a new rung of a trial that goes on."""
        self._ledger.save(record)
        self._progress.scored(record)

    def reuse(self, record: Record, earlier: Record) -> None:
        """A trial is not trained: it takes an earlier one's result, now or when that is there."""
        record["duplicate_of"] = earlier["trial"]
        if earlier["state"] == "running":
            self._await(record, earlier)
            record["state"] = "duplicate"
            self._ledger.save(record)
        else:
            self._take(record, earlier)

    def retell(self, record: Record) -> None:
        """Tell Optuna of a trial that was concluded on disk only."""
        twin_of = record.get("duplicate_of")
        if twin_of is None:
            return self._ledger.tell(record["trial"], record)
        earlier = self.records.get(twin_of)
        if earlier is None:
            self._ledger.forget(record["trial"])
        elif earlier["state"] == "running":
            self._await(record, earlier)
        else:
            self._take(record, earlier)

    def say(self, text: str) -> None:
        """Print a line."""
        self._progress.say(text)

    def _await(self, record: Record, earlier: Record) -> None:
        waiting = self._twins.setdefault(earlier["trial"], [])
        if record["trial"] not in waiting:
            waiting.append(record["trial"])

    def _take(self, record: Record, earlier: Record) -> None:
        self._end(record, "duplicate", f"same network as trial {earlier['trial']}", earlier)

    def _end(self, record: Record, state: State, reason: str, outcome: Record, scored: bool = False) -> None:
        """A trial's last word, and that of those that waited for it. `outcome`: whose result the sampler is told."""
        record["state"], record["reason"], record["finished"] = state, reason, now()
        self._ledger.save(record)
        if state == "complete":  # not before: a run that ends now would train it again
            (self._directory.trial(record["trial"]) / CHECKPOINT).unlink(missing_ok=True)
        self._ledger.tell(record["trial"], outcome)
        if state not in UNTRAINED:
            self._tracker.trial(record, self._directory.trial(record["trial"]))
        if scored:
            self._progress.scored(record)
        self._progress.concluded(record)
        for twin in self._twins.pop(record["trial"], []):
            self._take(self.records[twin], record)


def numbers(cost: Mapping[str, Any]) -> dict[str, int | float]:
    """Those costs that are numbers."""
    return {name: value for name, value in cost.items() if isinstance(value, int | float)}


def first_record(study: Study, number: int, choices: dict[str, Any], config: Backbone) -> Record:
    """The first record of a trial of this network; of its costs the numbers."""
    return {
        "trial": number,
        "key": config.key,
        "state": "running",
        "reason": "",
        "init": study.training.init,
        "choices": choices,
        "architecture": config.to_dict(),
        "cost": numbers(study.deploy.costs(config)),
        "rungs": [],
        "started": now(),
    }


def suggestion(space: SearchSpace, choices: Choices) -> FixedTrial:
    """What was suggested to a trial that was given these choices of a space. Raises ValueError for choices that are none."""
    fixed = FixedTrial(space.parameters(choices))
    space.suggest(fixed)
    return fixed
