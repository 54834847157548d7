"""What was judged, as tables for a terminal and as files."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, isnan
from pathlib import Path
from typing import Any

from nas.analysis import results
from nas.analysis.people import judged, preference
from nas.analysis.people.judged import Judged
from nas.analysis.people.judges import Alike
from nas.disk import files
from nas.errors import InputError
from nas.runs import description, judgements

Grid = tuple[list[str], list[list[str]]]


def of_run(path: Path) -> Judged:
    """InputError where nobody judged."""
    run = description.find(path)
    table = results.load(run)
    found = judged.of_run(run, table, table.attrs["objectives"])
    if found is None:
        raise InputError(f"{run}: no {judgements.FILE} in it: nas judge {path} asks a person first")
    return found


def trials(found: Judged) -> list[dict[str, Any]]:
    """A row per judged trial, best first: the score with its interval, the share of people who prefer it to an even one, and
    what it won."""
    scores, rows = found.scores, []
    for place in sorted(range(len(scores.trials)), key=lambda place: -scores.values[place]):
        value, half = float(scores.values[place]), float(scores.half[place])
        won, lost = float(scores.wins[place].sum()), float(scores.wins[:, place].sum())
        rows.append(
            {
                "trial": scores.trials[place],
                preference.COLUMN: value,
                "low": value - half,
                "high": value + half,
                "preferred": 1 / (1 + exp(-value)),
                "comparisons": won + lost,
                "won": won,
            }
        )
    return rows


def people(found: Judged) -> list[dict[str, Any]]:
    """A row per judge, then one per two judges."""
    rows: list[dict[str, Any]] = [
        {
            "judge": judge.name,
            "other": judge.name,
            "answers": judge.answers,
            "ties": judge.ties,
            "left": judge.left,
            "seconds": judge.seconds,
            **_alike(judge.again),
        }
        for judge in found.judges
    ]
    return rows + [{"judge": one, "other": other, **_alike(alike)} for (one, other), alike in found.between.items()]


def metrics(found: Judged) -> list[dict[str, Any]]:
    """A row per metric."""
    return [
        {"metric": one.signal, "trials": one.n, "tau": one.tau, "low": one.tau_low, "high": one.tau_high}
        for one in found.metrics
    ]


def grids(found: Judged) -> Iterator[Grid]:
    """Trials, judges, metrics; numbers with two decimals."""
    for rows in (trials(found), people(found), metrics(found)):
        if rows:
            heads = list(dict.fromkeys(name for row in rows for name in row))
            yield heads, [[_shown(row.get(head)) for head in heads] for row in rows]


def write(found: Judged, path: Path) -> list[Path]:
    """The trials at `path`, and beside it the judges and the metrics; InputError where that cannot be."""
    written = []
    for suffix, rows in (("", trials(found)), ("_judges", people(found)), ("_metrics", metrics(found))):
        target = path.with_name(f"{path.stem}{suffix}{path.suffix or '.csv'}")
        try:
            files.write_csv(target, [{name: _plain(value) for name, value in row.items()} for row in rows])
        except OSError as error:
            raise InputError(f"--output {target}: {error.strerror}") from None
        written.append(target)
    return written


def _alike(alike: Alike) -> dict[str, Any]:
    return {
        "both": alike.questions,
        "alike": alike.share,
        "alike_low": alike.low,
        "alike_high": alike.high,
        "alpha": alike.alpha,
    }


def _plain(value: Any) -> Any:
    return "" if isinstance(value, float) and isnan(value) else value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.2f}"
    return "" if value is None else str(value)
