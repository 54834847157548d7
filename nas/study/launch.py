"""From a study file to a finished run: check everything, run, summarise."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rich.table import Table

from nas.analysis import ablation, certainty, fronts, learning, reference_lines, results
from nas.analysis.people import judged
from nas.documents import yaml_text
from nas.documents.document import Document
from nas.errors import InputError
from nas.numbers import amount
from nas.report import page
from nas.report.live.progress import Progress
from nas.runs import description, records
from nas.runs.directory import MORE, RunDirectory, Say, go_on, open_run, to_continue
from nas.runs.ledger import bring_back
from nas.runs.storage.journal import is_database
from nas.settings import plausible, study_file
from nas.settings.study import Study
from nas.settings.study_file import Overrides, Source
from nas.space.search_space import Choices, SearchSpace
from nas.study.candidates import Candidates
from nas.study.cells import Cells
from nas.study.evolution import Evolution
from nas.study.pool import Pool
from nas.study.proposer import Proposer
from nas.study.run import MakeEngine, Run
from nas.trial import moves
from nas.trial.checks.check import check, check_pool
from nas.trial.given import earlier, starts
from nas.weights import worlds
from nas.workers import ray_engine

Begin = Callable[[RunDirectory], Run]


@dataclass(frozen=True)
class Where:
    """Where a study is kept and computed."""

    storage: str | None = None
    """The URL of Optuna's trials; a journal in the run directory unless given (nas.runs.storage.journal)."""
    engine: Literal["local", "ray"] = "local"
    """What computes."""
    address: str | None = None
    """Of the Ray cluster."""

    def engine_maker(self, say: Say) -> MakeEngine | None:
        """What makes the engine, None for the local one. Raises InputError for an address without a cluster."""
        if self.engine == "ray":
            say(ray_engine.connect(self.address))
            return ray_engine.RayEngine
        if self.address is not None:
            raise InputError(f"--address {self.address}: goes with --engine ray")
        return None


def show(source: Source, overrides: Overrides) -> None:
    """Check a study and print its resolved settings; write nothing."""
    with study_file.opened(source, overrides) as (study, document):
        _checked(study, document)
        earlier.found(study)
    say = Progress().say
    if foreign := worlds.told(study.resolved()):
        say(f"# {foreign}")
    say(yaml_text.written(study.resolved()))


