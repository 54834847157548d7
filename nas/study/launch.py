"""From a study file to a finished run: check everything, run, summarise."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from nas.analysis import ablation, certainty, findings, fronts, reference_lines, results
from nas.documents import yaml_text
from nas.documents.document import Document
from nas.errors import InputError
from nas.numbers import amount
from nas.report import page
from nas.report.progress import Progress
from nas.runs import description, records
from nas.runs.directory import RunDirectory, open_run
from nas.runs.journal import is_database
from nas.runs.ledger import bring_back
from nas.settings import plausible, study_file
from nas.settings.study import Study
from nas.space.search_space import SearchSpace
from nas.study.candidates import Candidates
from nas.study.cells import Cells
from nas.study.evolution import Evolution
from nas.study.pool import Pool
from nas.study.proposer import Proposer
from nas.study.run import MakeEngine, Run
from nas.trial import moves
from nas.trial.check import check, check_pool
from nas.weights import worlds
from nas.workers import ray_engine


@dataclass(frozen=True)
class Where:
    """Where a study is kept and computed."""

    storage: str | None = None
    """The URL of Optuna's trials; a journal in the run directory unless given (nas.runs.journal)."""
    engine: Literal["local", "ray"] = "local"
    """What computes."""
    address: str | None = None
    """Of the Ray cluster."""

    def engine_maker(self, console: Console) -> MakeEngine | None:
        """What makes the engine, None for the local one. Raises InputError for an address without a cluster."""
        if self.engine == "ray":
            console.print(ray_engine.connect(self.address))
            return ray_engine.RayEngine
        if self.address is not None:
            raise InputError(f"--address {self.address}: goes with --engine ray")
        return None


def show(path: Path, overrides: Sequence[str]) -> None:
    """Check the study at `path` and print its resolved settings; write nothing."""
    with study_file.opened(path, overrides) as (study, document):
        _checked(study, document)
    if foreign := worlds.told(study.resolved()):
        _console().print(f"# {foreign}", markup=False)
    _console().print(yaml_text.written(study.resolved()), markup=False)


def run(path: Path, overrides: Sequence[str], root: Path, new: bool = False, where: Where = Where()) -> None:  # noqa: B008
    """Run or continue the study at `path`, or with `new` start it afresh. Nothing is written before every check has passed."""
    with study_file.opened(path, overrides) as (study, document):
        space = _checked(study, document)
        proposer = proposer_of(study, space)  # before there is a new run, which is no start of itself
        console = _console()
        make = where.engine_maker(console)
        if where.storage is not None and is_database(where.storage):
            bring_back(study.name, where.storage, root)
        directory, continued = open_run(study, root, new, partial(console.print, markup=False))
        with _nothing_left(directory, continued):
            lock = directory.lock()
            console.print(f"{'continuing' if continued else 'running'} study {study.name!r} in {directory.path}")
            if foreign := worlds.told(study.resolved()):
                console.print(foreign, markup=False)
            execution = Run(study, proposer, directory, Progress(console), where.storage, make)
            execution.execute()
        frame = summarise(directory)
        execution.tracker.finish(frame, study.objectives)
        lock.close()


@contextmanager
def _nothing_left(directory: RunDirectory, continued: bool) -> Iterator[None]:
    """Inside, a new run that is refused before its first trial, by its data for example, takes its folders with it."""
    try:
        yield
    except InputError:
        if not continued and not (directory.path / "trials").exists():
            shutil.rmtree(directory.path)
            for folder in (directory.path.parent, directory.cache, directory.root):
                with suppress(OSError):  # it holds something else
                    folder.rmdir()
        raise


def proposer_of(study: Study, space: SearchSpace | None) -> Proposer:
    """What decides what the study trains."""
    if study.ablation is not None:
        return Cells(study)
    assert space is not None, "a search without a space is refused when its file is read"
    assert study.search is not None
    if study.search.sampler == "evolution":
        return Evolution(study, space)
    return (Pool if study.search.sampler == "pool" else Candidates)(study, space)


def _checked(study: Study, document: Document) -> SearchSpace | None:
    """The study's space, once everything is checked and what is unlikely told on stderr."""
    space = SearchSpace.load(study.space) if study.space is not None else None
    check(study, space)
    check_pool(study)
    moves.check(study, space)
    for line in plausible.unlikely(study):
        print(f"nas: warning: {document.placed(line)}", file=sys.stderr)
    return space


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def summarise(directory: RunDirectory) -> Any:
    """Write results.csv, best.yaml, front/ and report.html from the records, and print the front.

    Of an ablation the tables of effects are written and printed instead.
    """
    resolved = description.resolved(directory.path)
    objectives = results.objectives(resolved)
    frame = results.load(directory.path)
    if resolved.get("ablation"):
        _print_effects(directory, frame)
    else:
        lines = reference_lines.read(directory.path)
        _write_winner(directory, frame, objectives)
        _print_front(frame, objectives, lines)
        if nothing := findings.nothing_learnt(frame, objectives, lines):
            print(nothing)
        _print_certainty(directory, resolved, frame, objectives)
    print(f"report: {page.write(directory.path)}")
    return frame


