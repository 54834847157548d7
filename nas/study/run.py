"""A study in its run directory, whatever its kind: ask what to train, train it rung by rung, tell Optuna, resume.

One process coordinates: it alone asks, decides and writes the ledger; an engine only computes jobs. A trial that was
interrupted goes on from its last checkpoint when the same command is run again.

A kind of run is a subclass that decides what is trained: nas.study.search_run, nas.study.ablation_run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial

from nas import failures
from nas.analysis import reference_lines
from nas.cost.budget import constraints
from nas.errors import InputError
from nas.interruption import Interrupted
from nas.networks.backbones import Backbone
from nas.report.progress import Progress
from nas.report.wandb.tracking import Tracker
from nas.runs import records
from nas.runs.directory import RunDirectory, now
from nas.runs.journal import is_database, open_storage
from nas.runs.lease import Lease
from nas.runs.ledger import Ledger
from nas.runs.records import UNTRAINED, Damaged, Record, State
from nas.settings.study import Study
from nas.trial import line_scores, pace, timing
from nas.trial.pace import Pace
from nas.trial.rung import Job, prepare, prepare_base, run_rung
from nas.workers.local import Engine, Workers, default_count, idle

ATTEMPTS = 3  # times a rung is tried when its worker process dies
PREPARATION = (-1, 0)  # the tag of the job that makes the shared caches
LINES = (-2, 0)  # and of the one that scores the lines of reference
TIMING = -3  # first of the tags of jobs that are timed before the study starts
Conditions = dict[str, dict[str, Any]]  # what a score was measured with, by column
MakeEngine = Callable[[int, Study, Path], Engine]  # (processes, study, cache folder)


class Run(ABC):
    """One study in one run directory, from the first ask to the last tell.

    A kind of run provides `sampler`, `ask`, `suggested`, `reference` and `why_stopped`, and where it differs `conditions`, `job`,
    `next_rung`, `scored`, `resume`, `retell` and `conclude`. What it may use besides is public here.
    """

    def __init__(
        self,
        study: Study,
        directory: RunDirectory,
        progress: Progress,
        url: str | None = None,
        engine: MakeEngine | None = None,
    ):
        """`url`: where Optuna's trials are kept, a journal in the run directory unless given. `engine`: what computes.

        Raises InputError while another process coordinates this run.
        """
        self.study, self.directory, self.progress = study, directory, progress
        self._engine = engine
        self._continuations: deque[tuple[int, int]] = deque()  # (trial, next rung)
        self._deaths: dict[tuple[int, int], int] = {}
        self.tracker = Tracker(study.tracking, directory.path, study.name)
        shared = is_database(url)
        run = f"{study.name}/{directory.path.name}" if shared else study.name
        storage = open_storage(url, directory.path / "journal.log", run)
        self.ledger = Ledger(study, directory, storage, run, mirrored=shared)
        self.optuna = self.ledger.open(self.sampler(), self.suggested)
        self._lease = Lease(self.ledger.stored)
        self._lease.take(progress.say, contested=shared)

    @property
    def records(self) -> dict[int, Record]:
        """What is known of every trial, by number."""
        return self.ledger.records

    # -- what a kind of run provides -----------------------------------------------------------------------------

    @abstractmethod
    def sampler(self) -> BaseSampler:
        """The Optuna study's sampler; records are known, Optuna's trials are not."""

    @abstractmethod
    def ask(self) -> tuple[int, int] | None:
        """The next trial to train, with its record saved, as (trial, rung); None when there is none for now."""

    @abstractmethod
    def suggested(self, record: Record) -> FixedTrial:
        """What was suggested to a trial, for a storage that has lost it."""

    @abstractmethod
    def begun(self, asked: FrozenTrial) -> Record:
        """Decide anew on a trial whose record was damaged, and save its first one. Raises ValueError or KeyError when Optuna
        does not know what it was."""

    @abstractmethod
    def why_stopped(self, record: Record) -> str | None:
        """Why a trial that was just scored, not at the last rung, is trained no further; None when it goes on."""

    @abstractmethod
    def reference(self) -> tuple[dict[str, Any], Backbone, bool]:
        """What the lines of reference are scored with: settings by path, an architecture, and whether it gets a trial's
        training as well."""

    @abstractmethod
    def typical(self, count: int) -> list[tuple[dict[str, Any], Backbone]]:
        """What `count` workers time at once before the study starts: settings by path, and an architecture."""

    @abstractmethod
    def outstanding(self, paces: Sequence[Pace | None]) -> list[float]:
        """Seconds of every trial that is left, from the paces of what is typical; None where one could not be timed."""

    def scored(self, record: Record) -> None:  # noqa: B027 (a kind that never stops a trial needs nothing)
        """A trial has a new score; called before `why_stopped`, and at the last rung as well."""

    def conditions(self, conditions: Conditions) -> Conditions:
        """What each score depends on, by column."""
        return conditions

    def job(self, number: int, rung: int) -> Job:
        """What a worker is given to train a trial up to a rung."""
        record = self.records[number]
        rungs = self.study.stopping.rungs
        return Job(
            trial=number,
            architecture=record["architecture"],
            seed=record["seed"],
            rung=rung,
            images_seen=round(rungs[rung] * self.study.training.images_seen),
            last=rung == len(rungs) - 1,
            folder=self.directory.trial(number),
        )

    def next_rung(self, record: Record) -> int:
        """Where an interrupted trial goes on."""
        return len(record["rungs"])

    def resume(self) -> None:
        """Line up what an interrupted run left unfinished."""
        for number in self.ledger.lost():
            self._ask_again(number)
        for number, error in self.ledger.damaged.items():
            self._begin_again(number, error)
        self.ledger.in_order()
        told_not = set(self.ledger.running())
        for number, record in list(self.records.items()):
            if record["state"] == "running":
                self._continuations.append((number, self.next_rung(record)))
            elif number in told_not:
                self.retell(record)
        for number in told_not.difference(self.records):
            self.ledger.forget(number)

    def _begin_again(self, number: int, error: Damaged) -> None:
        """Put a damaged record aside, with all that its trial left, and train the trial again."""
        where = records.path_of(self.directory.path, number)
        aside = records.put_aside(self.directory.path, number)
        asked = self.ledger.asked(number)
        try:
            begun = self.begun(asked) if asked is not None else None
        except (KeyError, ValueError):
            begun = None
        again = f"trial {number} begins again" if begun else "Optuna does not know that trial, another takes its place"
        self.progress.say(f"{where}: {error}; its folder is now {aside.name}, and {again}")

    def retell(self, record: Record) -> None:
        """Tell Optuna of a trial that was concluded on disk only."""
        self.ledger.tell(record["trial"], record)

    def conclude(self, record: Record, state: State, reason: str, outcome: Record | None = None) -> None:
        """A trial's last word: on disk first, then to the sampler, the tracker and the screen.

        `outcome`: the record whose result the sampler is told, where a trial takes another's.
        """
        record["state"], record["reason"], record["finished"] = state, reason, now()
        self.ledger.save(record)
        self.ledger.tell(record["trial"], outcome or record)
        if state not in UNTRAINED:
            self.tracker.trial(record, self.directory.trial(record["trial"]))
        self.progress.concluded(record)

    # -- what it may use -----------------------------------------------------------------------------------------

    def new_record(self, number: int, choices: dict[str, Any], config: Backbone, cost: dict[str, Any]) -> Record:
        """The first record of a trial; of its costs the numbers."""
        return {
            "trial": number,
            "key": config.key,
            "state": "running",
            "reason": "",
            "init": self.study.training.init,
            "choices": choices,
            "architecture": config.to_dict(),
            "cost": {name: value for name, value in cost.items() if isinstance(value, int | float)},
            "rungs": [],
            "started": now(),
        }

    def start(self, record: Record) -> None:
        """Write down a trial that is to be trained."""
        self.ledger.save(record)
        self.progress.started(record)

    # -- the loop ------------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Run the study to its end. An interrupt leaves everything on disk; the same command goes on from there."""
        self.resume()
        self.tracker.catch_up(self.records.values())
        count = default_count() if self.study.workers is None else self.study.workers
        workers = (self._engine or Workers)(count, self.study, self.directory.cache)
        if self._engine is None and (said := idle(count, self.study.worker_threads)):
            self.progress.say(said)
        try:
            with self.progress.live(self.records, self.study, self.directory.trial):
                self._prepare(workers)
                self._estimate(workers, count)
                self._loop(workers)
        finally:
            workers.stop()
            self._lease.release()

    def _prepare(self, workers: Engine) -> None:
        """Make the caches every trial shares, and check the objectives against the columns that exist."""
        self.progress.say("preparing latents, text embeddings and metric references (cached after the first time)")
        conditions, captions = self._wait_for(workers, prepare)
        self.directory.write_json("conditions.json", self.conditions(conditions))
        self.directory.write_json("captions.json", captions)
        if self.study.base is not None and not self._has_base():
            self.progress.say("training the base model (cached after the first time)")
            self.directory.write_json("base.json", self._wait_for(workers, prepare_base, self.directory.path))

    def _has_base(self) -> bool:
        """Whether the base model's record is there; one that is damaged is made again."""
        try:
            return reference_lines.base_scores(self.directory.path) is not None
        except InputError:
            return False

    def _estimate(self, workers: Engine, count: int) -> None:
        """Say how long the study will take, from what is timed in all workers at once."""
        asked = list(enumerate(self.typical(count)))
        if not asked:
            return
        found: list[Pace | None] = [None] * len(asked)
        while asked or workers.busy:
            while asked and workers.free:
                place, (settings, config) = asked.pop(0)
                workers.submit((TIMING, place), timing.clock, settings, config.to_dict())
            for (_, place), future in workers.finished(1.0):
                error = future.exception()
                if error is None:
                    found[place] = future.result()
                elif isinstance(known := failures.sorted_out(error), Interrupted | failures.DiskTrouble):
                    raise known
            self._lease.renew()
            self.progress.refresh(0)
        known_paces = [each for each in found if each is not None]
        if known_paces:
            lines = not (self.directory.path / reference_lines.FILE).exists()
            lines_s = known_paces[0].lines_s(self.study, self.reference()[2]) if lines else 0.0
            stops = (
                self.study.ablation is None
                and self.study.stopping.rule != "none"
                and len(self.study.stopping.rungs) > 1
            )
            told = pace.estimate(known_paces, self.outstanding(found), lines_s, count, stops)
            self.progress.expect(told)

    def _wait_for(self, workers: Engine, function: Any, *arguments: Any) -> Any:
        """What one job gives, before any trial runs. Raises InputError when its worker dies ATTEMPTS times."""
        for _ in range(ATTEMPTS):
            workers.submit(PREPARATION, function, *arguments)
            while not (ended := workers.finished(1.0)):
                self._lease.renew()
                self.progress.refresh(0)
            try:
                return ended[0][1].result()
            except failures.Lost as error:
                death = error
        raise InputError(f"the preparation's worker process died {ATTEMPTS} times; the last time: {death}")

    def _loop(self, workers: Engine) -> None:
        if not (self.directory.path / reference_lines.FILE).exists():
            self._score_lines(workers)
        asking = True
        while True:
            while workers.free and (self._continuations or asking):
                self._lease.renew()
                job = self._continuations.popleft() if self._continuations else self.ask()
                asking = job is not None
                if job is not None:
                    workers.submit(job, run_rung, self.job(*job))
            if not (workers.busy or self._continuations or asking):
                return
            for tag, future in workers.finished(1.0):
                if tag == LINES:
                    self._take_lines(workers, future)
                else:
                    self._take(*tag, future)
                asking = True  # what was learnt may ask for a repeat
            self._lease.renew()
            self.progress.refresh(len(workers.busy))

    def _score_lines(self, workers: Engine) -> None:
        settings, config, train = self.reference()
        workers.submit(LINES, line_scores.measure, self.directory.path, settings, config.to_dict(), train)

    def _take_lines(self, workers: Engine, future: Future[Any]) -> None:
        """Write down the lines of reference. No trial depends on them, so what goes wrong with them is said, and that is all."""
        error = future.exception()
        if error is None:
            return self.directory.write_json(reference_lines.FILE, future.result())
        known = failures.sorted_out(error)
        if isinstance(known, failures.DiskTrouble):
            raise known
        self._deaths[LINES] = self._deaths.get(LINES, 0) + 1
        if isinstance(known, failures.Lost) and self._deaths[LINES] < ATTEMPTS:
            self._score_lines(workers)
        elif not isinstance(known, Interrupted):
            self.progress.say(f"the report will have no lines of reference: {known}")

    def _take(self, number: int, rung: int, future: Future[Any]) -> None:
        """Record what a rung gave, and decide whether its trial goes on."""
        record = self.records[number]
        error = future.exception()
        if isinstance(error, Interrupted):
            return self._continuations.append((number, rung))
        if isinstance(error, failures.Lost):
            return self._retry(record, rung, error)
        if error is not None:
            known = failures.sorted_out(error)
            if isinstance(known, failures.DiskTrouble):
                raise known
            return self.conclude(record, "failed", str(known))
        result = future.result()
        record["proxy"], record["proxy_cost"] = result["proxy"], result["proxy_cost"]
        record["rungs"].append(result["rung"])
        self.scored(record)
        if rung == len(self.study.stopping.rungs) - 1:
            self.conclude(record, "complete", "")
        elif why := self.why_stopped(record):
            self.conclude(record, "stopped", why)
        else:
            self.ledger.save(record)
            self._continuations.append((number, rung + 1))

    def _retry(self, record: Record, rung: int, death: failures.Lost) -> None:
        """A worker process died under a trial: again from the last checkpoint, and at last give it up."""
        job = (record["trial"], rung)
        self._deaths[job] = self._deaths.get(job, 0) + 1
        if self._deaths[job] < ATTEMPTS:
            self._continuations.append(job)
        else:
            self.conclude(record, "failed", f"its worker process died {ATTEMPTS} times; the last time: {death}")

    def _ask_again(self, number: int) -> None:
        """Give Optuna back a trial that its storage lost, a journal's last second for example; its record stays."""
        record = self.records.get(number)
        if record is None:
            return self.ledger.put_back(None, {})
        self.ledger.put_back(self.suggested(record), constraints(record["cost"], self.study.budget))
