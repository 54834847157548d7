"""nas from Python: what `import nas` gives. The command line calls the same functions.

Importing it is light: each function imports what it needs when it is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from nas.report.live.progress import Progress
    from nas.runs.records import Record, Rung
    from nas.settings.study import Study

    OnTrial = Callable[[Record], object]
    OnRung = Callable[[Record, Rung], object]

# In a notebook without ipywidgets tqdm, which libraries import, would say so below the first cell that needs one of them.
warnings.filterwarnings("ignore", message="IProgress not found")


class Run:
    """A run on disk: a run directory, or a study's folder in runs/ (its latest run). Everything is read when it is asked for,
    so a run that another process computes can be looked at too.
    """

    def __init__(self, path: str | Path):
        """InputError where there is no run."""
        from nas.runs import description

        self.path = description.find(Path(path))

    @property
    def settings(self) -> dict[str, Any]:
        """The study's settings as they were run, defaults filled in, with `provenance`."""
        from nas.runs import description

        return description.resolved(self.path)

    @property
    def objectives(self) -> dict[str, str]:
        """Column -> 'minimise' or 'maximise'."""
        from nas.analysis import results

        return dict(results.objectives(self.settings))

    @property
    def trials(self) -> list[Record]:
        """The records of all trials, by number: architecture, choices, costs, rungs with their scores."""
        from nas.analysis import results

        return results.records(self.path)

    def results(self) -> pd.DataFrame:
        """A row per trial, with the columns that `help(nas.load)` explains; also while the run goes on."""
        from nas.analysis import results

        return results.load(self.path)

    def curves(self) -> pd.DataFrame:
        """A row per trial and rung: images_seen, scores, seconds."""
        from nas.analysis import results

        return results.curves(self.trials)

    def front(self, columns: str | None = None) -> pd.DataFrame:
        """The rows of `results` that are on the front: the cheapest first, or the best.

        `columns`: the front of these in place of the study's objectives, "human_preference,macs" for one.
        """
        from nas.analysis import findings, fronts, picking

        table, goals = self.results(), self.objectives
        if columns is None:
            return findings.members(table, goals)
        chosen = picking.objectives(table, goals, columns)
        return findings.members(table.assign(on_front=fronts.front(table, chosen)), chosen)

    def effects(self, column: str | None = None) -> dict[str, pd.DataFrame]:
        """Of an ablation: its tables by kind, `cells`, `differences`, `main_effects`, `interactions`.

        `column`: what was measured; the first objective unless given. InputError before a cell was trained to the end, and
        for a column that is none of the objectives.
        """
        from nas import menu
        from nas.analysis import ablation
        from nas.errors import InputError

        found = ablation.of_run(self.path)
        column = column or next(iter(found))
        if column not in found:
            raise InputError(f"effects: {column}: no such column{menu.nearest(column, list(found))}")
        return found[column]

    def pick(self, how: str = "knee") -> int:
        """The number of the trial that `knee`, `knee:COLUMN,COLUMN`, `best:COLUMN` or `trial:NUMBER` names. InputError with the
        nearest otherwise."""
        from nas.analysis import picking

        return picking.pick(self.results(), self.objectives, how)

    @property
    def best(self) -> pd.Series:
        """The row of the front's knee. InputError before a trial was trained to the end."""
        table = self.results()
        return table[table["trial"] == self.pick()].iloc[0]

    @property
    def report(self) -> Path:
        """The page that shows the run, once it is over (or after `nas report`)."""
        return self.path / "report.html"

    def __repr__(self) -> str:
        from nas.analysis import results

        return f"Run({str(self.path)!r}): {results.states(self.results()) or 'no trial yet'}"

    def _repr_html_(self) -> str:
        """The run in a notebook: how its trials ended, and the front, or an ablation's cells."""
        from nas.report.live import notebook

        return notebook.of_run(self.path, self.results())


def run(
    study: str | Path | Study | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    root: str | Path = "runs",
    new: bool = False,
    workers: int | None = None,
    storage: str | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    progress: bool = True,
    on_trial: OnTrial | None = None,
    on_rung: OnRung | None = None,
) -> Run:
    """Run a study, or continue it where it was interrupted: `nas.run("studies/quickstart")`. Returns the finished run.

    study      a study file or its folder, a `nas.Study`, or a mapping with a study's keys
    overrides  values by key, {"search.trials": 40}, or texts as `nas run --set` takes them
    root       the folder that run directories go to, as root/NAME/TIME
    new        start afresh instead of continuing an unfinished run of the same settings
    workers    trials side by side, instead of one a core
    storage    URL of a database for the trials, or a journal file
    engine     what computes: `local` or `ray`; address: HOST:PORT of the Ray cluster
    progress   lines as from `nas run`; in a notebook a table that is renewed in place. False: nothing is printed
    on_trial   called with every trial's record when the trial has ended, by any `state`: complete, stopped, failed,
               over_budget, duplicate
    on_rung    called with a trial's record and its newest rung, {"images_seen": ..., "metrics": {...}, ...}

    Callbacks are called here, not in the workers, after the record was saved: what they raise stops the run and comes out, and
    nothing finished is lost. So it is with Ctrl-C, and with a notebook's stop button: `nas.resume`, or the same call again,
    goes on from each trial's last checkpoint. Trials train in processes of their own, which do not import the script that
    called: it needs no `if __name__ == "__main__"`.

    InputError, one line, for anything the study cannot be, before anything is written; and while another process runs it.
    """
    given = Path(study) if isinstance(study, str) else study
    with _coordinating():
        from nas.study import launch

        shown = _progress(progress, on_trial, on_rung)
        where = launch.Where(storage, engine, address)
        return Run(launch.run(given, _with(overrides, workers), Path(root), new, where, shown).path)


