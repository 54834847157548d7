"""The study: ask for an architecture, refuse what is over budget, train the rest rung by rung, tell the sampler.

The coordinator owns the Optuna journal and one `record.json` per trial; workers only compute. A trial that was
interrupted goes on from its last finished rung when the same command is run again.
"""

from __future__ import annotations

import random
import warnings
from collections import deque
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from nas import racing, stopping, trial
from nas.backbones.unet import Config
from nas.progress import Progress
from nas.rundir import RunDirectory, now
from nas.settings import Search, Study
from nas.space import SearchSpace
from nas.tracking import Tracker
from nas.training import Diverged
from nas.workers import Workers, default_count

Record = dict[str, Any]
FRESH_TRIES = 2_000  # random candidates looked at to find one that is new and within budget
PATIENCE = 20  # refused or repeated suggestions in a row before a fresh architecture is drawn at random instead
ATTEMPTS = 2  # times a rung is tried when its worker process dies
PREPARATION = (-1, 0)  # the tag of the job that makes the shared caches
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "over_budget": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Run:
    """One study in one run directory, from the first ask to the last tell."""

    def __init__(self, study: Study, space: SearchSpace | None, directory: RunDirectory, progress: Progress):
        self.study, self.directory, self.progress = study, directory, progress
        self._space = space
        self.records: dict[int, Record] = directory.records()
        self.continuations: deque[tuple[int, int]] = deque()  # (trial, next rung)
        self.twins: dict[int, list[Trial]] = {}  # running trial -> later trials that asked for its architecture
        self.deaths: dict[tuple[int, int], int] = {}
        self.tracker = Tracker(study.tracking, directory.path, study.name)
        self.optuna = self._open_journal()
        self._resume()

    @property
    def space(self) -> SearchSpace:
        assert self._space is not None, "only a search asks its space"
        return self._space

    @property
    def search(self) -> Search:
        assert self.study.search is not None, "only a search has a sampler"
        return self.study.search

    def execute(self) -> None:
        """Run the study to its end. An interrupt leaves everything on disk; the same command goes on from there."""
        workers = Workers(self.study.workers or default_count(), self.study, self.directory.cache)
        try:
            with self.progress.live(self.records, self.study):
                self._prepare(workers)
                self._loop(workers)
        finally:
            workers.stop()

    def _prepare(self, workers: Workers) -> None:
        """Make the caches every trial shares, and check the objectives against the columns that exist."""
        self.progress.say("preparing latents, text embeddings and metric references (cached after the first time)")
        conditions, captions = self._wait_for(workers, trial.prepare)
        self.directory.write_json("conditions.json", self._conditions(conditions))
        self.directory.write_json("captions.json", captions)
        if self.study.base is not None and not (self.directory.path / "base.json").exists():
            self.progress.say("training the base model (cached after the first time)")
            self.directory.write_json("base.json", self._wait_for(workers, trial.prepare_base, self.directory.path))

    def _wait_for(self, workers: Workers, function: Any, *arguments: Any) -> Any:
        """What one job gives, before any trial runs."""
        workers.submit(PREPARATION, function, *arguments)
        while not (ended := workers.finished(1.0)):
            self.progress.refresh(0)
        return ended[0][1].result()

    def _conditions(self, conditions: Record) -> Record:
        """What each score depends on, by column."""
        return conditions

    def _loop(self, workers: Workers) -> None:
        asking = True
        while True:
            while workers.free and (self.continuations or asking):
                job = self.continuations.popleft() if self.continuations else self._ask() or self._race()
                asking = job is not None
                if job is not None:
                    workers.submit(job, trial.run_rung, self._job(*job))
            if not workers.busy:
                return
            for (number, rung), future in workers.finished(1.0):
                self._take(number, rung, future)
                asking = True  # what was learnt may ask for a repeat
            self.progress.refresh(len(workers.busy))

    # -- asking --------------------------------------------------------------------------------------------------

    def _ask(self) -> tuple[int, int] | None:
        """The next architecture to train, as (trial, rung 0); None when the study has all it asked for."""
        if self._trained() >= self.search.trials:
            return None
        for refusals in range(self.search.max_refusals):
            if refusals and refusals % PATIENCE == 0 and not self._enqueue_fresh():
                self.progress.say("every architecture within budget has been tried; stopping here")
                return None
            number = self._consider(self.optuna.ask())
            if number is not None:
                return number, 0
        self.progress.say(f"gave up after {self.search.max_refusals} refused or repeated candidates in a row")
        return None

    def _trained(self) -> int:
        return sum(record["state"] not in ("over_budget", "duplicate") for record in self._searched())

    def _race(self) -> tuple[int, int] | None:
        """A repeat, with a new seed, of an architecture whose place on the front is undecided, as (trial, last rung).

        None while the search still runs, when all repeats are spent, and when nothing is left to decide.
        """
        raced = sum(bool(record.get("race")) for record in self.records.values())
        if raced >= self.study.racing.trials or any(record["state"] == "running" for record in self._searched()):
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
        for name, limit in self.study.budget.items():
            asked.set_constraint(name, first["cost"][name] / limit - 1)
        repeat = 1 + len(others)
        copied = {name: first[name] for name in ("key", "init", "choices", "architecture", "cost")}
        record = {"trial": asked.number, **copied, "state": "running", "reason": "", "rungs": [], "started": now()}
        record |= {"race": True, "repeat": repeat, "seed": trial_seed(self.study.seed, key, repeat)}
        self._save(record)
        self.progress.started(record)
        return asked.number, len(self.study.stopping.rungs) - 1

    def _repeated_values(self) -> dict[str, list[list[float]]]:
        """The objectives of every complete trial, all to be minimised, by architecture."""
        values: dict[str, list[list[float]]] = {}
        for record in self.records.values():
            if record["state"] == "complete":
                values.setdefault(record["key"], []).append(self._values(record, -1))
        return values

    def _consider(self, asked: Trial) -> int | None:
        """The trial's number if it is to be trained; None if it was refused or repeats an architecture."""
        choices = self.space.suggest(asked)
        config = self.space.architecture(choices)
        record = self._new_record(asked, choices, config, self.study.deploy.costs(config))
        over = over_budget(record["cost"], self.study.budget)
        for name, limit in self.study.budget.items():
            asked.set_constraint(name, record["cost"][name] / limit - 1)
        earlier = [r for r in self.records.values() if r["key"] == config.key and "duplicate_of" not in r]
        if over:
            self._conclude(record, "over_budget", over)
        elif len(earlier) > self.search.repeats:
            self._reuse(asked, record, earlier[0])
        else:
            record["repeat"] = len(earlier)
            record["seed"] = trial_seed(self.study.seed, config.key, len(earlier))
            self._save(record)
            self.progress.started(record)
            return asked.number
        return None

    def _new_record(self, asked: Trial, choices: dict[str, Any], config: Config, cost: dict[str, Any]) -> Record:
        return {
            "trial": asked.number,
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

    def _reuse(self, asked: Trial, record: Record, earlier: Record) -> None:
        """A repeated architecture takes the earlier one's result, now or when it is there."""
        record["duplicate_of"] = earlier["trial"]
        if earlier["state"] == "running":
            self.twins.setdefault(earlier["trial"], []).append(asked)
            record["state"] = "duplicate"
            self._save(record)
        else:
            self._tell(asked.number, earlier)
            self._conclude(record, "duplicate", f"same network as trial {earlier['trial']}", tell=False)

    def _enqueue_fresh(self) -> bool:
        """Put an untried architecture within budget next in line; False if random drawing finds none."""
        known = {record["key"] for record in self.records.values()}
        rng = random.Random(trial_seed(self.study.seed, "fresh", len(self.records)))
        for _ in range(FRESH_TRIES):
            choices = self.space.sample(rng)
            config = self.space.architecture(choices)
            cost = self.study.deploy.costs(config)
            if config.key not in known and not over_budget(cost, self.study.budget):
                self.optuna.enqueue_trial(self.space.parameters(choices))
                return True
        return False

    # -- taking results ------------------------------------------------------------------------------------------

    def _job(self, number: int, rung: int) -> trial.Job:
        record = self.records[number]
        rungs = self.study.stopping.rungs
        return trial.Job(
            trial=number,
            architecture=record["architecture"],
            seed=record["seed"],
            rung=rung,
            images_seen=round(rungs[rung] * self.study.training.images_seen),
            last=rung == len(rungs) - 1,
            folder=self.directory.trial(number),
        )

    def _take(self, number: int, rung: int, future: Future[Any]) -> None:
        """Record what a rung gave, and decide whether its trial goes on."""
        record = self.records[number]
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            return self._retry(record, rung)
        if error is not None:
            reason = str(error) if isinstance(error, Diverged) else f"{type(error).__name__}: {error}"
            return self._conclude(record, "failed", reason)
        result = future.result()
        record.update(proxy=result["proxy"], proxy_cost=result["proxy_cost"])
        others = [self._curve(other) for other in self._searched() if other is not record]
        record["rungs"].append(result["rung"])
        if rung == len(self.study.stopping.rungs) - 1:
            self._conclude(record, "complete", "")
        elif self._goes_on(record, others):
            self._save(record)
            self.continuations.append((number, rung + 1))
        else:
            self._conclude(record, "stopped", stopping.reason(self.study.stopping, rung))

    def _searched(self) -> list[Record]:
        """The trials the sampler asked for; a repeat has no earlier rungs."""
        return [record for record in self.records.values() if not record.get("race")]

    def _goes_on(self, record: Record, others: list[list[list[float]]]) -> bool:
        return stopping.goes_on(self._curve(record), others, self.study.stopping)

    def _curve(self, record: Record) -> list[list[float]]:
        """The objectives at every rung so far, all to be minimised."""
        return [self._values(record, rung) for rung in range(len(record["rungs"]))]

    def _retry(self, record: Record, rung: int) -> None:
        """A worker process died under a trial: once more from the last rung, then give it up."""
        job = (record["trial"], rung)
        self.deaths[job] = self.deaths.get(job, 0) + 1
        if self.deaths[job] < ATTEMPTS:
            self.continuations.append(job)
        else:
            self._conclude(record, "failed", f"its worker process died {ATTEMPTS} times (out of memory?)")

    def _values(self, record: Record, rung: int) -> list[float]:
        """The objectives at a rung, all to be minimised."""
        row = {**record["cost"], **record["rungs"][rung]["metrics"]}
        return [row[c] if way == "minimise" else -row[c] for c, way in self.study.objectives.items()]

    def _conclude(self, record: Record, state: str, reason: str, tell: bool = True) -> None:
        """A trial's last word: on disk first, then to the sampler, the tracker and the screen."""
        record.update(state=state, reason=reason, finished=now())
        self._save(record)
        if tell:
            self._tell(record["trial"], record)
        for twin in self.twins.pop(record["trial"], []):
            self._tell(twin.number, record)
            self._conclude(self.records[twin.number], "duplicate", f"same network as trial {record['trial']}", False)
        if state not in ("over_budget", "duplicate"):
            self.tracker.trial(record, self.directory.trial(record["trial"]))
        self.progress.concluded(record)

    def _tell(self, number: int, outcome: Record) -> None:
        """Tell Optuna a trial's outcome (its own or its twin's)."""
        state = STATES[outcome["state"]]
        row = {**outcome["cost"], **(outcome["rungs"][-1]["metrics"] if outcome["rungs"] else {})}
        values = [row[column] for column in self.study.objectives] if state == TrialState.COMPLETE else None
        self.optuna.tell(number, values, state)

    def _save(self, record: Record) -> None:
        self.records[record["trial"]] = record
        self.directory.write_record(record)

    # -- opening and resuming ------------------------------------------------------------------------------------

    def _open_journal(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        journal = JournalStorage(JournalFileBackend(str(self.directory.path / "journal.log")))
        return optuna.create_study(
            storage=journal,
            study_name=self.study.name,
            load_if_exists=True,
            sampler=self._sampler(),
            directions=["minimize" if way == "minimise" else "maximize" for way in self.study.objectives.values()],
        )

    def _sampler(self) -> BaseSampler:
        return sampler(self.search, self.study.seed, len(self.records))

    def _resume(self) -> None:
        """Line up what an interrupted run left unfinished."""
        for asked in self.optuna.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            record = self.records.get(asked.number)
            if record is None or record["state"] == "duplicate":
                self.records.pop(asked.number, None)
                self.optuna.tell(asked.number, state=TrialState.FAIL)
            elif record["state"] == "running":
                last = len(self.study.stopping.rungs) - 1
                self.continuations.append((asked.number, last if record.get("race") else len(record["rungs"])))
            else:
                self._tell(asked.number, record)


def sampler(search: Search, study_seed: int, told: int) -> BaseSampler:
    """The search's Optuna sampler; a resumed study does not replay its first suggestions."""
    seed = trial_seed(study_seed, "sampler", told) % 2**32
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(4, min(50, search.trials // 2)))
    if search.sampler == "gp":
        return _gp(seed, search.trials)
    return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=min(10, search.trials // 2))


def _gp(seed: int, trials: int) -> BaseSampler:
    """Optuna's Gaussian processes. They fit tiny matrices with torch, which more threads only slow down."""
    import torch

    torch.set_num_threads(1)
    return GPSampler(seed=seed, n_startup_trials=min(10, trials // 2))


def trial_seed(seed: int, key: str, repeat: int) -> int:
    """A 63-bit seed from (study seed, architecture key, repeat): workers and order don't matter."""
    from hashlib import sha256

    return int.from_bytes(sha256(f"{seed}/{key}/{repeat}".encode()).digest()[:8], "big") >> 1


def over_budget(cost: dict[str, Any], budget: dict[str, float]) -> str:
    """Why a cost breaks the budget, or an empty string."""
    broken = [f"{name} {cost[name]:.3g} > {limit:.3g}" for name, limit in budget.items() if cost[name] > limit]
    return ", ".join(broken)
