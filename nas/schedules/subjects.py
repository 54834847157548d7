"""Which trained network a schedule is searched for, or a decoder made for: a trial or the base of a run, that of an export, or
the base of a study."""

from __future__ import annotations

from pathlib import Path

from nas.deploy.contents import export_folder
from nas.errors import ArgumentError, InputError
from nas.report.chapters.schedules import FOLDER
from nas.schedules.drawing import Subject
from nas.settings import study_file
from nas.study import sweep
from nas.trial import base_model
from nas.trial.bench import Bench


def find(path: Path, pick: str | None, root: Path = Path("runs"), kind: str = FOLDER) -> tuple[Subject, Path]:
    """The network, and the folder for what is found, by its `kind`. InputError where `path` and `pick` name not one."""
    exported = (path / export_folder.DEPLOY).is_file()
    if path.suffix in (".yaml", ".yml") or (not exported and (path / "study.yaml").is_file()):
        return _of_study(path, pick, root, kind)
    run, picks = sweep.opened(path, [pick] if pick else [])
    models = list(sweep.networks_of(run, picks, 1))
    if len(models) != 1:
        raise ArgumentError(f"pick: {path} holds {len(models)} networks; expected one, such as trial:0 or base")
    (model,) = models
    subject = Subject(model.name, model.bench, model.load().eval(), sweep.schedule_of(model.bench))
    return subject, run.path / kind / model.name.replace(" ", "-")


def _of_study(path: Path, pick: str | None, root: Path, kind: str) -> tuple[Subject, Path]:
    study = study_file.load(path)
    if study.base is None:
        raise InputError(
            f"{path}: a study that has not run has only its base to draw, and it has no base; expected its run"
        )
    if pick not in (None, "base"):
        raise ArgumentError(
            f"pick {pick}: {path} is a study that has not run, with only its base to draw; expected its run"
        )
    bench = Bench(study, root / ".cache")
    own = study.base.sampling or study.sampling
    bench = base_model.bench_of(bench).variant({"sampling": own.model_dump()})
    network = base_model.network(Bench(study, root / ".cache"))
    return Subject("base", bench, network.eval(), sweep.schedule_of(bench)), root / study.name / kind
