"""A study in its run directory, whatever its kind: ask what to train, train it rung by rung, tell Optuna, resume.

One process coordinates: it alone asks, decides and writes the ledger; an engine only computes jobs. A trial that was
interrupted goes on from its last checkpoint when the same command is run again.

What is trained, and whether it goes on, is the proposer's to say (nas.study.proposer).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas import failures
from nas.analysis import reference_lines
from nas.cost.budget import constraints
from nas.errors import InputError
from nas.interruption import Interrupted
from nas.numbers import number_of
from nas.report.live.progress import Progress
from nas.report.wandb.tracking import Tracker
from nas.runs import records
from nas.runs.directory import RunDirectory
from nas.runs.ledger import Ledger
from nas.runs.records import Damaged, Record
from nas.runs.storage.journal import is_database, open_storage
from nas.runs.storage.lease import Lease
from nas.settings import design
from nas.settings.study import Study
from nas.study.proposer import Look, Proposer
from nas.study.trials import Trials
from nas.study.workload import Variant
from nas.trial import line_scores, look
from nas.trial.clock import pace, timing
from nas.trial.clock.pace import Pace
from nas.trial.descent import Parent
from nas.trial.given import earlier
from nas.trial.rung import Job, prepare, prepare_base, run_rung
from nas.workers.local import Engine, Workers, default_count, idle

ATTEMPTS = 3  # times a rung is tried when its worker process dies
PREPARATION = (-1, 0)  # the tag of the job that makes the shared caches
LINES = (-2, 0)  # and of the one that scores the lines of reference
LOOK = -4  # first of the tags of looks at candidates
TIMING = -3  # first of the tags of jobs that are timed before the study starts
MakeEngine = Callable[[int, Study, Path], Engine]  # (processes, study, cache folder)


@contextmanager
def _made(what: str, change: str) -> Iterator[None]:
    """Inside, what a trial would fail by, running out of memory for example, ends the run: no trial can do without it."""
    try:
        yield
    except failures.Failed as error:
        raise InputError(f"{what}: {error}; {change}") from None


class Run:
    """One study in one run directory, from the first ask to the last tell."""

    def __init__(
        self,
        study: Study,
        proposer: Proposer,
        directory: RunDirectory,
        progress: Progress,
        url: str | None = None,
        engine: MakeEngine | None = None,
    ):
        """`url`: where Optuna's trials are kept, a journal in the run directory unless given. `engine`: what computes.

        Raises InputError while another process coordinates this run.
        """
        self.study, self.proposer, self.directory, self.progress = study, proposer, directory, progress
        self._make_engine = engine
        self._continuations: deque[tuple[int, int]] = deque()  # (trial, next rung)
        self._deaths: dict[tuple[int, int], int] = {}
        self._looks: list[Look] = []  # asked for so far, by the second number of their tags
        self.tracker = Tracker(study.tracking, directory.path, study.name)
        shared = is_database(url)
        run = f"{study.name}/{directory.path.name}" if shared else study.name
        storage = open_storage(url, directory.path / "journal.log", run)
        self.ledger = Ledger(study, directory, storage, run, mirrored=shared)
        known = len(self.ledger.records) + len(self.ledger.damaged)
        self._earlier = earlier.kept(study, directory)
        before = [trial for run in self._earlier for trial in run["trials"]]
        self.ledger.open(proposer.sampler(known), proposer.suggested, before)
        self._lease = Lease(self.ledger.stored)
        self._lease.take(progress.say, contested=shared)
        self._trials = Trials(self.ledger, directory, progress, self.tracker, self._lease.renew)
        proposer.open(self._trials)

    @property
    def records(self) -> dict[int, Record]:
        """What is known of every trial, by number."""
        return self.ledger.records

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
                self._continuations.append(self._next(record))
            elif number in told_not:
                self._trials.retell(record)
        for number in told_not.difference(self.records):
            self.ledger.forget(number)

    def _begin_again(self, number: int, error: Damaged) -> None:
        """Put a damaged record aside, with all that its trial left, and train the trial again."""
        where = records.path_of(self.directory.path, number)
        aside = records.put_aside(self.directory.path, number)
        asked = self.ledger.asked(number)
        try:
            begun = self.proposer.begin(asked) if asked is not None else None
        except (KeyError, ValueError):
            begun = None
        again = f"trial {number} begins again" if begun else "Optuna does not know that trial, another takes its place"
        self.progress.say(f"{where}: {error}; its folder is now {aside.name}, and {again}")

    # -- the loop ------------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Run the study to its end. An interrupt leaves everything on disk; the same command goes on from there."""
        self.resume()
        self.tracker.catch_up(self.records.values())
        count = default_count() if self.study.workers is None else self.study.workers
        workers = (self._make_engine or Workers)(count, self.study, self.directory.cache)
        if self._make_engine is None and (said := idle(count, self.study.worker_threads)):
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
        memory = "or give a worker more memory (workers, worker_memory)"
        with _made("the preparation", f"change dataset, autoencoder, conditioning, prior or metrics, {memory}"):
            conditions, captions = self._wait_for(workers, prepare)
        earlier.check_measured(self.study, conditions, self._earlier)
        for told in self._earlier:
            self.progress.say(f"knows {number_of(len(told['trials']), 'finished trial')} of {told['run']}")
        self.directory.write_json("conditions.json", conditions)
        self.directory.write_json("captions.json", captions)
        if self.study.base is not None and not self._has_base():
            self.progress.say(
                "training the base model, and drawing pairs if trials learn from them (cached after the first time)"
            )
            with _made("base", "change base.training, such as its batch or learning_rate, or base.sampling"):
                made = self._wait_for(workers, prepare_base, self.directory.path)
            self.directory.write_json("base.json", made)

    def _has_base(self) -> bool:
        """Whether the base model's record is there; one that is damaged is made again."""
        try:
            return reference_lines.base_scores(self.directory.path) is not None
        except InputError:
            return False

    def _estimate(self, workers: Engine, count: int) -> None:
        """Say how long the study will take, from what is timed in all workers at once."""
        workload = self.proposer.workload(count)
        paces = self._timed(workers, workload.typical)
        known = [each for each in paces if each is not None]
        if not known:
            return
        lines = not (self.directory.path / reference_lines.FILE).exists()
        lines_s = known[0].lines_s(self.study, self.proposer.reference().trained) if lines else 0.0
        seconds = workload.seconds(self.study, paces)
        looks_s = workload.looks * known[0].look_s(self.study) if workload.looks else 0.0
        at_once = count if workload.side_by_side else 1
        looks_s *= at_once / count
        self.progress.expect(pace.estimate(known, seconds, lines_s, at_once, pace.stopped(self.study), looks_s))

    def _timed(self, workers: Engine, variants: Sequence[Variant]) -> list[Pace | None]:
        """The paces of some networks; None for one that could not be timed."""
        waiting = deque(enumerate(variants))
        found: list[Pace | None] = [None] * len(variants)
        while waiting or workers.busy:
            while waiting and workers.free:
                place, one = waiting.popleft()
                workers.submit((TIMING, place), timing.clock, one.settings, one.architecture.to_dict())
            for (_, place), future in workers.finished(1.0):
                error = future.exception()
                if error is None:
                    found[place] = future.result()
                elif isinstance(known := failures.sorted_out(error), Interrupted | failures.DiskTrouble):
                    raise known
            self._lease.renew()
            self.progress.refresh(0)
        return found

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
                asking = self._occupy(workers)
            if not (workers.busy or self._continuations or asking):
                return
            for tag, future in workers.finished(1.0):
                if tag == LINES:
                    self._take_lines(workers, future)
                elif tag[0] == LOOK:
                    self._take_look(workers, tag, future)
                else:
                    self._take(*tag, future)
                asking = True  # what was learnt may ask for a repeat
            self._lease.renew()
            self.progress.refresh(len(workers.busy))

    def _occupy(self, workers: Engine) -> bool:
        """Give a free worker what is to be done next; whether there was anything."""
        if self._continuations:
            self._train(workers, self._continuations.popleft())
            return True
        asked = self.proposer.ask()
        if isinstance(asked, Look):
            self._look(workers, asked)
        elif asked is not None:
            self._train(workers, self._next(asked))
        return asked is not None

    def _train(self, workers: Engine, job: tuple[int, int]) -> None:
        workers.submit(job, run_rung, self._job(*job))

    def _next(self, record: Record) -> tuple[int, int]:
        """A trial and its next rung; a repeat after the search has no earlier ones."""
        last = len(self.study.stopping.rungs) - 1
        return record["trial"], last if record.get("race") else len(record["rungs"])

    def _job(self, number: int, rung: int) -> Job:
        """What a worker is given to train a trial up to a rung."""
        record, like = self.records[number], self.proposer.like
        settings = record.get("settings", {})
        study = design.changed(self.study, settings)
        return Job(
            trial=number,
            architecture=record["architecture"],
            seed=record["seed"],
            rung=rung,
            images_seen=round(study.stopping.rungs[rung] * study.training.images_seen),
            folder=self.directory.trial(number),
            settings=settings,
            like=None if like is None else like.to_dict(),
            parent=self._parent(record.get("parent")),
        )

    def _parent(self, number: int | None) -> Parent | None:
        """A trial as others start from it."""
        if number is None:
            return None
        return Parent(self.records[number]["architecture"], self.directory.trial(number) / "weights.safetensors")

    def _score_lines(self, workers: Engine) -> None:
        reference = self.proposer.reference()
        settings, config = reference.variant.settings, reference.variant.architecture
        workers.submit(LINES, line_scores.measure, self.directory.path, settings, config.to_dict(), reference.trained)

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

    def _look(self, workers: Engine, asked: Look) -> None:
        tag = (LOOK, len(self._looks))
        self._looks.append(asked)
        self._submit_look(workers, tag)

    def _submit_look(self, workers: Engine, tag: tuple[int, int]) -> None:
        asked = self._looks[tag[1]]
        workers.submit(tag, look.look, asked.architectures, asked.images, self._parent(asked.parent))

    def _take_look(self, workers: Engine, tag: tuple[int, int], future: Future[Any]) -> None:
        """Hand over what looks gave. Those that cannot be made have failed, one by one: no trial is lost with them."""
        asked, error = self._looks[tag[1]], future.exception()
        if error is None:
            return asked.take(future.result())
        known = failures.sorted_out(error)
        if isinstance(known, failures.DiskTrouble):
            raise known
        self._deaths[tag] = self._deaths.get(tag, 0) + isinstance(known, failures.Lost)
        if isinstance(known, Interrupted | failures.Lost) and self._deaths[tag] < ATTEMPTS:
            return self._submit_look(workers, tag)
        asked.take([{"metrics": {}, "failed": str(known), "seconds": 0.0}] * len(asked.architectures))

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
            return self._trials.conclude(record, "failed", str(known))
        result = future.result()
        record["proxy"], record["proxy_cost"] = result["proxy"], result["proxy_cost"]
        record["rungs"].append(result["rung"])
        why_stopped = self.proposer.scored(record)
        if rung == len(self.study.stopping.rungs) - 1:
            self._trials.conclude(record, "complete", "", scored=True)
        elif why_stopped:
            self._trials.conclude(record, "stopped", why_stopped, scored=True)
        else:
            self._continuations.append((number, rung + 1))
            self._trials.scored(record)

    def _retry(self, record: Record, rung: int, death: failures.Lost) -> None:
        """A worker process died under a trial: again from the last checkpoint, and at last give it up."""
        job = (record["trial"], rung)
        self._deaths[job] = self._deaths.get(job, 0) + 1
        if self._deaths[job] < ATTEMPTS:
            self._continuations.append(job)
        else:
            self._trials.conclude(record, "failed", f"its worker process died {ATTEMPTS} times; the last time: {death}")

    def _ask_again(self, number: int) -> None:
        """Give Optuna back a trial that its storage lost, a journal's last second for example; its record stays."""
        record = self.records.get(number)
        if record is None:
            return self.ledger.put_back(None, {})
        self.ledger.put_back(self.proposer.suggested(record), constraints(record["cost"], self.study.budget))
