"""Replay of recorded learning curves: what a rule of early stopping, or a sampler, would have found and paid. No training.

- `judge`: over shuffles of the table, what a rule saves and which hypervolume it loses, both against training all to the
  end. `tune` chooses settings on one half of the architectures and reports them on the other.
- `explore`: hypervolume against compute, where a sampler chooses the architectures. Its space is the table: what it
  suggests is replaced by the nearest architecture that was recorded and not yet taken (`nas.trust.chooser`).

Hypervolume is that of the front of the fully trained, up to the worst of the table moved out by a tenth of its range, as a
share of the whole table's. Intervals hold 95 % of the shuffles: where one study may fall, not how well the mean is known.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray

from nas import menu
from nas.analysis.statistics.agreement import tau
from nas.documents.document import Document
from nas.errors import InputError
from nas.report import stills
from nas.search import stopping
from nas.search.dominance import Points
from nas.search.stopping import Stopping
from nas.settings.study import Study
from nas.space.search_space import SearchSpace
from nas.trust import curves, multi_metric, table_looks
from nas.trust.chooser import SAMPLERS, Chooser, sampler_of
from nas.trust.curves import Table
from nas.trust.simulation import BestFirst, History, Rule, Shuffled, Simulation, volume_of

RULES = ("improvement", "halving", "slope", "median", "none", "multi_metric")
UNITS = ("images", "seconds")
GP_REPEATS = 5  # a Gaussian process takes a quarter of a second to ask, so it is not repeated as often
CACHE = Path("runs/.cache")
ROUNDING = 1e-9  # of sums of seconds


def rule_of(name: str, settings: Stopping) -> Rule:
    """The rule behind a name of RULES; the settings' own rule is ignored."""
    if name == "multi_metric":
        return multi_metric.goes_on
    own = settings.model_copy(update={"rule": name})
    return lambda curve, others: stopping.goes_on(curve, others, own)


# --- rules over shuffles ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A quantity over shuffles: its mean, and the interval that holds 95 % of them."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, high = np.quantile(values, [0.025, 0.975])
        return cls(float(np.mean(values)), float(low), float(high))

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Verdict:
    """What a rule does to a table; shares."""

    rule: str
    images_saved: Spread
    """Of the training images of training all to the end."""
    seconds_saved: Spread
    """Of the seconds of training all to the end and scoring each once, there."""
    hypervolume_lost: Spread
    stopped: Spread
    """Of the architectures."""


def judge(table: Table, name: str, settings: Stopping, shuffles: int, workers: int = 1, seed: int = 0) -> Verdict:
    """A rule over shuffles of the table, with the settings' rungs (of which `none` scores only the last)."""
    seen = table.at(settings.rungs[-1:] if name == "none" else settings.rungs)
    rule, volume = rule_of(name, settings), volume_of(table)
    all_images, all_seconds = len(table) * table.images[-1], float(table.train_s.sum() + table.other_s[:, -1].sum())
    rows = []
    for order in orders(len(table), shuffles, seed):
        ended = Simulation(seen, Shuffled(order.tolist()), rule, workers).run()
        lost, stopped = round(1 - volume(ended.finished), 12) + 0.0, 1 - len(ended.finished) / len(table)
        rows.append((1 - ended.total_images / all_images, 1 - ended.total_seconds / all_seconds, lost, stopped))
    return Verdict(name, *(Spread.of(column) for column in zip(*rows, strict=True)))