def resume(
    run: Run | str | Path,
    *,
    workers: int | None = None,
    storage: str | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    progress: bool = True,
    on_trial: OnTrial | None = None,
    on_rung: OnRung | None = None,
) -> Run:
    """Go on with a run that was interrupted, by the settings it was begun with: `nas.resume("runs/quickstart")`.

    Each trial goes on from its last checkpoint. Of a run that is over nothing is done. What else it takes is as in `nas.run`.

    InputError, one line, where there is no run, and while another process holds it.
    """
    return _go_on(run, {}, workers, (storage, engine, address), (progress, on_trial, on_rung))


def extend(
    run: Run | str | Path,
    *,
    trials: int | None = None,
    repeats: int | None = None,
    racing: int | None = None,
    workers: int | None = None,
    storage: str | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    progress: bool = True,
    on_trial: OnTrial | None = None,
    on_rung: OnRung | None = None,
) -> Run:
    """Ask a run for more, and go on with it: `nas.extend(run, trials=40)`. Numbers are totals: a second call adds nothing.

    trials   of a search, in all
    repeats  of every cell of an ablation, in all
    racing   repeats of a search's undecided front members, in all (`racing.trials` of the study)

    What else it takes is as in `nas.run`. InputError, one line, for less than the run was asked for already, and while
    another process holds the run.
    """
    from nas.errors import InputError

    asked = {"search": trials, "ablation": repeats, "racing": racing}
    more = {section: count for section, count in asked.items() if count is not None}
    if not more:
        raise InputError("extend: expected trials, repeats or racing, got none of them")
    return _go_on(run, more, workers, (storage, engine, address), (progress, on_trial, on_rung))


def export(
    run: Run | str | Path,
    *,
    pick: str | None = None,
    to: str | Path | None = None,
    formats: Sequence[str] = ("yaml", "safetensors"),
    precisions: Sequence[str] = ("fp32",),
    quantise: str | None = None,
    plan: str | Path | None = None,
    decoder: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Write one trial as files: its architecture at deploy scale, and its trained proxy. Returns the folder.

    run         a run, or a folder that `nas train` wrote, which gets its graphs in place
    pick        knee (the default), best:COLUMN or trial:NUMBER
    to          the folder to write; RUN/export/PICK unless given
    formats     any of yaml, safetensors, onnx, executorch, coreml
    precisions  fp32, fp16 or both, for formats that hold graphs
    quantise    int8: onnx and executorch also in 8 bits, with the loss of quality
    plan        a YAML file with the sampling plan to draw by, in place of the study's
    decoder     what `nas decoder` made, in place of the autoencoder's own

    InputError, one line, when the pick or a format is not there.
    """
    from nas.deploy import export as exporting
    from nas.errors import ArgumentError
    from nas.runs.directory import RunDirectory

    say: Callable[[str], None] = _say if progress else lambda line: None
    if quantise not in (None, "int8"):
        raise ArgumentError(f"quantise {quantise}: expected int8")
    path = Path(run) if isinstance(run, str | Path) else run.path
    if (path / "training.yaml").exists():
        for argument, given in (("pick", pick), ("to", to), ("plan", plan), ("decoder", decoder)):
            if given is not None:
                raise ArgumentError(
                    f"{argument} {given}: {path} was written by nas train, and gets its graphs in place; leave it out"
                )
        return exporting.add_formats(path, formats, precisions, quantise is not None, say)
    target, drawn, decoded = (None if given is None else Path(given) for given in (to, plan, decoder))
    found = RunDirectory(Run(path).path)
    return exporting.export(
        found, pick or "knee", target, formats, precisions, quantise is not None, say, drawn, decoded
    )


def _go_on(
    run: Run | str | Path,
    more: Mapping[str, int],
    workers: int | None,
    where: tuple[str | None, Literal["local", "ray"], str | None],
    shown: tuple[bool, OnTrial | None, OnRung | None],
) -> Run:
    path = Path(run) if isinstance(run, str | Path) else run.path
    with _coordinating():
        from nas.study import launch

        return Run(launch.resume(path, more, workers, launch.Where(*where), _progress(*shown)).path)


@contextmanager
def _coordinating() -> Iterator[None]:
    """This process coordinates a run: worker processes can start, and SIGTERM and Ctrl-C leave all that is finished on disk."""
    from nas import interruption
    from nas.workers import preload

    with interruption.coordinating(), preload.started():
        yield


def _progress(shown: bool, on_trial: OnTrial | None, on_rung: OnRung | None) -> Progress:
    from rich.console import Console

    from nas.report.live.progress import Callbacks, Progress

    callbacks = Callbacks(on_trial, on_rung)
    if not shown:
        return Progress(Console(quiet=True, force_terminal=False, force_jupyter=False), callbacks)
    if not Console().is_jupyter:
        return Progress(callbacks=callbacks)
    from nas.report.live.notebook import InNotebook

    return InNotebook(callbacks)


def _with(overrides: Mapping[str, Any] | Sequence[str], workers: int | None) -> Mapping[str, Any] | Sequence[str]:
    given = overrides or {}
    if workers is None:
        return given
    return {**given, "workers": workers} if isinstance(given, Mapping) else [*given, f"workers={workers}"]


def _say(line: str) -> None:
    """A line that is seen at once, in a file too."""
    print(line, flush=True)
