"""Weights & Biases as a sink: every trial a run, and a last one with the study. The record is `record.json`, never W&B.

A trial's config is what it was (choices, costs, architecture, settings and system, every leaf a scalar, so that each is a
column), its summary the trial's row of results.csv under the same names, its history metrics by images seen and its
samples. The study's run holds the tables `trials`, `front` or `cells`, `samples` and, of an ablation, `effects`; charts of
the front; and the hypervolume over the images trained. `nas.report.wandb.sync` lays out what is named here.

One background thread writes the runs, after the record is on disk; whatever goes wrong there is one warning line and
the study goes on. What a process was killed before it wrote is written from the records when the run goes on, and by
`nas wandb sync`. Nothing here asks for a login: without one, runs are written offline, for `wandb sync` later.
"""

from __future__ import annotations

import copy
import logging
import netrc
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from nas.analysis import ablation, findings, fronts, naming, results
from nas.disk import files as disk
from nas.errors import InputError
from nas.report.wandb import files
from nas.runs import description
from nas.runs.pictures import is_png
from nas.settings.tracking import LONGEST, Tracking

if TYPE_CHECKING:
    import pandas as pd

    from nas.analysis.fronts import Objectives

log = logging.getLogger(__name__)

Record = Mapping[str, Any]  # of a trial (nas.runs.records), of which any part may be asked for
Mode = Literal["offline", "online", "off"]
STEP = "images_seen"  # the x-axis of every metric of a trial, so that batch sizes compare
SPENT = "images_trained"  # the x-axis of the study's own metrics, over all of its trials
HYPERVOLUME = "hypervolume_share"
TRIAL, SUMMARY = "trial", "summary"  # job types
SAMPLES, TRIALS, EFFECTS = "samples", "trials", "effects"  # a picture or a table
LOGGED = ("complete", "stopped", "failed")  # states of trials that have a run
MOST_SAMPLES = 24  # rows of the table of samples
TOKEN = "token"  # in RUN/wandb: what the ids of the run directory's runs on W&B are made of
STAGING = "WANDB_DATA_DIR"  # W&B reads it whenever it puts a file away
HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # W&B's cloud, since wandb 0.30 and before: one place, two names
NOT_A_TRIALS = (
    "ablation",
    "provenance",
    "question",
    "tracking",
    "workers",
    "worker_memory",
)  # settings of the study alone


