"""Studies compared, as a page or a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nas.analysis import naming
from nas.analysis.compare import MOST_DIFFERENCES, Comparison, Study, dominations, shared_lines, spent, summary, verdict
from nas.errors import InputError
from nas.report import figures, page, stills


def write(found: Comparison, path: Path) -> Path:
    """The comparison as a page (.html) or its fronts as a picture (.png, .pdf, .svg)."""
    if path.suffix == ".html":
        return page.save(path, render(found))
    if path.suffix in (".png", ".pdf", ".svg"):
        stills.save_fronts({one.name: _complete(one) for one in found.studies}, naming.pairs(found.goals), path)
        return path
    raise InputError(f"compare: --out {path}: expected a name that ends with .html, .png, .pdf or .svg")


def render(found: Comparison) -> str:
    """The page as text."""
    complete = {one.name: _complete(one) for one in found.studies}
    drawn = {
        f"front-{place}": figures.draw_fronts(complete, x, y, shared_lines(found))
        for place, (x, y) in enumerate(naming.pairs(found.goals))
    }
    histories = {one.name: one.history for one in found.studies}
    drawn["hypervolume-0"] = figures.draw_hypervolumes(histories, found.by, found.limit)
    headings, rows = summary(found)
    body = page.page(
        "compare.html",
        names=[one.name for one in found.studies],
        paths=[str(one.run.path) for one in found.studies],
        headings=headings,
        rows=rows,
        verdict=verdict(found),
        spent=spent(found),
        dominations=dominations(found),
        differences=found.differences.head(MOST_DIFFERENCES).to_numpy().tolist(),
        fronts=[name for name in drawn if name.startswith("front")],
        heights={name: figure.layout.height for name, figure in drawn.items()},
        data=page.embedded(drawn, {"trials": {}, "captions": []}),
    )
    names = ", ".join(one.name for one in found.studies)
    return page.page("page.html", title=f"Studies compared: {names}", articles=[body], heads=[])


def _complete(study: Study) -> pd.DataFrame:
    return study.run.table[study.run.table["state"] == "complete"]
