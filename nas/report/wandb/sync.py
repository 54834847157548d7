"""A study on Weights & Biases: its offline runs uploaded, a saved workspace and a report that lay them out.

What the study itself did not come to log is first written from its records. Uploading is `wandb sync`; the workspace and the
report are built with the package `wandb-workspaces` and hold the front, decisions against objectives, samples, the
hypervolume, learning curves and, of an ablation, its effects. They name only what `nas.report.wandb.tracking` logs.
`specification` is what would be sent, as plain values, without a key or a connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from nas import numbers
from nas.analysis import ablation, findings, importance, naming
from nas.errors import InputError
from nas.report.wandb import files, tracking
from nas.runs.directory import RunDirectory
from nas.settings.tracking import Tracking

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

PATIENCE = 10  # seconds for the first answer of the server
MOST_AXES = 14  # of parallel coordinates
WIDTH = 24  # grid units of a report's row
TITLE = 128  # characters W&B keeps of a title
SAVED = "saved.json"  # in RUN/wandb: addresses of the workspace and the report, so that a second sync changes them


@dataclass(frozen=True)
class Target:
    """A run and where on W&B it goes."""

    run: findings.Run
    entity: str
    """User or team; empty is the account's default, which W&B knows."""
    project: str

    @property
    def group(self) -> str:
        return tracking.group(self.run.name, self.run.path)


@dataclass(frozen=True)
class Part:
    """A section of the workspace, and of the report under the same heading."""

    name: str
    job: str
    """Of which runs: the trials, or the study's own."""
    panels: tuple[Any, ...]
    height: int = 10
    """Grid units."""


def target(run_dir: Path, entity: str | None = None, project: str | None = None) -> Target:
    """What to send. InputError, one line: tracking was off, no trial has ended, or a name is none that W&B takes."""
    run = findings.Run.read(run_dir)
    asked = run.settings.get("tracking") or {}
    if asked.get("mode") == "off":
        raise InputError(f"{run_dir}: tracking.mode is off, so nothing was logged; expected a run with auto or offline")
    if not any(record["state"] in tracking.LOGGED for record in run.trials):
        raise InputError(f"{run_dir}: no trial has ended, so there is nothing to send")
    try:
        names = Tracking(entity=entity or asked.get("entity"), project=project or asked.get("project") or "nas")
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{run_dir}: tracking.{first['loc'][0]}: {first['msg']}") from None
    return Target(run, names.entity or "", names.project)


def offline_runs(run_dir: Path) -> list[Path]:
    """The offline runs of a run directory, oldest first; sent ones are marked by W&B with a file beside them."""
    return sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def missing(aim: Target) -> list[str]:
    """Names of the runs that the study did not come to log, its own last one among them."""
    found = files.runs(aim.run.path)
    trials = [tracking.trial_name(record) for record in tracking.unwritten(found, aim.run.trials)]
    summed = any(run.job == tracking.SUMMARY and run.ended for run in found)
    return trials if summed and not trials else [*trials, "cells" if aim.run.is_ablation else "front"]


def write_missing(aim: Target, say: Callable[[str], None]) -> None:
    """Write those runs from the records, offline. Left to the study where a process is running it."""
    import wandb

    names = missing(aim)
    if not names:
        return
    try:
        held = RunDirectory(aim.run.path).lock()
    except InputError:
        return say(f"not logged yet, which is left to the process that runs the study: {', '.join(names)}")
    with held:
        settings = Tracking(mode="offline", project=aim.project, entity=aim.entity or None)
        tracker = tracking.Tracker(settings, aim.run.path, aim.run.name)
        tracker.catch_up(aim.run.trials)
        tracker.finish(aim.run.table, aim.run.goals)
        wandb.teardown()  # its process has the last of it on disk when it ends
    say(f"written from the records: {', '.join(names)}")


# --- what is sent ----------------------------------------------------------------------------------------------------


def specification(aim: Target) -> dict[str, Any]:
    """The offline runs by folder, those that `sync` would write first by name, and the workspace and the report as W&B would
    get them."""
    with _package():
        # their models have no public way to be read before they are saved; wandb-workspaces is pinned
        workspace, report = (built._to_model() for built in (workspace_of(aim), report_of(aim)))
    return {
        "runs": [path.parent.name for path in offline_runs(aim.run.path)],
        "missing": missing(aim),
        "workspace": json.loads(workspace.model_dump_json(by_alias=True, exclude_none=True)),
        "report": json.loads(report.model_dump_json(by_alias=True, exclude_none=True)),
    }


def parts(aim: Target) -> list[Part]:
    """What a reader wants to see, in that order."""
    if aim.run.is_ablation:
        return [_effects(aim), *_samples(aim), _decisions(aim), *_curves(aim), _trials()]
    found = [_front(aim), *_samples(aim), _decisions(aim)]
    return [*found, *([_hypervolume()] if len(aim.run.best) else []), *_curves(aim), _trials()]