class Tracker:
    """Logs the trials of one run directory. Calls return at once; `finish` waits for what is still being written."""

    def __init__(self, settings: Tracking, run_dir: Path, study: str):
        self.settings, self.run_dir, self.study = settings, Path(run_dir), study
        self.mode: Mode = chosen_mode(settings.mode)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._unopened: set[str] = set()  # names of runs that W&B could not open, whose ids its process keeps

    def trial(self, record: Record, directory: Path) -> None:
        """Log a trial that has ended: choices and costs as config, metrics by images seen, its samples."""
        known = dict(record) | {"rungs": list(record.get("rungs") or [])}
        self._queue(partial(self._log_trial, known, Path(directory)))

    def catch_up(self, records: Iterable[Record]) -> None:
        """Log the trials that have ended, but have no whole run on disk: the process that concluded them was killed first.

        No other process may be logging into the run directory.
        """
        ended: list[Mapping[str, Any]] = [dict(record) for record in records if record["state"] in LOGGED]
        if ended:
            self._queue(partial(self._catch_up, ended))

    def _catch_up(self, records: Sequence[Record]) -> None:
        found = files.runs(self.run_dir)
        for run in found:
            if run.offline and not run.ended:
                shutil.rmtree(run.folder, ignore_errors=True)  # written again; W&B's own process may not have ended yet
        missing = unwritten(found, records)
        if missing:
            log.warning("W&B lacks %s, which ended before: written now from the records", _listed(missing))
        for record in missing:
            directory = self.run_dir / "trials" / f"{record['trial']:04d}"
            self._guarded(partial(self._log_trial, record, directory))

    def finish(self, table: pd.DataFrame, goals: Objectives) -> None:
        """Log the front as a table and a chart, and wait until everything is written."""
        self._queue(lambda: self._log_summary(table, goals))
        self._thread.shutdown(wait=True)

    def _queue(self, write: Callable[[], None]) -> None:
        if self.mode != "off":
            self._thread.submit(self._guarded, write)

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write; once more offline if a connection fails; never raise."""
        try:
            with _staged(self.run_dir):
                write()
        except Exception as error:
            if self.mode == "online":
                self.mode = "offline"
                log.warning("W&B is out of reach, going on offline: %s", _one_line(error))
                self._guarded(write)
            else:
                log.warning("W&B logging failed, results are not affected: %s", _one_line(error))

    @cached_property
    def resolved(self) -> dict[str, Any]:

        return description.resolved(self.run_dir)

    def _log_trial(self, record: Record, directory: Path) -> None:
        import wandb

        config = _config(record, self.resolved)
        with self._start(TRIAL, trial_name(record), config, [record["state"]]) as run:
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            for rung in record.get("rungs") or []:
                samples = directory / f"samples_{rung['rung']}.png"
                pictures = {SAMPLES: wandb.Image(str(samples))} if is_png(samples) else {}
                run.log({STEP: rung[STEP], "rung": rung["rung"], **_numbers(rung), **pictures})
            run.summary.update(_row(record, self.run_dir, self.resolved))
            run.finish(exit_code=int(record["state"] == "failed"))

    def _log_summary(self, table: pd.DataFrame, goals: Objectives) -> None:

        kind, chosen = ("cells", table["state"] == "complete") if "cell" in table else ("front", table["on_front"])
        members = table[chosen].dropna(axis="columns", how="all").drop(columns=["on_front", "reason"], errors="ignore")
        config = {**self.resolved, "conditions": table.attrs.get("conditions", {})}
        with self._start(SUMMARY, kind, config, []) as run:
            run.define_metric(SPENT)
            run.define_metric(HYPERVOLUME, step_metric=SPENT)
            run.log({TRIALS: _table(table), kind: _table(members)} | self._samples(table[chosen], goals))
            run.log(_charts(members, goals))
            if kind == "cells":
                run.log(self._effects())
            elif len(members):
                for row in findings.hypervolume(table, goals).to_dict("records"):
                    run.log({SPENT: int(row[SPENT]), HYPERVOLUME: float(row["share"])})
                run.summary["knee"] = fronts.knee(table, goals)
            states = {f"trials/{state}": int(count) for state, count in table["state"].value_counts().items()}
            run.summary.update(states | ({"front_size": len(members)} if kind == "front" else {}))

    def _samples(self, best: pd.DataFrame, goals: Objectives) -> dict[str, Any]:
        """What the best drew, one row each; the same captions and noise in every picture. {} without pictures."""
        import wandb

        once = best.drop_duplicates("cell") if "cell" in best else best
        columns = [name for name in ("trial", "cell", *goals) if name in once]
        rows = []
        for row in once[columns].head(MOST_SAMPLES).to_dict("records"):
            path = self.run_dir / "trials" / f"{row['trial']:04d}" / "samples.png"
            if is_png(path):
                rows.append([*(_plain(row[name]) for name in columns), wandb.Image(str(path))])
        return {SAMPLES: wandb.Table(columns=[*columns, "drawn"], data=rows)} if rows else {}

    def _effects(self) -> dict[str, Any]:
        """The tables of an ablation as one, as in effects.csv; {} while there is nothing to compare."""

        try:
            return {EFFECTS: _table(ablation.together(ablation.of_run(self.run_dir)))}
        except InputError:
            return {}

    def _start(self, job: str, name: str, config: Mapping[str, Any], tags: list[str]) -> Any:
        """A run; what W&B knows of it from before is replaced."""
        import wandb

        # a study is many short runs: no system metrics, no console capture, no code or requirements in each
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True,
            x_save_requirements=False, init_timeout=20, login_timeout=1,
        )  # fmt: skip
        try:
            return wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                id=self._id(name),
                group=group(self.study, self.run_dir),
                job_type=job,
                name=name,
                config=dict(config),
                tags=tags,
                dir=str(self.run_dir),
                mode="online" if self.mode == "online" else "offline",
                reinit="create_new",
                settings=quiet,
            )
        except Exception as error:
            known = name in self._unopened
            self._unopened.add(name)
            if not known and "in use" in str(error):  # a process that was killed shared this one's W&B
                return self._start(job, name, config, tags)
            raise

    def _id(self, name: str) -> str:
        """W&B's id of the run of this name: the same whenever it is written, so that W&B has it once.

        What a process that was killed had begun online cannot be asked for: the name is often still in W&B's memory, not on disk.
        """
        path = self.run_dir / "wandb" / TOKEN
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            disk.write_text(path, secrets.token_hex(8))
        token = path.read_text(encoding="utf-8") + ("-" if name in self._unopened else "")
        return sha256(f"{token} {name}".encode()).hexdigest()[:16]


@contextmanager
def _staged(run_dir: Path) -> Iterator[None]:
    """Files of tables wait in the run directory for `wandb sync`: W&B's own place is the home directory, of this machine."""
    if os.environ.get(STAGING):
        yield
        return
    os.environ[STAGING] = str((run_dir / "wandb" / "staged").resolve())
    try:
        yield
    finally:
        del os.environ[STAGING]


