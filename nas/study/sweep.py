"""Networks drawn in many ways: a distance against a score of captions, such as FID and CLIP score, by guidance, steps, solver;
where a run measured one of them alone, that one against guidance or steps.

Every point has the captions and the noise of the run's own scores. A network drawn in many steps is drawn in one step as
well; a one-step generator only as it was made to be drawn. The scale is w in null + w (cond - null), at every evaluation of
the network (Ho & Salimans 2022, eq. 6, with w = 1 for none). A one-step generator is drawn with w = 1: what its training
took from a guided teacher is in its weights, and another w extrapolates from its two single predictions. Such points are
drawn too (trained without caption dropout, its prediction without a caption is the base's, untuned), and `as_trained` says
which point of a curve is the plan that the run itself scored. Asked for further numbers of steps, a sweep draws every network
in those as well: a one-step generator then renoises between them. Asked for values of fields of the plan, it draws every
network by its own plan with each combination of them (`nas.study.sweep_plans`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nas import failures, menu, metrics
from nas.analysis import naming, picking, results
from nas.deploy.contents import export_folder
from nas.diffusion.plan import ALWAYS, Plan
from nas.disk import files
from nas.errors import ArgumentError, InputError
from nas.networks import backbones
from nas.networks.backbones import Backbone
from nas.report import sweep_picture
from nas.runs import description
from nas.runs.directory import RunDirectory
from nas.settings.study import Study
from nas.study import launch
from nas.study.sweep_plans import Ways
from nas.trial import base_model
from nas.trial.bench import Bench
from nas.weights import checkpoints

if TYPE_CHECKING:
    from torch import nn


Point = tuple[Plan, dict[str, Any]]  # how it is drawn, and the columns that name it
IDENTITY = ["model", "trial", "repeat", "images_seen", *ALWAYS]  # what makes a point another one, with LATER
LATER = [name for name in Plan.model_fields if name not in ALWAYS]  # of a plan; columns only where a point says them
WHOLE = {column: "Int64" for column in ("trial", "repeat", "images_seen", "steps")}
DISTANCES, CAPTIONS = ("fid", "kid", "mind"), ("clip_score", "prompt_accuracy")  # what a curve has on its axes
TABLE, PICTURE = "guidance.csv", "guidance.png"


@dataclass(frozen=True)
class Model:
    """A trained network and how it is drawn."""

    name: str
    """Its cell, `base`, or `trial N`."""
    trial: int | None
    """None for the base."""
    repeat: int | None
    images_seen: int | None
    bench: Bench
    """With the settings of its cell."""
    architecture: Backbone
    """At deploy scale."""
    load: Callable[[], nn.Module]

    def points(self, ways: Ways) -> tuple[list[Point], list[str]]:
        """Every plan it is drawn by, and the columns that name the point; and why some are left out."""
        own = self.bench.study.sampling
        plans, wrong = ways.plans(own)
        found = list[Point]()
        for plan in plans:
            if plan != own and (why := self._why_not(plan)):
                wrong.append(why)
            else:
                found.append((plan, self._named(plan) | {"as_trained": plan == own}))
        return found, list(dict.fromkeys(wrong))

    def _why_not(self, plan: Plan) -> str:
        """Why the network cannot be drawn by a plan, or nothing."""
        deploy = self.bench.study.deploy
        try:
            plan.macs(self.architecture.units(deploy.latent_size, deploy.text_tokens))
        except InputError as error:
            return str(error)
        return ""

    def _named(self, plan: Plan) -> dict[str, Any]:
        named = {"model": self.name, "trial": self.trial, "repeat": self.repeat, "images_seen": self.images_seen}
        return named | {name: value if name in ALWAYS else _text(value) for name, value in plan.model_dump().items()}


def _text(value: Any) -> str:
    """A value of a later field as the table has it."""
    return value if isinstance(value, str) else json.dumps(value)


def sweep(
    run: RunDirectory,
    picks: Sequence[str] = (),
    ways: Ways = Ways(),  # noqa: B008 (frozen)
    repeats: int = 1,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Draw and score every point that `guidance.csv` does not have yet; returns the whole table.

    The table is written after each point, so that the same command goes on where it was interrupted. `picks` as in
    `nas.analysis.picking.pick`, or `base`; without any, the knee of a search, or the base and the first `repeats` repeats
    of every cell of an ablation. A point at which a network draws no numbers is said and left out. Raises InputError when a
    pick is not there or was not trained, the run measured neither a distance nor a score of captions, no network can be drawn
    in any of the ways, or none draws numbers.
    """

    shown = axes(run)
    models = list(networks_of(run, picks, repeats))
    if not models:
        raise InputError(f"{run.path}: no cell was trained to the end, so there is nothing to draw")
    points = _points(models, ways, say)
    table, diverged = _read(run.path / TABLE), ""
    for model, wanted in zip(models, points, strict=True):
        missing = [point for point in wanted if not _has(table, point[1])]
        if not missing:
            continue
        network, schedule = model.load(), schedule_of(model.bench)
        for plan, named in missing:
            what = f"{named['model']}, {_told(plan)}"
            try:
                found = scores(model.bench, network, schedule, plan)
            except failures.Diverged as error:
                diverged = f"{what}: {error}"
                say(f"{what}: left out: {error}")
                continue
            table = pd.concat([table, pd.DataFrame([named | found])], ignore_index=True).astype(WHOLE)
            _write(table, run.path / TABLE)
            say(f"{what}: {_said(found, shown)}")
    if table.empty:
        raise InputError(f"{run.path}: {diverged}")
    sweep_picture.save(curves(table, shown), shown, run.path / PICTURE)
    return table


