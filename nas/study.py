"""The study: ask for an architecture, refuse what is over budget, train the rest rung by rung, tell the sampler.

One process coordinates: it alone asks, decides and writes the ledger; an engine only computes jobs. A trial that was
interrupted goes on from its last checkpoint when the same command is run again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import takewhile
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FixedTrial, Trial

from nas import failures, racing, stopping, trial
from nas.backbones.unet import Config
from nas.errors import InputError
from nas.interruption import Interrupted
from nas.joined import Fleet, Joined
from nas.joining import ENDED, SETTINGS
from nas.lease import Lease
from nas.ledger import Ledger, Record
from nas.progress import Progress
from nas.random_sampler import NumberedRandomSampler
from nas.rundir import RunDirectory, now
from nas.settings import Search, Study
from nas.space import SearchSpace
from nas.storage import is_database, open_storage
from nas.tracking import Tracker
from nas.workers import Engine, Workers, default_count

FRESH_TRIES = 2_000  # random candidates looked at to find one that is new and within budget
PATIENCE = 20  # refused or repeated suggestions in a row before a fresh architecture is drawn at random instead
ATTEMPTS = 3  # times a rung is tried when its worker process dies
PREPARATION = (-1, 0)  # the tag of the job that makes the shared caches
MakeEngine = Callable[[int, Study, Path], Engine]  # (processes, study, cache folder)


class Run:
    """One study in one run directory, from the first ask to the last tell."""

    def __init__(
        self,
        study: Study,
        space: SearchSpace | None,
        directory: RunDirectory,
        progress: Progress,
        url: str | None = None,
        engine: MakeEngine | None = None,
    ):
        """`url`: where Optuna's trials are kept, a journal in the run directory unless given. `engine`: what computes."""
        self.study, self.directory, self.progress = study, directory, progress
        self._space, self._engine = space, engine
        self.continuations: deque[tuple[int, int]] = deque()  # (trial, next rung)
        self.twins: dict[int, list[int]] = {}  # running trial -> later trials that asked for its architecture
        self.deaths: dict[tuple[int, int], int] = {}
        self._curves: dict[int, list[list[float]]] = {}  # of every trial the sampler asked for, as far as it got
        self.tracker = Tracker(study.tracking, directory.path, study.name)
        shared = is_database(url)
        run = f"{study.name}/{directory.path.name}" if shared else study.name
        storage = open_storage(url, directory.path / "journal.log", run)
        self.ledger = Ledger(study, directory, storage, run, mirrored=shared)
        self.optuna = self.ledger.open(self._sampler())
        self.lease = Lease(self.ledger.stored)
        self.lease.take(progress.say, contested=shared)
        self._publish()
        self._resume()

    def _publish(self) -> None:
        """What workers that join need to know."""
        self.ledger.stored.set_user_attr(SETTINGS, self.study.resolved())
        self.ledger.stored.set_user_attr("directory", str(self.directory.path.relative_to(self.directory.root)))
        self.ledger.stored.set_user_attr(ENDED, False)

    @property
    def records(self) -> dict[int, Record]:
        """What is known of every trial, by number."""
        return self.ledger.records

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
        count = default_count() if self.study.workers is None else self.study.workers
        own = (self._engine or Workers)(count or 1, self.study, self.directory.cache)
        workers = Fleet(own, Joined(self.ledger.storage, self.ledger.name, self.directory.root), alone=count > 0)
        try:
            with self.progress.live(self.records, self.study):
                self._prepare(workers)
                for job in workers.adopt(self.continuations):
                    self.continuations.remove(job)
                self._loop(workers)
            self.ledger.stored.set_user_attr(ENDED, True)
        finally:
            workers.stop()
            self.lease.release()

    def _prepare(self, workers: Engine) -> None:
        """Make the caches every trial shares, and check the objectives against the columns that exist."""
        self.progress.say("preparing latents, text embeddings and metric references (cached after the first time)")
        conditions, captions = self._wait_for(workers, trial.prepare)
        self.directory.write_json("conditions.json", self._conditions(conditions))
        self.directory.write_json("captions.json", captions)
        if self.study.base is not None and not (self.directory.path / "base.json").exists():
            self.progress.say("training the base model (cached after the first time)")
            self.directory.write_json("base.json", self._wait_for(workers, trial.prepare_base, self.directory.path))

    def _wait_for(self, workers: Engine, function: Any, *arguments: Any) -> Any:
        """What one job gives, before any trial runs. Raises InputError when its worker dies ATTEMPTS times."""
        for _ in range(ATTEMPTS):
            workers.submit(PREPARATION, function, *arguments)
            while not (ended := workers.finished(1.0)):
                self.lease.renew()
                self.progress.refresh(0)
            try:
                return ended[0][1].result()
            except failures.Lost as error:
                death = error
        raise InputError(f"the preparation's worker process died {ATTEMPTS} times; the last time: {death}")

    def _conditions(self, conditions: Record) -> Record:
        """What each score depends on, by column."""
        return conditions

    def _loop(self, workers: Engine) -> None:
        asking = True
        while True:
            while workers.free and (self.continuations or asking):
                self.lease.renew()
                job = self.continuations.popleft() if self.continuations else self._ask() or self._race()
                asking = job is not None
                if job is not None:
                    workers.submit(job, trial.run_rung, self._job(*job))
            if not (workers.busy or self.continuations or asking):
                return
            for (number, rung), future in workers.finished(1.0):
                self._take(number, rung, future)
                asking = True  # what was learnt may ask for a repeat
            self.lease.renew()
            self.progress.refresh(len(workers.busy))

    # -- asking --------------------------------------------------------------------------------------------------

    def _ask(self) -> tuple[int, int] | None:
        """The next architecture to train, as (trial, rung 0); None when the study has all it asked for."""
        if self._trained() >= self.search.trials:
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

    def _trained(self) -> int:
        return sum(_counts(record) and not record.get("race") for record in self.records.values())

    def _refused_in_a_row(self) -> int:
        """How many of the latest trials were not to be trained; on disk, so that interruptions don't change the search."""
        return sum(1 for _ in takewhile(lambda record: not _counts(record), reversed(self.records.values())))

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
            self.twins.setdefault(earlier["trial"], []).append(asked.number)
            record["state"] = "duplicate"
            self._save(record)
        else:
            self._conclude(record, "duplicate", f"same network as trial {earlier['trial']}", earlier)

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
        if isinstance(error, Interrupted):
            return self.continuations.append((number, rung))
        if isinstance(error, failures.Lost):
            return self._retry(record, rung, error)
        if error is not None:
            known = failures.sorted_out(error)
            if isinstance(known, failures.DiskTrouble):
                raise known
            return self._conclude(record, "failed", str(known))
        result = future.result()
        record.update(proxy=result["proxy"], proxy_cost=result["proxy_cost"])
        record["rungs"].append(result["rung"])
        if not record.get("race"):
            self._curves[number] = self._curve(record)
        if rung == len(self.study.stopping.rungs) - 1:
            self._conclude(record, "complete", "")
        elif self._goes_on(record):
            self._save(record)
            self.continuations.append((number, rung + 1))
        else:
            self._conclude(record, "stopped", stopping.reason(self.study.stopping, rung))

    def _searched(self) -> list[Record]:
        """The trials the sampler asked for; a repeat has no earlier rungs."""
        return [record for record in self.records.values() if not record.get("race")]

    def _goes_on(self, record: Record) -> bool:
        others = [known for number, known in self._curves.items() if number != record["trial"]]
        return stopping.goes_on(self._curves[record["trial"]], others, self.study.stopping)

    def _curve(self, record: Record) -> list[list[float]]:
        """The objectives at every rung so far, all to be minimised."""
        return [self._values(record, rung) for rung in range(len(record["rungs"]))]

    def _retry(self, record: Record, rung: int, death: failures.Lost) -> None:
        """A worker process died under a trial: again from the last checkpoint, and at last give it up."""
        job = (record["trial"], rung)
        self.deaths[job] = self.deaths.get(job, 0) + 1
        if self.deaths[job] < ATTEMPTS:
            self.continuations.append(job)
        else:
            self._conclude(record, "failed", f"its worker process died {ATTEMPTS} times; the last time: {death}")

    def _values(self, record: Record, rung: int) -> list[float]:
        """The objectives at a rung, all to be minimised."""
        row = {**record["cost"], **record["rungs"][rung]["metrics"]}
        return [row[c] if way == "minimise" else -row[c] for c, way in self.study.objectives.items()]

    def _conclude(self, record: Record, state: str, reason: str, outcome: Record | None = None) -> None:
        """A trial's last word: on disk first, then to the sampler, the tracker and the screen.

        `outcome`: the record whose result the sampler is told, where a trial takes another's.
        """
        record.update(state=state, reason=reason, finished=now())
        self._save(record)
        self.ledger.tell(record["trial"], outcome or record)
        for twin in self.twins.pop(record["trial"], []):
            self._conclude(self.records[twin], "duplicate", f"same network as trial {record['trial']}", record)
        if state not in ("over_budget", "duplicate"):
            self.tracker.trial(record, self.directory.trial(record["trial"]))
        self.progress.concluded(record)

    def _save(self, record: Record) -> None:
        self.ledger.save(record)

    # -- opening and resuming ------------------------------------------------------------------------------------

    def _sampler(self) -> BaseSampler:
        return sampler(self.search, self.study.seed, len(self.records))

    def _resume(self) -> None:
        """Line up what an interrupted run left unfinished."""
        self._curves = {record["trial"]: self._curve(record) for record in self._searched() if record["rungs"]}
        for number in self.ledger.lost():
            self._ask_again(number)
        for number in self.ledger.running():
            record = self.records.get(number)
            if record is None:
                self.ledger.forget(number)
            elif record["state"] == "running":
                self.continuations.append((number, self._next_rung(record)))
            else:
                self._retell(record)

    def _ask_again(self, number: int) -> None:
        """Give Optuna back a trial that its storage lost, a journal's last second for example; its record stays."""
        record = self.records.get(number)
        if record is None:
            return self.ledger.put_back(None, {})
        constraints = {name: record["cost"][name] / limit - 1 for name, limit in self.study.budget.items()}
        self.ledger.put_back(self._suggested(record), constraints)

    def _suggested(self, record: Record) -> FixedTrial:
        """What was suggested to a trial."""
        fixed = FixedTrial(self.space.parameters(record["choices"]))
        self.space.suggest(fixed)
        return fixed

    def _next_rung(self, record: Record) -> int:
        return len(self.study.stopping.rungs) - 1 if record.get("race") else len(record["rungs"])

    def _retell(self, record: Record) -> None:
        """Tell Optuna of a trial that was concluded on disk only; a twin takes its result when that is there."""
        twin_of: int = record["duplicate_of"] if "duplicate_of" in record else record["trial"]
        source = self.records.get(twin_of)
        if source is None:
            self.ledger.forget(record["trial"])
        elif source["state"] == "running":
            self.twins.setdefault(source["trial"], []).append(record["trial"])
        elif source is record:
            self.ledger.tell(record["trial"], record)
        else:
            self._conclude(record, "duplicate", f"same network as trial {source['trial']}", source)


def sampler(search: Search, study_seed: int, told: int) -> BaseSampler:
    """The search's Optuna sampler; a resumed study does not replay its first suggestions."""
    seed = trial_seed(study_seed, "sampler", told) % 2**32
    if search.sampler == "random":
        return NumberedRandomSampler(study_seed)
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


def _counts(record: Record) -> bool:
    """Whether a trial is one of those that were to be trained."""
    return record["state"] not in ("over_budget", "duplicate")


def over_budget(cost: dict[str, Any], budget: dict[str, float]) -> str:
    """Why a cost breaks the budget, or an empty string."""
    broken = [f"{name} {cost[name]:.3g} > {limit:.3g}" for name, limit in budget.items() if cost[name] > limit]
    return ", ".join(broken)
