"""The report of runs: one HTML file that answers the study's question, readable offline, on a phone and in print.

`nas.analysis.findings` and `nas.analysis.importance` compute, `nas.report.figures` draws, `nas.report.sections` words,
`pages/` sets out. Every caption, name and reason is escaped by the template.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.analysis import findings, importance, naming, results
from nas.analysis.findings import Run
from nas.disk import files
from nas.errors import InputError
from nas.report import details, figures, parallel, sections, stills
from nas.report.chapters import decoders, evolution, preference, schedules
from nas.report.palette import FRONT, GREY, KNEE, PALE
from nas.runs import pictures

PAGES = Path(__file__).with_name("pages")
MOST_AXES_DRAWN = 12
MOST_PICTURES = 64  # grids of samples in a page
PICTURE_BYTES = 3_200_000  # of a run in a page; with its data and the plot library below 6 MB
SECTIONS = ("cells", "front", "effects", "curves", "budget", "components", "hypervolume")


def write(run_dir: Path) -> Path:
    """Write `results.csv` and `report.html` into the run directory; returns the page's path."""
    results.write_csv(run_dir)
    return save(Path(run_dir) / "report.html", render([Run.read(run_dir)]))


def write_together(run_dirs: Sequence[Path], path: Path) -> Path:
    """Several runs as one page, the plot library in it once."""
    return save(path, render([Run.read(run_dir) for run_dir in run_dirs]))


def save(path: Path, page: str) -> Path:
    """Whole or not at all; a folder that is not there is an InputError."""
    try:
        files.write_text(path, page)
    except OSError as error:
        raise InputError(f"{path}: cannot write the page: {error.strerror}") from None
    return path


def write_figures(run_dir: Path, suffix: str) -> list[Path]:
    """Every figure of a run as `figures/<name>.<suffix>` (pdf, png, svg) in its directory, for a paper."""
    run = Run.read(run_dir)
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    return stills.save_run(run, folder, suffix)


def front_png(run_dir: Path, path: Path) -> Path:
    """Draw the front as a picture for a README (150 dots an inch, one panel per pair of objectives, at most three)."""
    stills.save_front(Run.read(run_dir), path)
    return path


def render(runs: Sequence[Run]) -> str:
    """The page as text, with the plot library inside. Of several runs, the parts of each begin with its letters."""
    prefixes = [""] if len(runs) == 1 else [f"r{place}-" for place in range(len(runs))]
    shown = [article(run, prefix) for run, prefix in zip(runs, prefixes, strict=True)]
    kind = "ablation" if all(run.is_ablation for run in runs) else "architecture search"
    title = f"{', '.join(run.name for run in runs)}: {kind}"
    heads = [(prefix, run.name, str(run.path)) for run, prefix in zip(runs, prefixes, strict=True)]
    return page("page.html", title=title, articles=shown, heads=heads)


def article(run: Run, prefix: str) -> str:
    """One run's part of a page."""
    drawn = {prefix + name: figure for name, figure in _figures(run).items()}
    best = [int(trial) for trial in run.best["trial"]]
    order = sorted(best, key=lambda trial: trial != run.knee)  # the winner's pictures are the last to go
    others = run.table.loc[run.table["state"].isin(["complete", "stopped"]), "trial"]
    rest = [int(trial) for trial in others if trial not in set(best)]
    album = pictures.album(run.path, order, rest, MOST_PICTURES, PICTURE_BYTES)
    known = pictures.known(run.path, list(run.lines))
    lines = None if run.is_ablation else parallel.lines(run.table, run.goals)
    plots = {section: [name for name in drawn if _section(name, prefix) == section] for section in SECTIONS}
    return page(
        "report.html",
        **sections.contents(run, album, known),
        id=prefix,
        album={**album, **known},
        guidance=pictures.whole(run.path / "guidance.png"),
        schedules=schedules.of_run(run.path),
        decoders=decoders.of_run(run),
        evolution=evolution.told(run),
        people=preference.told(run),
        plots=plots,
        heights={name: figure.layout.height for name, figure in drawn.items()},
        parallel=lines is not None,
        colours={"front": FRONT, "knee": KNEE, "rest": GREY, "stopped": PALE},
        data=embedded(drawn, {**details.of_run(run, album), "parallel": lines}),
    )


