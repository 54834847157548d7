"""Weights & Biases as a sink: every trial a run, and a last one with the front. The record is `record.json`, never W&B.

One background thread writes the runs, after the record is on disk; whatever goes wrong there is one warning line and
the study goes on. Nothing here asks for a login: without one, runs are written offline, for `wandb sync` later.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pandas as pd

    from nas.results import Objectives, Record

log = logging.getLogger(__name__)

Mode = Literal["offline", "online", "off"]
STEP = "images_seen"  # the x-axis of every metric, so that batch sizes compare


class Settings(BaseModel):
    """The `tracking` section of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: Literal["auto", "offline", "online", "off"] = "auto"
    """auto: online when logged in to W&B, else offline. A connection that fails turns the rest of the run offline."""
    project: str = "nas"
    """The W&B project that the runs go to."""
    entity: str | None = None
    """The W&B user or team; None is the account's default."""


class Tracker:
    """Logs the trials of one run directory. Calls return at once; `finish` waits for what is still being written."""

    def __init__(self, settings: Settings, run_dir: Path, study: str):
        self.settings, self.run_dir, self.study = settings, Path(run_dir), study
        self.mode: Mode = chosen_mode(settings.mode)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")

    def trial(self, record: Record, directory: Path) -> None:
        """Log a trial that has ended: choices and costs as config, metrics by images seen, its samples."""
        known = dict(record) | {"rungs": list(record.get("rungs") or [])}
        self._queue(lambda: self._log_trial(known, Path(directory)))

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
            write()
        except Exception as error:
            if self.mode == "online":
                self.mode = "offline"
                log.warning("W&B is out of reach, going on offline: %s", _one_line(error))
                self._guarded(write)
            else:
                log.warning("W&B logging failed, results are not affected: %s", _one_line(error))

    def _log_trial(self, record: Record, directory: Path) -> None:
        import wandb

        with self._start("trial", f"trial {record['trial']:04d}", _config(record), [record["state"]]) as run:
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            for rung in record["rungs"]:
                samples = directory / f"samples_{rung['rung']}.png"
                pictures = {"samples": wandb.Image(str(samples))} if samples.is_file() else {}
                run.log({STEP: rung[STEP], "rung": rung["rung"], **_numbers(rung), **pictures})
            run.summary.update({name: record.get(name) for name in ("trial", "state", "reason")})
            run.finish(exit_code=int(record["state"] == "failed"))

    def _log_summary(self, table: pd.DataFrame, goals: Objectives) -> None:
        import wandb

        from nas import naming, results

        kind, chosen = ("cells", table["state"] == "complete") if "cell" in table else ("front", table["on_front"])
        front = table[chosen].dropna(axis="columns", how="all")
        rows = front.drop(columns=["on_front", "reason"], errors="ignore").astype(object)
        cells = [[_plain(value) for value in row] for row in rows.itertuples(index=False)]
        states = {f"trials/{state}": int(count) for state, count in table["state"].value_counts().items()}
        with self._start("summary", kind, results.resolved(self.run_dir), []) as run:
            front_table = wandb.Table(columns=[str(column) for column in rows], data=cells)
            run.log({kind: front_table})
            for x, y in naming.pairs(goals):
                if x in rows and y in rows:
                    run.log({f"chart/{y} by {x}": wandb.plot.scatter(front_table, x, y, title=f"Front: {y} by {x}")})
            run.summary.update(states | ({"front_size": len(front)} if kind == "front" else {}))

    def _start(self, job: str, name: str, config: Mapping[str, Any], tags: list[str]) -> Any:
        import wandb

        # a study is many short runs: no system metrics, no console capture, no code or requirements in each
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True,
            x_save_requirements=False, init_timeout=20, login_timeout=1,
        )  # fmt: skip
        return wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            group=f"{self.study}/{self.run_dir.name}",
            job_type=job,
            name=name,
            config=dict(config),
            tags=tags,
            dir=str(self.run_dir),
            mode="online" if self.mode == "online" else "offline",
            reinit="create_new",
            settings=quiet,
        )


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
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _config(record: Record) -> dict[str, Any]:
    """What a trial was: nested by kind, so that W&B shows `choices.depth`, `cost.macs`, ..."""
    kept = (
        "trial",
        "key",
        "cell",
        "settings",
        "seed",
        "repeat",
        "init",
        "choices",
        "cost",
        "proxy_cost",
        "architecture",
    )
    return {name: record[name] for name in kept if record.get(name) is not None}


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
