"""Where a loss says nothing about quality, the page says so: by what objectives declare of themselves."""

import pytest
import synthetic_run
import yaml

from nas import menu
from nas.analysis.findings import Run
from nas.report import page
from nas.report.chapters import losses

DENOISERS = {"denoising", "cfg_distillation", "deme", "feature_distillation", "masked_autoregression"}


def trial(cell, **settings):
    return {"cell": cell, "settings": settings}


def cells(*trials, objective="denoising"):
    return losses.told({"objective": {"name": objective}, "ablation": {"repeats": 2}}, trials)


@pytest.mark.parametrize("name", menu.names("objectives"))
def test_a_search_with_one_objective(name):
    told = losses.told({"objective": {"name": name, "prediction": "v"}}, [])
    measures = menu.pick("objectives", name).Objective.measures_progress
    assert ("raining losses" in told) == (not measures)
    assert ("denoising_loss" in told) == (name not in DENOISERS)
    assert (name in told) == (not measures or name not in DENOISERS)


def test_what_is_not_known_is_not_told():
    assert losses.told({}, []) == ""
    assert losses.told({"objective": {"name": "of_another_version"}}, [trial("reference")]) == ""
    assert losses.told({"objective": "denoising"}, []) == ""


def test_cells_are_named_where_some_are_concerned():
    given = [trial("reference"), trial("method=dmd2", objective="dmd2"), trial("method=dmd2", objective="dmd2")]
    given += [trial("method=lcm", objective={"name": "lcm", "target": "online"})]
    told = cells(*given)
    assert told.count("method=dmd2") == 1 and "in the cells method=dmd2 and method=lcm. " in told
    assert "reference" not in told and told.count("cells") == 1 and told.startswith("Neither")


def test_one_name_replaces_the_objectives_of_all():
    told = cells(trial("a", **{"objective.name": "reflow"}), trial("b", **{"objective.pairs": {}}), objective="dmd")
    neither, denoising_loss, advice = told.split(". ")
    assert neither.startswith("Neither") and neither.endswith("in the cell b")
    assert denoising_loss.startswith("denoising_loss") and denoising_loss.endswith("in the cell a")
    assert advice == "Look at the other scores."


def rewritten(run_dir, objective):
    path = run_dir / "resolved.yaml"
    settings = yaml.safe_load(path.read_text()) | {"objective": {"name": objective}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return page.render([Run.read(run_dir)])


def test_the_page_says_so_beside_the_curves(tmp_path, made_page):
    run_dir = synthetic_run.write(tmp_path / "run", trials=6, pictures=False)
    assert "training losses" not in made_page.read_text()
    text = rewritten(run_dir, "ufogen")
    section = text[text.index('id="training"') :]
    assert "Neither training losses nor denoising_loss" in section[: section.index('id="curves-0"')]


def test_the_page_of_an_ablation_names_its_cells(tmp_path):
    run_dir = synthetic_run.write_cells(tmp_path / "run", repeats=2)
    assert "training losses" not in page.render([Run.read(run_dir)])
    for number in (1, 3):
        synthetic_run.copy_with(run_dir, number, settings={"objective": {"name": "ladd"}}, cell="<pace>=ladd")
    assert "in the cell &lt;pace&gt;=ladd. Look at the other scores." in rewritten(run_dir, "denoising")