def run(
    source: Source,
    overrides: Overrides,
    root: Path,
    new: bool = False,
    where: Where = Where(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> RunDirectory:
    """Run or continue a study, or with `new` start it afresh. Nothing is written before every check has passed."""
    progress = progress or Progress()
    with study_file.opened(source, overrides) as (study, document):
        begin = _beginning(study, document, where, progress, _going_on(study, root, new))
        if where.storage is not None and is_database(where.storage):
            bring_back(study.name, where.storage, root)
        directory, continued = open_run(study, root, new, progress.say)
        with directory.lock():
            _execute(begin, study, directory, continued, progress)
    return directory


def resume(
    path: Path,
    more: Mapping[str, Any] = MappingProxyType({}),
    workers: int | None = None,
    where: Where = Where(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> RunDirectory:
    """Go on with the run at `path`, by its own settings, where something is left to do.

    `more`: how many trials or repeats it is now asked for in all, by section of the study. InputError while another process
    holds the run, when it was asked for more before, and for a section that it has not.
    """
    progress, directory = progress or Progress(), find_run(path)
    with directory.lock():
        document = _recorded(directory.path, more)
        with study_file.opened(document, {} if workers is None else {"workers": workers}) as (study, _):
            begin = _beginning(study, document, where, progress, directory.path)
            if go_on(study, directory):
                _execute(begin, study, directory, True, progress)
            else:
                progress.say(f"{directory.path}: nothing is left to do")
    return directory


def _recorded(run: Path, more: Mapping[str, Any]) -> Document:
    """The settings that a run was begun with, asking for `more`."""
    settings, file = description.resolved(run), run / description.SETTINGS
    settings.pop("provenance", None)
    document = Document(str(file), settings)
    for section, count in more.items():
        if not settings.get(section):
            known = " or ".join(f"{name}.{MORE[name]}" for name in MORE if settings.get(name))
            raise InputError(f"extend {section}.{MORE[section]}: {file} has no section {section}; expected {known}")
        document.give(f"{section}.{MORE[section]}", count, "extend")
    return document


def _going_on(study: Study, root: Path, new: bool) -> Path | None:
    """The earlier run that goes on, where it may know already what the search tries first."""
    return to_continue(study, root, new) if study.search is not None and study.search.start else None


def _beginning(study: Study, document: Document, where: Where, progress: Progress, run: Path | None) -> Begin:
    """What makes the run in a directory, once everything about the study is checked. `run`: the one that goes on."""
    kept = starts.kept(run) if run is not None and study.search is not None else None
    space = _checked(study if kept is None else starts.none_named(study), document)
    if kept is None and study.search is not None and space is not None:
        kept = starts.members(study, space)  # before there is a new run, which is no start of itself
    proposer, make = proposer_of(study, space, kept), where.engine_maker(progress.say)

    def begin(directory: RunDirectory) -> Run:
        starts.keep(directory, kept or [])
        return Run(study, proposer, directory, progress, where.storage, make)

    return begin


def _execute(begin: Begin, study: Study, directory: RunDirectory, continued: bool, progress: Progress) -> None:
    """Run to the end in a directory that is held, and summarise."""
    with _nothing_left(directory, continued):
        progress.say(f"{'continuing' if continued else 'running'} study {study.name!r} in {directory.path}")
        if foreign := worlds.told(study.resolved()):
            progress.say(foreign)
        execution = begin(directory)
        with _resumable(directory, continued):
            execution.execute()
    frame = summarise(directory, progress)
    execution.tracker.finish(frame, study.objectives)


@contextmanager
def _resumable(directory: RunDirectory, continued: bool) -> Iterator[None]:
    """Inside, whatever ends the run, Ctrl-C or a callback's own error, is told with how to go on, where there is what to go on
    with."""
    try:
        yield
    except BaseException as error:
        if not _takes_all(error, directory, continued):
            error.add_note(f"nothing finished is lost; nas.resume({str(directory.path)!r}) goes on from here")
        raise


@contextmanager
def _nothing_left(directory: RunDirectory, continued: bool) -> Iterator[None]:
    """Inside, a new run that is refused before its first trial, by its data for example, takes its folders with it."""
    try:
        yield
    except InputError as error:
        if _takes_all(error, directory, continued):
            shutil.rmtree(directory.path)
            for folder in (directory.path.parent, directory.cache, directory.root):
                with suppress(OSError):  # it holds something else
                    folder.rmdir()
        raise


def _takes_all(error: BaseException, directory: RunDirectory, continued: bool) -> bool:
    """Whether an error is the refusal of a new run before its first trial."""
    return isinstance(error, InputError) and not continued and not (directory.path / "trials").exists()


def proposer_of(study: Study, space: SearchSpace | None, first: Sequence[Choices] | None = None) -> Proposer:
    """What decides what the study trains; `first` as in Candidates."""
    if study.ablation is not None:
        return Cells(study)
    assert space is not None, "a search without a space is refused when its file is read"
    assert study.search is not None
    if study.search.sampler == "evolution":
        return Evolution(study, space)
    return (Pool if study.search.sampler == "pool" else Candidates)(study, space, first)


def _checked(study: Study, document: Document) -> SearchSpace | None:
    """The study's space, once everything is checked and what is unlikely told on stderr."""
    space = SearchSpace.load(study.space) if study.space is not None else None
    check(study, space)
    check_pool(study)
    moves.check(study, space)
    for line in plausible.unlikely(study):
        print(f"nas: warning: {document.placed(line)}", file=sys.stderr)
    return space


def summarise(directory: RunDirectory, progress: Progress | None = None) -> Any:
    """Write results.csv, best.yaml, front/ and report.html from the records, and print the front.

    Of an ablation the tables of effects are written and printed instead.
    """
    progress = progress or Progress()
    resolved = description.resolved(directory.path)
    objectives = results.objectives(resolved)
    frame = results.load(directory.path)
    if resolved.get("ablation"):
        _print_effects(directory, frame, progress)
    else:
        lines = reference_lines.read(directory.path)
        _write_winner(directory, frame, objectives)
        _print_front(frame, objectives, lines, progress)
        if nothing := learning.nothing_learnt(frame, objectives, lines):
            progress.say(nothing)
        for told in _certainty(directory, resolved, frame, objectives):
            progress.say(told)
    if (people := judged.of_run(directory.path, frame, objectives)) is not None:
        progress.say(judged.sentence(people))
    progress.say(f"report: {page.write(directory.path)}")
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


def _print_effects(directory: RunDirectory, frame: Any, progress: Progress) -> None:
    """Write and print the tables of an ablation; a line says why when there is nothing to compare."""
    progress.say(results.states(frame))
    try:
        found = ablation.write(directory.path)
    except InputError as error:
        return progress.say(str(error))
    for column, kinds in found.items():
        for kind, table in kinds.items():
            progress.say(f"\n{column}: {kind.replace('_', ' ')}\n{ablation.render(table, 'plain')}")


def _certainty(
    directory: RunDirectory, resolved: dict[str, Any], frame: Any, objectives: fronts.Objectives
) -> Iterator[str]:
    """A line on who is on the front for sure, if anything was repeated, and a warning where the signal is weak."""
    found = certainty.of_front(frame, objectives, certainty.confidence(resolved))
    if found.degrees:
        by_place = {
            place: ", ".join(str(one.trial) for one in found.contenders if one.place == place) or "none"
            for place in ("sure", "perhaps")
        }
        yield f"on the front for sure: {by_place['sure']}; perhaps: {by_place['perhaps']}"
    if warning := certainty.warning(resolved, directory.cache):
        yield warning


def _print_front(frame: Any, objectives: fronts.Objectives, lines: reference_lines.Lines, progress: Progress) -> None:
    """The front, and below it what real pictures, copies and networks that are no trial score."""
    progress.say(results.states(frame))
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
    progress.console.print(table)