def workspace_of(aim: Target) -> Workspace:
    """The saved view: trials of this run directory alone, their verdicts and scores as the first columns."""
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws

    shown = [f"summary:{name}" for name in ("state", *aim.run.goals)]
    settings = ws.WorkspaceSettings(x_axis=tracking.STEP, max_runs=max(len(aim.run.table), 1))
    return ws.Workspace(
        entity=aim.entity,
        project=aim.project,
        name=aim.group,
        sections=[ws.Section(name=part.name, panels=list(part.panels), is_open=True) for part in parts(aim)],
        settings=settings,
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == aim.group),
            order=[expr.Ordering(expr.Metric("Name"))],
            pinned_columns=shown,
        ),
    )


def report_of(aim: Target) -> Report:
    """The report: the study's question, what came of it, and the parts with their runs."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P(text) for text in told(aim.run)]
    for part in parts(aim):
        panels = list(part.panels)
        for place, panel in enumerate(panels):
            half = len(panels) > 1
            panel.layout = wr.Layout(x=WIDTH // 2 * (place % 2), w=WIDTH // 2 if half else WIDTH, h=part.height)
        blocks += [wr.H2(part.name), wr.PanelGrid(runsets=[_runset(aim, part.job)], panels=panels)]
    title = f"{aim.run.name}: {aim.run.path.name}"[:TITLE]
    question = str(aim.run.settings.get("question") or "")
    return wr.Report(
        project=aim.project, entity=aim.entity, title=title, description=question, blocks=blocks, width="fluid"
    )


def told(run: findings.Run) -> list[str]:
    """What came of the study, in sentences, and what every score was measured with."""

    answer = [ablation.answer(run.effects)] if run.effects else []
    if not run.is_ablation:
        answer = [findings.answer(run.table, run.goals, run.budget)]
        answer += findings.why(run.table, run.goals) if len(run.best) else []
    return [text for text in [*answer, *_conditions(run)] if text]


def _conditions(run: findings.Run) -> list[str]:
    words = []
    for column, found in run.table.attrs["conditions"].items():
        told_ = ", ".join(
            f"{name.replace('_', ' ')} {naming.cell(value)}" for name, value in found.items() if value != ""
        )
        words.append(f"{column}: {told_}.")
    return words


def _runset(aim: Target, job: str) -> Any:
    """The runs of one kind. Without a project of its own it takes the report's, and nothing has to be asked of W&B."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    name = "trials" if job == tracking.TRIAL else "study"
    return wr.Runset(name=name, filters=expr.And(expr.Metric("Group") == aim.group, expr.Metric("JobType") == job))


def _front(aim: Target) -> Part:
    import wandb_workspaces.reports.v2 as wr

    panels: list[Any] = []
    for x, y in naming.pairs(aim.run.goals):
        axes = {"x": wr.SummaryMetric(x), "y": wr.SummaryMetric(y)}
        panels.append(wr.ScatterPlot(title=f"{naming.label(y)} by {naming.label(x)}", **axes))
    return Part("Front", tracking.TRIAL, tuple(panels))


def _effects(aim: Target) -> Part:
    """An ablation's tables; before its effects can be told, its cells alone."""
    names = [tracking.EFFECTS, "cells"] if aim.run.effects else ["cells"]
    return Part("Effects", tracking.SUMMARY, tuple(_table(name) for name in names))


def _samples(aim: Target) -> list[Part]:
    """The pictures of every trial by length of training, and the best beside one another as a table."""
    import wandb_workspaces.reports.v2 as wr

    def drawn(trial: Any, name: str) -> bool:
        return any((aim.run.path / "trials" / f"{int(trial):04d}").glob(name))

    found = []
    if any(drawn(trial, "samples.png") for trial in aim.run.best["trial"]):
        found.append(Part("Samples of the best", tracking.SUMMARY, (_table(tracking.SAMPLES),), height=14))
    if any(drawn(trial, "samples_*.png") for trial in aim.run.table["trial"]):
        browser = wr.MediaBrowser(media_keys=[tracking.SAMPLES], num_columns=3)
        found.append(Part("Samples of every trial", tracking.TRIAL, (browser,), height=14))
    return found


def _decisions(aim: Target) -> Part:
    """Parallel coordinates: the decisions in which trained trials differ, then the objectives, better at the top."""
    import wandb_workspaces.reports.v2 as wr

    run = aim.run
    names, _ = importance.parallel(run.table, run.goals)
    axes = [name.partition(".")[2] for name in names if name.startswith("arch.")]
    if run.is_ablation:
        axes = [str(name).partition(".")[2] for name in run.table if str(name).startswith("factor.")]
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(f"choices.{axis}"), axis) for axis in axes[:MOST_AXES]]
    for column, way in run.goals.items():
        metric = wr.SummaryMetric(column)
        columns.append(wr.ParallelCoordinatesPlotColumn(metric, naming.label(column), inverted=way == "minimise"))
    return Part("Decisions against objectives", tracking.TRIAL, (wr.ParallelCoordinatesPlot(columns=columns),), 12)