def _points(models: Sequence[Model], ways: Ways, say: Callable[[str], None]) -> list[list[Point]]:
    """The points of each network. Raises InputError where there are none at all; what some lack is said."""
    found = [model.points(ways) for model in models]
    if not any(points for points, _ in found):
        raise InputError(f"--set: {found[0][1][0]}")
    for model, (_, wrong) in zip(models, found, strict=True):
        for reason in wrong:
            say(f"{model.name}: left out: {reason}")
    return [points for points, _ in found]


def _told(plan: Plan) -> str:
    """A plan in a line."""
    later = [f", {name} {_text(value)}" for name, value in plan.model_dump().items() if name not in ALWAYS]
    return f"{plan.solver} {plan.steps}, scale {plan.guidance:g}" + "".join(later)


def opened(path: Path, picks: Sequence[str]) -> tuple[RunDirectory, list[str]]:
    """The run at `path` and what to pick from it; a folder that `nas export` wrote is its trial in the run it came from.

    Raises InputError for what `nas train` wrote, which no study scored.
    """

    if not (path / export_folder.DEPLOY).is_file():
        return launch.find_run(path), list(picks)
    made = export_folder.origin(path)
    if "run" not in made:
        raise InputError(
            f"{path}: holds no trial of a study, whose captions and metrics a sweep needs; nas train wrote it"
        )
    if picks:
        raise ArgumentError(
            f"pick {picks[0]}: {path} is one exported trial; expected no pick, or the run {made['run']}"
        )
    return launch.find_run(Path(made["run"])), [f"trial:{made['trial']}"]


def axes(run: RunDirectory) -> list[str]:
    """The columns of the picture: a score of captions and a distance, or the one of them that the run measured.

    Raises InputError when it measured neither.
    """
    measured = [name for name, how in description.conditions(run.path).items() if "guidance" in how]
    captions = [name for name in CAPTIONS if name in measured]
    distances = [name for name in measured if name.partition("_")[0] in DISTANCES]
    if not distances and not captions:
        raise InputError(
            f"{run.path}: a sweep needs a distance ({', '.join(DISTANCES)}) or a score of captions "
            f"({', '.join(CAPTIONS)}); it measured {_list(measured)}"
        )
    return captions[:1] + distances[:1]


def curves(table: pd.DataFrame, shown: Sequence[str]) -> pd.DataFrame:
    """Means over repeats: model, the fields of the plan that the table has, as_trained, n, and the scores; by scale within a
    curve."""
    later = [name for name in LATER if name in table]
    default = {name: _text(Plan.model_fields[name].default) for name in later}
    by = ["model", "solver", "steps", *later, "guidance"]
    means = {column: (column, "mean") for column in shown}
    found = (
        table.fillna(default)
        .groupby(by, sort=False, as_index=False)
        .agg(**{"as_trained": ("as_trained", "any"), "n": (shown[0], "size"), **means})
    )
    place = found.groupby(by[:-1], sort=False).ngroup()
    return found.assign(place=place).sort_values(["place", "guidance"], kind="stable").drop(columns="place")