def page(template: str, **values: Any) -> str:
    """A template of `pages/`, everything escaped; what `article` and `embedded` made is passed as it is."""
    return str(_templates().get_template(template).render(**values))


@functools.cache
def _templates() -> Any:
    """Jinja's environment over `pages/`, in which a template is compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["plotly"] = plotly
    environment.globals["included"] = lambda name: Markup((PAGES / name).read_text(encoding="utf-8"))
    environment.filters["made"] = Markup
    return environment


def embedded(drawn: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    """Figures and other values as JSON, `packed`."""
    figures_json = ",".join(f"{json.dumps(name)}:{figure.to_json()}" for name, figure in drawn.items())
    rest = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in more.items())
    return packed(f'{{"figures":{{{figures_json}}}{rest}}}')


def packed(text: str) -> str:
    """Text for a script element that the page unpacks (`unpacked` in page.js): gzip as base64."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@functools.cache
def plotly() -> str:
    """The plot library, `packed` to two fifths of its size."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


# --- which figures ---------------------------------------------------------------------------------------------------


def _section(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).split("-")[0]


def _figures(run: Run) -> dict[str, Any]:
    """Every figure of a run by name; the part before the dash is its section."""
    drawn = _cell_figures(run) if run.is_ablation else _search_figures(run)
    return drawn | _curve_figures(run) | _component_figures(run)


def _cell_figures(run: Run) -> dict[str, Any]:
    return {
        f"cells-{place}": figures.draw_differences(kinds["differences"], run.table, column)
        for place, (column, kinds) in enumerate(run.effects.items())
        if "differences" in kinds
    }


def _search_figures(run: Run) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    points = findings.pareto(run.table, run.goals, run.lines)
    if len(points):
        forecasts = findings.forecasts(run.looks, run.table, run.goals, run.earlier)
        for place, (x, y) in enumerate(naming.pairs(run.goals)):
            figure = figures.draw_pareto(points, x, y, run.budget, run.lines, forecasts)
            drawn[f"front-{place}"] = figure.update_layout(showlegend=False)
    for place, column in enumerate(run.scores):
        by_choice = importance.scores_by_choice(run.table, run.curves, column)
        found = importance.effects(by_choice)
        axes = list(dict.fromkeys(found["axis"]))[:MOST_AXES_DRAWN]
        if axes:
            kept = by_choice[by_choice["axis"].isin(axes)], found[found["axis"].isin(axes)]
            drawn[f"effects-{place}"] = figures.draw_effects(*kept, column)
    for place, (column, limit) in enumerate(run.budget.items()):
        proposed = run.table[run.table[column].notna()]
        if len(proposed):
            drawn[f"budget-{place}"] = figures.draw_proposed(proposed, column, limit)
    if run.table["on_front"].any():
        drawn["hypervolume-0"] = figures.draw_hypervolume(findings.hypervolume(run.table, run.goals))
    return drawn


def _curve_figures(run: Run) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    chosen = run.table["state"] == "complete" if run.is_ablation else run.table["on_front"]
    columns = [column for column in dict.fromkeys([*run.scores, "denoising_loss"]) if column in run.curves]
    reasons = run.table.set_index("trial")["reason"]
    curves = run.curves.assign(reason=run.curves["trial"].map(reasons))
    for place, column in enumerate(columns if len(curves) else []):
        figure = figures.draw_curves(curves, column, run.table.loc[chosen, "trial"].astype(int), run.lines)
        drawn[f"curves-{place}"] = figure.update_layout(showlegend=False)
    return drawn


def _component_figures(run: Run) -> dict[str, Any]:
    costs = sections.components(run)
    if costs["trial"].nunique() < 2:
        return {}
    order = [int(trial) for trial in run.best["trial"] if trial in set(costs["trial"])]
    kind = "cell" if run.is_ablation else "trial"
    cells = run.table.set_index("trial")["cell"] if run.is_ablation else None
    names = {trial: str(cells[trial]) if cells is not None else f"{kind} {trial}" for trial in order}
    names |= {run.knee: f"trial {run.knee} (knee)"} if run.knee in names else {}
    return {"components-0": figures.draw_components(costs, "macs", names)}