def _hypervolume() -> Part:
    import wandb_workspaces.reports.v2 as wr

    title = "Share of the box between best and worst that the front fills"
    plot = wr.LinePlot(title=title, x=tracking.SPENT, y=[tracking.HYPERVOLUME])
    return Part("Hypervolume", tracking.SUMMARY, (plot,))


def _curves(aim: Target) -> list[Part]:
    import wandb_workspaces.reports.v2 as wr

    columns = [column for column in dict.fromkeys([*aim.run.scores, "denoising_loss"]) if column in aim.run.curves]
    plots = [wr.LinePlot(title=naming.label(column), x=tracking.STEP, y=[column]) for column in columns]
    return [Part("Learning curves", tracking.TRIAL, tuple(plots))] if plots else []


def _trials() -> Part:
    return Part("Every trial", tracking.SUMMARY, (_table(tracking.TRIALS),), height=14)


def _table(name: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.WeavePanelSummaryTable(table_name=name)


# --- sending ---------------------------------------------------------------------------------------------------------


def sync(aim: Target, say: Callable[[str], None]) -> dict[str, str]:
    """Upload, then save the workspace and the report; returns their addresses. InputError for whatever goes wrong."""
    import wandb

    with _package():
        import wandb_workspaces.reports.v2 as wr
        from wandb_workspaces import workspaces as ws
    if not tracking.logged_in():
        raise InputError("no W&B key: run `wandb login`, or set WANDB_API_KEY")
    _reach(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url)
    write_missing(aim, say)
    upload(aim, say)
    known = _saved(aim)
    with _answered():
        api = wandb.Api(timeout=PATIENCE)
        aim = Target(aim.run, aim.entity or api.default_entity, aim.project)
        mark(aim, api)
        workspace, report = workspace_of(aim), report_of(aim)
        with contextlib.suppress(Exception):  # gone, or of another project: a new one is made
            old = ws.Workspace.from_url(known["workspace"])
            old.sections, old.runset_settings = workspace.sections, workspace.runset_settings
            workspace = old
        with contextlib.suppress(Exception):
            older = wr.Report.from_url(known["report"])
            older.blocks, older.description = report.blocks, report.description
            report = older
        found = {"workspace": str(workspace.save().url), "report": str(report.save().url)}
    (aim.run.path / "wandb" / SAVED).write_text(json.dumps(found), encoding="utf-8")
    return found


def upload(aim: Target, say: Callable[[str], None]) -> None:
    """Give W&B the offline runs it does not have yet. InputError when some did not arrive."""
    waiting = [path for path in offline_runs(aim.run.path) if not _sent(path)]
    if not waiting:
        return say("every offline run was uploaded before")
    where = ["--project", aim.project, *(["--entity", aim.entity] if aim.entity else [])]
    command = [sys.executable, "-m", "wandb", "sync", *where, *(str(path.parent) for path in waiting)]
    beside = {**os.environ, "WANDB_DIR": str(aim.run.path.resolve())}  # where it writes what it did
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=beside)
    left = [path for path in waiting if not _sent(path)]
    if done.returncode or left:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        last = f": {lines[-1].strip()}" if lines else ""
        raise InputError(f"wandb sync: {len(left)} of {len(waiting)} runs were not uploaded{last}"[:300])
    say(f"uploaded {numbers.number_of(len(waiting), 'run')}")


def mark(aim: Target, api: Any) -> None:
    """Write what is known only now into the trials' summaries: whether each is on the front, and which is the knee."""
    if aim.run.is_ablation:
        return
    members = set(aim.run.table.loc[aim.run.table["on_front"], "trial"].astype(int))
    filters = {"group": aim.group, "jobType": tracking.TRIAL, "summary_metrics.state": "complete"}
    for run in api.runs(f"{aim.entity}/{aim.project}", filters=filters):
        number = run.config.get("trial")
        run.summary.update({"on_front": number in members, "knee": number == aim.run.knee})


def _sent(path: Path) -> bool:
    return path.with_suffix(".wandb.synced").exists()


def _saved(aim: Target) -> dict[str, str]:
    path = aim.run.path / "wandb" / SAVED
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _reach(address: str) -> None:
    """Ask the server for anything: W&B itself would try again for minutes."""
    try:
        urllib.request.urlopen(address, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return  # an answer, whatever it is
    except (OSError, ValueError) as error:
        raise InputError(f"W&B is out of reach at {address}: {getattr(error, 'reason', error)}") from None


@contextlib.contextmanager
def _package() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise InputError("nas wandb needs the package wandb-workspaces: pip install 'nas[wandb]'") from None


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Whatever W&B answers with, a wrong key or a project that may not be written, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"W&B refused: {' '.join(str(error).split())[:200] or type(error).__name__}") from None
