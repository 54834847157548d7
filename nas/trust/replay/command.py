"""What `nas replay` does: rules and samplers over a recorded table, as tables, a picture and printed answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from nas import menu
from nas.documents.document import Document
from nas.errors import InputError
from nas.report import stills
from nas.search import stopping
from nas.search.stopping import Stopping
from nas.settings.study import Study
from nas.trust.replay import curves, looks
from nas.trust.replay.chooser import SAMPLERS, function, is_function
from nas.trust.replay.curves import Table
from nas.trust.replay.looks import LookedAt
from nas.trust.replay.rules import RULES, Verdict, agreement, halves, judge, tune
from nas.trust.replay.searches import UNITS, explore, explore_pool, hypervolumes, paid, quarters
from nas.trust.replay.simulation import History
from nas.trust.replay.spread import Spread

CACHE = Path("runs/.cache")


@dataclass(frozen=True)
class Plan:
    """What `nas replay` is asked for."""

    rules: tuple[str, ...] = RULES
    samplers: tuple[str, ...] = ()
    shuffles: int = 200
    repeats: int = 20
    workers: int = 1
    overrides: tuple[str, ...] = ()
    tune: bool = False
    lost: float = 0.02
    look: bool = False
    trainings: int | None = None
    """Full trainings that samplers may pay; None: as many as the table has architectures."""


def run(path: Path, plan: Plan, out: Path | None, run_dir: Path | None, truth: Path | None = None) -> None:
    """Replay the table at `path`, print the answers, and write them as tables and a picture to `out` (the table's folder).

    `run_dir` and `truth` are runs that the table and its truth are first written from.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    _check_names(plan)
    beside = path.parent if path.is_file() or path.suffix == ".csv" else path
    for recorded, name in ((run_dir, curves.NAME), (truth, curves.TRUTH)):
        if recorded is not None:
            print(f"wrote {curves.record(recorded, beside, name)}")
    table, about = curves.load(path)
    _check_samplers(table, about, plan)
    if plan.look:
        print(f"wrote {looks.record(curves.whole(path)[0], about, Path(table.source).parent, CACHE)}")
    looked = _looks(table, about) if "pool" in plan.samplers else None  # refused before anything is replayed
    if plan.tune:
        _check_tuning(table, plan)
    settings = settings_of(plan.overrides, table.rungs, plan.rules[0] if plan.rules else RULES[0])
    table.at(settings.rungs)
    folder = out or beside
    folder.mkdir(parents=True, exist_ok=True)
    _say_table(table, about, plan, looked)
    if plan.tune:
        settings, table = _tune(table, plan, folder)
    judged = _judge(table, plan, settings, folder)
    explored = _explore(table, about, plan, settings, folder) if plan.samplers else None
    if judged is not None or explored is not None:
        stills.save_replay(judged, explored, folder / "replay.png")
        print(f"wrote {folder / 'replay.png'}")


def _say_table(table: Table, about: Study, plan: Plan, looked: LookedAt | None) -> None:
    rungs = ", ".join(f"{rung:g}" for rung in table.rungs)
    print(
        f"{table.source}: {len(table)} architectures at rungs {rungs}; {plan.shuffles} shuffles, {plan.workers} workers"
    )
    last = (
        "the last" if table.truth is None else f"the last of {curves.TRUTH}, which has these and by which all is judged"
    )
    found = agreement(table, list(about.objectives), None if looked is None else looked.values)
    print(f"Kendall's tau of each rung with {last}\n{found.to_string()}\n")


def _judge(table: Table, plan: Plan, settings: Stopping, folder: Path) -> pd.DataFrame | None:
    if not plan.rules:
        return None
    verdicts = [judge(table, name, settings, plan.shuffles, plan.workers) for name in plan.rules]
    frame = pd.DataFrame([_row(verdict, settings, table, plan) for verdict in verdicts])
    _show(_write(frame, folder / "replay.csv"))
    return frame


def _check_names(plan: Plan) -> None:
    """Raises InputError for a rule or a sampler that there is not."""
    for name, offered, option in _named(plan):
        if is_function(name) and offered is SAMPLERS:
            function(name)
        elif name not in offered:
            raise InputError(f"{option} {name}: not one there is{menu.nearest(name, list(offered))}")


def _check_samplers(table: Table, about: Study, plan: Plan) -> None:
    """Raises InputError when a sampler is to be replayed and there is no space for it, or none is and it is to end."""
    if plan.samplers and (about.space is None or about.search is None or table.choices is None):
        raise InputError(
            f"{table.source}: --samplers: expected a search's table, with columns arch.<axis> of its space"
        )
    if plan.trainings is not None and not plan.samplers:
        raise InputError(f"--trainings {plan.trainings}: it ends samplers; expected some in --samplers")


def _named(plan: Plan) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """What the plan names, of what, by which option."""
    yield from ((name, RULES, "--rules") for name in plan.rules)
    yield from ((name, SAMPLERS, "--samplers") for name in plan.samplers)


def _check_tuning(table: Table, plan: Plan) -> None:
    """Raises InputError when there is nothing to choose, or nothing to choose from."""
    if plan.overrides:
        raise InputError(f"--set {plan.overrides[0]}: --tune chooses the settings; leave one of the two out")
    if len(table.rungs) < 2:
        raise InputError(f"{table.source}: --tune: only rung 1 was recorded; expected an earlier one to stop at")
    if len(table) < 2:
        raise InputError(f"{table.source}: --tune: holds 1 architecture; expected 2 or more, for each half has some")


def settings_of(overrides: Sequence[str], rungs: Sequence[float], rule: str = RULES[0]) -> Stopping:
    """The stopping settings of a rule at these rungs, with `key=value` overrides.

    Raises InputError naming the key and the nearest valid one, or the rule that does not read it.
    """
    own = rule if rule in stopping.RULES else RULES[0]
    document = Document("--set", {"rule": own, "rungs": list(rungs)}, {})
    for override in overrides:
        document.override(override)
    settings: Stopping = document.validate(Stopping, document.content)
    return settings


def _tune(table: Table, plan: Plan, folder: Path) -> tuple[Stopping, Table]:
    """The settings chosen on one half of the architectures, and the other half, the only one they may be judged on."""
    found = tune(table, plan.lost, max(1, plan.shuffles // 10), plan.workers)
    rows = [
        {
            "rule": each.settings.rule,
            **_of(each.settings, each.settings.rule),
            **_told("chosen_on", each.chosen_on),
            **_told("other_half", each.other),
        }
        for each in found
    ]
    _write(pd.DataFrame(rows), folder / "tuning.csv")
    best, (first, second) = found[0].settings, halves(table)
    print(
        f"chosen on {len(first)} architectures: {best.rule}, {_spelt(best)}; what follows is about the other {len(second)}"
    )
    return best, second


def _looks(table: Table, about: Study) -> LookedAt:
    return looks.read(Path(table.source).with_name(looks.NAME), table, about)


def _explore(table: Table, about: Study, plan: Plan, settings: Stopping, folder: Path) -> pd.DataFrame:
    looked = _looks(table, about) if "pool" in plan.samplers else None
    limit = min(len(table), plan.trainings or len(table))
    rows = []
    for sampler in dict.fromkeys(plan.samplers):
        alone = sampler in ("optuna", "optuna_charged", "pool") or is_function(sampler)
        for name in dict.fromkeys(("none",) if alone else ("none", settings.rule)):
            if sampler == "pool":
                assert looked is not None
                planned = {n: explore_pool(table, about, looked, n, plan.repeats, plan.workers) for n in paid(limit)}
            else:
                histories = explore(table, about, sampler, name, settings, plan.repeats, plan.workers, limit)
                planned = dict.fromkeys(paid(limit), histories)
            rows += [row for unit in UNITS for row in _read_off(table, sampler, name, unit, planned)]
    frame = _write(pd.DataFrame(rows), folder / "samplers.csv")
    means = frame.pivot(index=["unit", "sampler", "rule"], columns="trainings", values="hypervolume")
    print(f"\nshare of the table's hypervolume, by compute in full trainings\n{means.round(3).to_string()}\n")
    beside = quarters(frame, settings.rule)
    if len(beside):
        print(
            f"tpe with {settings.rule} at a quarter of the compute of Optuna's own\n{beside.round(3).to_string(index=False)}\n"
        )
    return frame


def _read_off(
    table: Table, sampler: str, rule: str, unit: str, planned: dict[float, list[History]]
) -> Iterator[dict[str, Any]]:
    """A sampler's rows: of the histories that were planned for so many trainings, what they have when as much is paid.

    A pool looks at as many as suits each. Of another sampler it is the same study, planned for the most: one for 8 trainings
    would begin to model a little earlier.
    """
    for trainings, histories in planned.items():
        found = Spread.of(hypervolumes(table, histories, trainings, unit))
        yield {"sampler": sampler, "rule": rule, "unit": unit, "trainings": trainings} | {
            "hypervolume": found.mean,
            "low": found.low,
            "high": found.high,
            "repeats": len(histories),
        }


def _of(settings: Stopping, rule: str) -> dict[str, Any]:
    """The settings that a rule reads, as columns."""
    share = {"multi_metric": {}, "improvement": {"gain": settings.gain}}.get(rule, {"keep": settings.keep})
    peers = {} if rule == "multi_metric" else {"min_peers": settings.min_peers}
    return {"rungs": " ".join(f"{rung:g}" for rung in settings.rungs), **share, **peers}


def _spelt(settings: Stopping) -> str:
    return ", ".join(f"{name} {value}" for name, value in _of(settings, settings.rule).items())


def _told(prefix: str, verdict: Verdict) -> dict[str, float]:
    return {
        f"{prefix}_images_saved": verdict.images_saved.mean,
        f"{prefix}_hypervolume_lost": verdict.hypervolume_lost.mean,
    }


def _row(verdict: Verdict, settings: Stopping, table: Table, plan: Plan) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": verdict.rule}
    for name in ("images_saved", "seconds_saved", "hypervolume_lost", "stopped"):
        spread: Spread = getattr(verdict, name)
        row |= {name: spread.mean, f"{name}_low": spread.low, f"{name}_high": spread.high}
    own = {} if verdict.rule == "none" else _of(settings, verdict.rule)
    return row | own | {"architectures": len(table), "shuffles": plan.shuffles, "workers": plan.workers}


def _write(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    frame.round(5).to_csv(path, index=False)
    return frame


def _show(frame: pd.DataFrame) -> None:
    """The rules as people read them: means with their intervals, in percent."""
    print(f"{'rule':14}{'images saved %':>22}{'seconds saved %':>24}{'hypervolume lost %':>24}")
    for row in frame.to_dict("records"):
        cells = [
            f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
            for name in ("images_saved", "seconds_saved", "hypervolume_lost")
        ]
        print(f"{row['rule']:14}{cells[0]:>22}{cells[1]:>24}{cells[2]:>24}")