def chosen_mode(asked: str) -> Mode:
    """What `tracking.mode` comes to: for auto `WANDB_MODE` decides, then a login; nothing is online without a login."""
    if asked == "auto":
        asked = {"disabled": "off", "offline": "offline", "dryrun": "offline"}.get(os.environ.get("WANDB_MODE", ""), "")
        return "off" if asked == "off" else "online" if not asked and logged_in() else "offline"
    if asked == "online" and not logged_in():
        log.warning("tracking.mode is online, but there is no W&B login (run `wandb login`); going on offline")
        return "offline"
    return "online" if asked == "online" else "off" if asked == "off" else "offline"


def logged_in() -> bool:
    """Whether this user has a W&B key, found where W&B looks for it (environment, netrc) without calling anyone."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = os.environ.get("WANDB_BASE_URL")
    hosts = [urlparse(address).hostname or ""] if address else HOSTS
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        known = netrc.netrc(str(path))
        return any(known.authenticators(host) is not None for host in hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def group(study: str, run_dir: Path) -> str:
    """The W&B group that holds all runs of one run directory: what its filters cannot say, quotes and signs, is a dash."""
    here = f"/{Path(run_dir).name}"
    return re.sub(r"[^\w ./,()@-]", "-", f"{study[: LONGEST - len(here)]}{here}")


def trial_name(record: Mapping[str, Any]) -> str:
    """The name of a trial's run."""
    return f"trial {record['trial']:04d}"


def unwritten(found: Iterable[files.Written], records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials that have ended, but are not among the runs that W&B has whole on disk."""
    whole = {run.name for run in found if run.job == TRIAL and run.ended}
    return [record for record in records if record["state"] in LOGGED and trial_name(record) not in whole]


def _listed(records: Iterable[Mapping[str, Any]]) -> str:
    return "trials " + ", ".join(str(record["trial"]) for record in records)


def leaves(value: Any) -> Any:
    """A nested value whose lists are mappings by index: W&B makes a column of every scalar in it, and none of a list."""
    if isinstance(value, Mapping):
        return {str(key): leaves(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return {str(index): leaves(inner) for index, inner in enumerate(value)}
    return value


def _config(record: Record, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial was: nested by kind, so that W&B shows `choices.depth`, `cost.macs`, `settings.training.batch`, ..."""
    whole = ("trial", "key", "cell", "seed", "repeat", "init", "choices", "cost", "proxy_cost", "architecture")
    settings = {name: value for name, value in resolved.items() if name not in NOT_A_TRIALS}
    kept = {name: record[name] for name in whole if record.get(name) is not None}
    own = with_settings(settings, record.get("settings") or {})
    return dict(leaves({**kept, "settings": own, "system": resolved.get("provenance") or {}}))


def with_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of a cell in their places (`design.changed`, on plain values): its keys are dotted paths."""
    changed = copy.deepcopy(dict(settings))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = changed
        for name in parents:
            if not isinstance(place.get(name), dict):  # a section that was not given, such as training.lora
                place[name] = {}
            place = place[name]
        place[last] = value
    return changed


def _row(record: Record, run_dir: Path, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's row of results.csv, what it does not have left out: numbers, costs, times, and the verdict on it."""

    table = results.frame([record], description.conditions(run_dir), results.objectives(resolved))
    row = table.drop(columns="on_front").iloc[0]  # who is on the front is known at the end of the study
    known = {str(name): _plain(value) for name, value in row.items() if not str(name).startswith(("arch.", "factor."))}
    return {name: value for name, value in known.items() if value is not None}


def _table(frame: pd.DataFrame) -> Any:
    import wandb

    data = [[_plain(value) for value in row] for row in frame.astype(object).itertuples(index=False)]
    return wandb.Table(columns=[str(column) for column in frame], data=data)


def _charts(members: pd.DataFrame, goals: Objectives) -> dict[str, Any]:
    """The members in every pair of objectives."""
    import wandb

    return {
        f"chart/{y} by {x}": wandb.plot.scatter(_table(members), x, y, title=f"Front: {y} by {x}")
        for x, y in naming.pairs(goals)
        if x in members and y in members
    }


def _numbers(rung: Mapping[str, Any]) -> dict[str, float]:
    speed = {name: rung[name] for name in ("images_per_s", "peak_memory_mib") if rung.get(name) is not None}
    training = {f"training/{name}": value for name, value in (rung.get("training") or {}).items()}
    return dict(rung.get("metrics") or {}) | training | dict(rung.get("timings") or {}) | speed


def _plain(value: Any) -> Any:
    """A cell as W&B takes it: text, number, bool or None."""
    import pandas as pd

    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