def report_runs(paths: Sequence[Path], together: Path, suffixes: Sequence[str]) -> None:
    """Summarise runs again; several also go into one page at `together`; figures in each of the suffixes' formats."""
    runs = [find_run(path) for path in paths]
    for directory in runs:
        if not any(record["state"] != "running" for record in directory.records().values()):
            raise InputError(f"{directory.path}: no trial has ended yet, so there is nothing to report")
    for directory in runs:
        summarise(directory)
        for suffix in suffixes:
            drawn = page.write_figures(directory.path, suffix)
            print(f"{len(drawn)} figures: {drawn[0].parent}/*.{suffix}")
    if len(runs) > 1:
        print(f"together: {page.write_together([directory.path for directory in runs], together)}")


def find_run(path: Path) -> RunDirectory:
    """The run at `path`: a run directory, or a study's folder below runs/ (its latest run)."""
    return RunDirectory(description.find(path))


def _write_winner(directory: RunDirectory, frame: Any, objectives: fronts.Objectives) -> None:
    """best.yaml: the front's knee, its architecture, cost and scores; front/: the samples and weights of its members."""
    front = frame[frame.on_front]
    if front.empty:
        return
    record = directory.records()[fronts.knee(frame, objectives)]
    directory.write_yaml(
        "best.yaml",
        {
            "trial": record["trial"],
            "key": record["key"],
            "architecture": record["architecture"],
            "cost": record["cost"],
            "choices": record["choices"],
            "seed": record["seed"],
            "scores": record["rungs"][-1]["metrics"],
            "picked": "knee of the front",
        },
    )
    _write_front(directory.path, [int(number) for number in front.trial])


def _write_front(run_dir: Path, members: Sequence[int]) -> None:
    """front/: links to the folders of the front's members, or copies of them where no links can be made.

    Where a run was copied without links (`cp -rL`, `scp -r`, an object store, git without links) stand copies or files in
    their place; they go when their trial is in trials/. Anything else stays.
    """
    folder, trials = run_dir / "front", run_dir / "trials"
    folder.mkdir(exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_symlink() or (entry.is_file() and (trials / entry.name).is_dir()):
            entry.unlink()
        elif (trials / entry.name).is_dir():
            shutil.rmtree(entry)
    for name in map(records.folder, members):
        try:
            (folder / name).symlink_to(Path("..") / "trials" / name)
        except OSError:  # a file system without links
            shutil.copytree(trials / name, folder / name)


def _print_effects(directory: RunDirectory, frame: Any) -> None:
    """Write and print the tables of an ablation; a line says why when there is nothing to compare."""
    _print_states(frame)
    try:
        found = ablation.write(directory.path)
    except InputError as error:
        return print(error)
    for column, kinds in found.items():
        for kind, table in kinds.items():
            print(f"\n{column}: {kind.replace('_', ' ')}\n{ablation.render(table, 'plain')}")


def _print_states(frame: Any) -> None:
    states = frame.state.value_counts()
    print(", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.items()))


def _print_certainty(
    directory: RunDirectory, resolved: dict[str, Any], frame: Any, objectives: fronts.Objectives
) -> None:
    """A line on who is on the front for sure, if anything was repeated, and a warning where the signal is weak."""
    found = certainty.of_front(frame, objectives, certainty.confidence(resolved))
    if found.degrees:
        by_place = {
            place: ", ".join(str(one.trial) for one in found.contenders if one.place == place) or "none"
            for place in ("sure", "perhaps")
        }
        print(f"on the front for sure: {by_place['sure']}; perhaps: {by_place['perhaps']}")
    if warning := certainty.warning(resolved, directory.cache):
        print(warning)


def _print_front(frame: Any, objectives: fronts.Objectives, lines: reference_lines.Lines) -> None:
    """The front, and below it what real pictures, copies and networks that are no trial score."""
    _print_states(frame)
    table = Table(title="Pareto front", title_justify="left")
    columns = ["trial", *objectives, *(c for c in ("params",) if c not in objectives)]
    for column in columns:
        table.add_column(column, justify="right")
    front = frame[frame.on_front].sort_values(next(iter(objectives)))
    for _, row in front.iterrows():
        table.add_row(str(row["trial"]), *(amount(row[column]) for column in columns[1:]))
    table.add_section()
    for line in lines.values():
        table.add_row(line.label, *("" if (value := line[c]) is None else amount(value) for c in columns[1:]))
    Console(soft_wrap=True).print(table)