# --- which networks --------------------------------------------------------------------------------------------------


def networks_of(run: RunDirectory, picks: Sequence[str], repeats: int) -> Iterator[Model]:
    """The networks of a sweep, the base first."""

    settings = description.resolved(run.path)
    study = Study.model_validate({name: value for name, value in settings.items() if name != "provenance"})
    bench = Bench(study, run.cache)
    wanted = list(picks) or (["base"] if study.base is not None else [])
    if "base" in wanted:
        yield _base(run, bench)
    records, table = run.records(), results.load(run.path)
    if picks or not settings.get("ablation"):
        ways = [pick for pick in picks if pick != "base"] or ([] if picks else ["knee"])
        numbers = [picking.pick(table, results.objectives(settings), pick) for pick in ways]
    else:
        numbers = [number for number, record in records.items() if _drawn(record, repeats)]
    for number in dict.fromkeys(numbers):
        yield _trial(run, bench, records[number])


def _drawn(record: Mapping[str, Any], repeats: int) -> bool:
    return bool(record["state"] == "complete" and record["repeat"] < repeats)


def _base(run: RunDirectory, bench: Bench) -> Model:

    if bench.study.base is None:
        raise ArgumentError(f"pick base: the study of {run.path} has no base section")
    path = base_model.weights_path(bench)
    if not path.exists():
        raise ArgumentError(f"pick base: {path} is not there; the same nas run trains it again")
    own = bench.study.base.sampling or bench.study.sampling
    drawn = base_model.bench_of(bench).variant({"sampling": own.model_dump()})
    seen, network = checkpoints.images_seen(path), base_model.architecture(bench.study)
    return Model("base", None, None, seen, drawn, network, lambda: base_model.network(bench))


def _trial(run: RunDirectory, bench: Bench, record: Mapping[str, Any]) -> Model:

    number = int(record["trial"])
    weights = run.trial(number) / "weights.safetensors"
    if not weights.exists():
        raise InputError(f"{run.path}: trial {number} ({record['state'].replace('_', ' ')}) has no weights")

    def load() -> nn.Module:
        build = backbones.from_dict(record["proxy"]).build
        return checkpoints.restored(build, weights, f"trial {number}").eval()

    name = str(record.get("cell") or f"trial {number}")
    seen = int(record["rungs"][-1]["images_seen"])
    drawn, network = bench.variant(record.get("settings") or {}), backbones.from_dict(record["architecture"])
    return Model(name, number, int(record["repeat"]), seen, drawn, network, load)


# --- one point -------------------------------------------------------------------------------------------------------


def schedule_of(bench: Bench) -> dict[str, Any]:
    """The noise schedule of the study's objective, which every plan is drawn by."""

    entry = bench.study.objective
    made = menu.pick("objectives", entry.name).noise_schedule(entry.settings("objectives"))
    return dict(made.config)


def scores(bench: Bench, network: nn.Module, schedule: dict[str, Any], plan: Plan) -> dict[str, float]:
    """The study's metrics of its evaluation captions drawn by the plan. Raises failures.Diverged as `Bench.draw`."""
    drawn = bench.variant({"sampling": plan.model_dump()})
    return metrics.scores(drawn.metrics, drawn.captioned(drawn.draw(network, schedule)))


def _has(table: pd.DataFrame, named: Mapping[str, Any]) -> bool:
    """Whether the table has this point."""
    if table.empty:
        return False
    same = pd.Series(True, index=table.index)
    for column in [*IDENTITY, *LATER]:
        value = named.get(column)
        held = table[column] if column in table else pd.Series(None, index=table.index, dtype=object)
        same &= held.isna() if value is None else held == value
    return bool(same.any())


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(LATER, str))
        absent = [column for column in IDENTITY if column not in table]
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as a table ({error}); remove it to sweep again") from None
    if absent:
        raise InputError(f"{path}: has no column {absent[0]!r}; remove it to sweep again")
    return table.astype(WHOLE)


def _write(table: pd.DataFrame, path: Path) -> None:
    with files.replacing(path) as partial:
        table.to_csv(partial, index=False)


def _said(found: Mapping[str, float], columns: Sequence[str]) -> str:
    return ", ".join(naming.measured(column, found[column]) for column in columns)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