def orders(count: int, shuffles: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The same shuffles for every rule."""
    generator = np.random.default_rng(seed)
    for _ in range(shuffles):
        yield generator.permutation(count)


@dataclass(frozen=True)
class Tuning:
    """One choice of settings, on the half of the architectures where it may be chosen and on the other."""

    settings: Stopping
    chosen_on: Verdict
    other: Verdict


def halves(table: Table, seed: int = 0) -> tuple[Table, Table]:
    """Two halves of the architectures, drawn at random: settings are chosen on the first and reported on the second."""
    order = np.random.default_rng(seed).permutation(len(table))
    return table.rows(order[: len(table) // 2].tolist()), table.rows(order[len(table) // 2 :].tolist())


TRIED: dict[str, tuple[str, tuple[float, ...]]] = {  # rule -> what is tuned, and to which values
    "halving": ("keep", (0.25, 0.3, 0.35, 0.4, 0.5, 0.6)),
    "improvement": ("gain", (0.002, 0.005, 0.01, 0.02, 0.03)),
}


def grid(rungs: Sequence[float]) -> Iterator[Stopping]:
    """The settings that are tried: rules, every subset of the recorded rungs, shares, and peers."""
    *early, last = rungs
    for count in range(1, len(early) + 1):
        for some, (rule, (share, values)) in itertools.product(itertools.combinations(early, count), TRIED.items()):
            for value, peers in itertools.product(values, (3, 4, 6)):
                yield Stopping.model_validate({"rule": rule, "rungs": (*some, last), share: value, "min_peers": peers})


def tune(table: Table, lost: float, shuffles: int, workers: int = 1) -> list[Tuning]:
    """Every setting of `grid` on both halves, the best on the first half first: of those that lose on average at most
    `lost` of its hypervolume the one that saves most training images; if there is none, the one that loses least."""
    first, second = halves(table)
    tried = [
        Tuning(s, judge(first, s.rule, s, shuffles, workers), judge(second, s.rule, s, shuffles, workers))
        for s in grid(table.rungs)
    ]
    return sorted(tried, key=lambda each: _merit(each.chosen_on, lost))


def _merit(verdict: Verdict, lost: float) -> tuple[bool, float]:
    over = verdict.hypervolume_lost.mean > lost
    return over, verdict.hypervolume_lost.mean if over else -verdict.images_saved.mean


def agreement(table: Table, columns: Sequence[str], looks: Points | None = None) -> pd.DataFrame:
    """Kendall's tau between each rung's order of the architectures and the last's: rungs, after looks at them where there are
    any (architectures, objectives), by the scores that training moves."""
    values = table.values
    moved = [place for place in range(len(columns)) if (values[:, :, place] != values[:, :1, place]).any()]
    earlier: dict[str | float, Points] = {} if looks is None else {"look": looks}
    earlier |= {rung: values[:, place] for place, rung in enumerate(table.rungs[:-1])}
    taus = {
        columns[place]: [tau(scores[:, place], values[:, -1, place]) for scores in earlier.values()] for place in moved
    }
    return pd.DataFrame(taus, index=pd.Index(list(earlier), name="rung")).round(2)


# --- samplers over the table -----------------------------------------------------------------------------------------


def explore(
    table: Table, about: Study, sampler: str, name: str, settings: Stopping, repeats: int, workers: int = 1
) -> list[History]:
    """Histories of a sampler with a rule, until the table has no architecture left."""
    assert about.space is not None
    space, rule = SearchSpace.load(about.space), rule_of(name, settings)
    seen = table.at(settings.rungs[-1:] if name == "none" else settings.rungs)
    found = []
    for repeat in range(min(repeats, GP_REPEATS) if sampler == "gp" else repeats):
        asked = sampler_of(sampler, about, len(table), repeat)
        chooser = Chooser(seen, about, space, asked, sampler == "optuna_charged", repeat)
        found.append(Simulation(seen, chooser, rule, workers).run())
    return found


def explore_pool(table: Table, looks: Points, looks_s: float, workers: int = 1) -> list[History]:
    """The history of a pool that looks at the whole table, which takes it `looks_s`, and trains the best first. It is the only
    one: nothing in it is drawn."""
    asker = BestFirst(looks, table.values[:, -1])
    return [Simulation(table.at(table.rungs[-1:]), asker, rule_of("none", Stopping()), workers, looks_s).run()]


def hypervolumes(table: Table, histories: Sequence[History], trainings: float, unit: str) -> list[float]:
    """The share of the table's hypervolume that each history has when as much is paid as so many full trainings cost.

    `unit` says in what: `images` of training, or `seconds`, of which a full training has those of one scoring as well.
    """
    volume = volume_of(table)
    seconds = float((table.train_s.sum(1) + table.other_s[:, -1]).mean())
    limit = {"images": trainings * table.images[-1], "seconds": trainings * seconds}[unit]
    return [volume(history.within(**{unit: limit * (1 + ROUNDING)})) for history in histories]


def paid(limit: float) -> list[float]:
    """Full trainings at which the hypervolume is read: 1, 2, 4, ... up to the limit."""
    return [*itertools.takewhile(lambda count: count < limit, (2.0**power for power in range(32))), limit]


def quarters(explored: pd.DataFrame, rule: str) -> pd.DataFrame:
    """TPE with a rule of stopping at a quarter of the compute, beside Optuna's own sampler without stopping at all of it."""
    at = explored.set_index(["sampler", "rule", "unit", "trainings"])["hypervolume"]
    rows = []
    for sampler, unit in itertools.product(("optuna", "optuna_charged"), UNITS):
        for full in explored["trainings"].unique():
            default, plain = ("tpe", rule, unit, full / 4), (sampler, "none", unit, full)
            if default in at.index and plain in at.index:
                rows.append(
                    {"unit": unit, "full": full, "default": at[default], "plain": sampler, "of_plain": at[plain]}
                )
    return pd.DataFrame(rows)


# --- the command -----------------------------------------------------------------------------------------------------


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


def run(path: Path, plan: Plan, out: Path | None, run_dir: Path | None) -> None:
    """Replay the table at `path`, print the answers, and write them as tables and a picture to `out` (the table's folder)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    for name, offered, option in _named(plan):
        if name not in offered:
            raise InputError(f"{option} {name}: not one there is{menu.nearest(name, list(offered))}")
    if run_dir is not None:
        print(f"wrote {curves.record(run_dir, path.parent if path.suffix == '.csv' else path)}")
    table, about = curves.load(path)
    if plan.look:
        print(f"wrote {table_looks.record(table, about, Path(table.source).parent, CACHE)}")
    looks = _looks(table, about)[0] if "pool" in plan.samplers else None  # refused before anything is replayed
    if plan.tune:
        _check_tuning(table, plan)
    settings = settings_of(plan.overrides, table.rungs, plan.rules[0] if plan.rules else RULES[0])
    table.at(settings.rungs)
    folder = out or (path if path.is_dir() else path.parent)
    folder.mkdir(parents=True, exist_ok=True)
    rungs = ", ".join(f"{rung:g}" for rung in table.rungs)
    print(
        f"{table.source}: {len(table)} architectures at rungs {rungs}; {plan.shuffles} shuffles, {plan.workers} workers"
    )
    print(f"Kendall's tau of each rung with the last\n{agreement(table, list(about.objectives), looks).to_string()}\n")
    if plan.tune:
        settings, table = _tune(table, plan, folder)
    verdicts = [judge(table, name, settings, plan.shuffles, plan.workers) for name in plan.rules]
    rows = [_row(verdict, settings, table, plan) for verdict in verdicts]
    _show(_write(pd.DataFrame(rows), folder / "replay.csv"))
    explored = _explore(table, about, plan, settings, folder) if plan.samplers else None
    stills.save_replay(pd.DataFrame(rows), explored, folder / "replay.png")
    print(f"wrote {folder / 'replay.png'}")


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


def _histories(table: Table, about: Study, plan: Plan, sampler: str, name: str, settings: Stopping) -> list[History]:
    if sampler != "pool":
        return explore(table, about, sampler, name, settings, plan.repeats, plan.workers)
    return explore_pool(table, *_looks(table, about), plan.workers)


def _looks(table: Table, about: Study) -> tuple[Points, float]:
    return table_looks.read(Path(table.source).with_name(table_looks.NAME), table, about)


def _explore(table: Table, about: Study, plan: Plan, settings: Stopping, folder: Path) -> pd.DataFrame:
    rows = []
    for sampler in plan.samplers:
        for name in ("none",) if sampler.startswith(("optuna", "pool")) else ("none", settings.rule):
            histories = _histories(table, about, plan, sampler, name, settings)
            for unit, trainings in itertools.product(UNITS, paid(len(table))):
                found = Spread.of(hypervolumes(table, histories, trainings, unit))
                rows.append(
                    {"sampler": sampler, "rule": name, "unit": unit, "trainings": trainings}
                    | {"hypervolume": found.mean, "low": found.low, "high": found.high, "repeats": len(histories)}
                )
    frame = _write(pd.DataFrame(rows), folder / "samplers.csv")
    means = frame.pivot(index=["unit", "sampler", "rule"], columns="trainings", values="hypervolume")
    print(f"\nshare of the table's hypervolume, by compute in full trainings\n{means.round(3).to_string()}\n")
    beside = quarters(frame, settings.rule)
    if len(beside):
        print(
            f"tpe with {settings.rule} at a quarter of the compute of Optuna's own\n{beside.round(3).to_string(index=False)}\n"
        )
    return frame


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
