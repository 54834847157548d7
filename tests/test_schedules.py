"""The search of schedules: against brute force, resumed after a kill, of a network small enough for seconds, with bad input."""

import itertools
import json
from pathlib import Path

import exported
import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from nas import failures
from nas.cli import app
from nas.cost import units as counting
from nas.cost.count import Count
from nas.cost.units import COMPUTE, CONV, WHOLE, Unit
from nas.diffusion.caches import cache_schedules
from nas.networks import backbones
from nas.schedules import gain, record, search, subjects, unit_times
from nas.search import schedules
from nas.search.dominance import hypervolume, nondominated
from nas.search.schedules import Archive, Genes, evolve

ROW = counting.of([Unit(f"u{n}", CONV, Count(macs=n + 1)) for n in range(6)], Count(macs=30))


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_front_that_brute_force_finds(monkeypatch, seed):
    """A quadratic of 12 bits, as systems of schedules are: 0.99 of the hypervolume of all 4,096 in 40 generations of 24."""
    monkeypatch.setattr(schedules, "HIGHEST", 0)
    form = np.random.default_rng(seed).normal(size=(12, 12))
    form = form @ form.T

    def score(modes):
        kept = (modes[1:] != COMPUTE).astype(float).ravel()
        return float(kept @ form @ kept), float(ROW.macs(ROW.effective(modes)).sum())

    archive = Archive(score)
    start = np.random.default_rng(9).integers(0, 2, (24, 3, 6)).astype(np.int8) - 1
    for generation in evolve(Genes(ROW, 3), archive, list(start), 24, seed):
        if generation == 40:
            break
    bits = np.array(list(itertools.product([COMPUTE, 0], repeat=12)), np.int8).reshape(-1, 2, 6)
    every = np.array([score(np.vstack([np.full((1, 6), COMPUTE, np.int8), one])) for one in bits])
    corner = 1.1 * every.max(axis=0)
    assert hypervolume(np.array(archive.scores), corner) >= 0.99 * hypervolume(every, corner)
    found = np.array(archive.scores)[archive.front()]
    assert nondominated(found).all() and len(archive.modes) == len({one.tobytes() for one in archive.modes})


@pytest.mark.parametrize("name", ["mobilediffusion", "pixart"])
def test_genes_say_what_the_heuristics_say(name):
    """Every preset that a genome can express comes back as it was; a depth of DeepCache among them."""
    config = backbones.presets()[name]
    units = config.units(16, 7)
    genes = Genes(units, 8)
    for preset in cache_schedules.presets(8, units):
        modes = units.canonical(preset.modes(8, units))
        assert np.array_equal(genes.modes(genes.genome(modes)), modes), preset
    random = np.random.default_rng(0).integers(0, genes.most + 1)
    modes = genes.modes(random)
    assert np.array_equal(units.canonical(modes), modes)
    assert (units.components == WHOLE).any() == bool(genes.depths)


def test_the_same_search_scores_the_same_schedules():
    def searched():
        archive = Archive(lambda modes: (float((modes == 0).sum()), float((modes == COMPUTE).sum())))
        start = [np.full((3, 6), COMPUTE, np.int8), np.zeros((3, 6), np.int8)]
        for generation in evolve(Genes(ROW, 3), archive, start, 8, 3):
            if generation == 5:
                break
        return [one.tobytes() for one in archive.modes]

    assert searched() == searched()


# --- a whole search of a small network ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def timed_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TIMED", 1)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported.run_directory(tmp_path_factory.mktemp("runs") / "small" / "2026").path


ASKED = ["--evaluations", "24", "--images", "2", "--population", "6", "--keep", "2"]
HEURISTICS = [*ASKED, "--evaluations", "1"]  # these alone


def nas(*words):
    return CliRunner().invoke(app, ["schedule", *map(str, words)])


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("schedules")
    done = nas(run, "--pick", "trial:0", *ASKED, "--out", folder)
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_it_leaves_a_table_plans_and_pictures(found, run):
    folder, said = found
    table = pd.read_csv(folder / search.TABLE)
    assert {"schedule", "macs_share", "time_share", "distance", "clip_score"} <= set(table.columns)
    whole = table[table["schedule"] == "uncached"].iloc[0]
    assert whole["macs_share"] == 1 and whole["distance"] == 0
    assert (table["macs_share"] <= 1).all() and (folder / "front.png").exists()
    subject, _ = subjects.find(run, "trial:0")
    for name, macs in zip(table["schedule"], table["macs"], strict=True):
        plan = yaml.safe_load((folder / search.PLANS / f"{search.file_name(name)}.yaml").read_text())["sampling"]
        assert subject.plan.model_copy(update={"cache": None}).model_validate(plan).macs(subject.units) == macs
    assert "generation 0" in said and "a minute" in said


def test_a_killed_search_goes_on_from_what_is_on_the_disk(found, run, tmp_path):
    """Cut in the middle of a line, the record is continued to the same lines."""
    lines = (found[0] / record.NAME).read_text().split("\n")
    (tmp_path / record.NAME).write_text("\n".join(lines[:12]) + "\n" + lines[12][:20])
    done = nas(run, "--pick", "trial:0", *ASKED, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    again = [json.loads(line) for line in (tmp_path / record.NAME).read_text().splitlines()]
    before = [json.loads(line) for line in lines if line]
    assert [one.get("rows") for one in again] == [one.get("rows") for one in before]
    assert [one.get("quality") for one in again] == [one.get("quality") for one in before]


def test_an_export_with_a_found_plan_draws_by_it(found, run, tmp_path):
    folder = found[0]
    table = pd.read_csv(folder / search.TABLE)
    name = table[table["macs_share"] < 1]["schedule"].iloc[0]
    plan = folder / search.PLANS / f"{search.file_name(name)}.yaml"
    words = ["export", run, "--pick", "trial:0", "--plan", plan, "--to", tmp_path / "model"]
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    pipeline = yaml.safe_load((tmp_path / "model/pipeline.yaml").read_text())
    assert pipeline["sampling"] == yaml.safe_load(plan.read_text())["sampling"]
    drawn = CliRunner().invoke(app, ["sample", str(tmp_path / "model"), "pizza", "--out", str(tmp_path / "drawn.png")])
    assert drawn.exit_code == 0, drawn.output
    again = nas(tmp_path / "model", *HEURISTICS, "--out", tmp_path / "again")  # an export is searched as its trial
    assert again.exit_code == 0 and (tmp_path / "again" / search.TABLE).exists(), again.output
    slow = CliRunner().invoke(app, ["latency", str(tmp_path / "model"), "--runtime", "onnxruntime"])
    assert "--runtime: onnxruntime cannot draw by the plan of" in str(slow.exception)
    fewer = CliRunner().invoke(app, ["sample", str(tmp_path / "model"), "pizza", "--steps", "1"])
    assert fewer.exit_code == 1 and "cache: its schedule has 2 rows" in str(fewer.exception)
    deploy = yaml.safe_load((tmp_path / "model/deploy.yaml").read_text())
    assert deploy["conditions"]["clip_score"]["cache"] == pipeline["sampling"]["cache"]
    assert deploy["scores"]["clip_score"] == pytest.approx(
        float(table[table["schedule"] == name]["clip_score"].iloc[0])
    )


def test_a_score_that_is_to_be_large_is_told_as_it_is(run, tmp_path):
    done = nas(run, "--pick", "trial:0", *HEURISTICS, "--quality", "clip_score", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / search.TABLE)
    whole = table[table["schedule"] == "uncached"].iloc[0]
    assert np.sign(whole["calibration"]) == np.sign(whole["clip_score"]) and abs(whole["calibration"]) < 100


def test_a_schedule_that_draws_no_numbers_is_behind_all_others_and_ends_nothing(run, tmp_path, monkeypatch):
    subject, _ = subjects.find(run, "trial:0")
    searching = search.Search(subject, search.Settings(images=2, evaluations=20, population=8, keep=3), tmp_path)
    pictures, drawn = type(subject).pictures, []

    def failing(self, task, plan):
        drawn.append(plan)
        if len(drawn) == 4:
            raise failures.Diverged("no numbers")
        return pictures(self, task, plan)

    monkeypatch.setattr(type(subject), "pictures", failing)
    searching.evolve(lambda line: None)
    qualities = [quality for quality, _ in searching.archive.scores]
    assert qualities.count(search.WORST) == 1
    assert all(searching.archive.of(modes)[0] < search.WORST for modes in searching.chosen().values())


def test_units_are_timed(run, tmp_path):
    subject, _ = subjects.find(run, "trial:0")
    asked = search.Settings(images=2, cost="ms")
    searching = search.Search(subject, asked, tmp_path)
    full = np.full((2, len(subject.units)), COMPUTE, np.int8)
    assert searching.cost(full) == 1.0 > searching.cost(np.zeros_like(full)) > 0
    times = unit_times.Times.read(tmp_path / "unit_times.csv", subject.units)
    assert (times.own > 0).all() and times.rest > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quality", "fiid"], "--quality fiid: not measured here; expected one of distance, fid"),
        (["--pick", "trial:7"], "trial:7"),
        (["--cost", "watts"], "--cost watts: expected macs or ms"),
        (["--images", "3"], "holds a search with images 2, asked for 3"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, found, words, message):
    before = sorted(path.stat().st_mtime_ns for path in Path(found[0]).rglob("*"))
    pick = [] if "--pick" in words else ["--pick", "trial:0"]
    done = nas(run, *pick, *ASKED, *words, "--out", found[0])
    assert message in str(done.exception) and "\n" not in str(done.exception)
    assert sorted(path.stat().st_mtime_ns for path in Path(found[0]).rglob("*")) == before


def test_a_study_without_a_base_is_refused():
    done = nas("studies/quickstart")
    assert "has only its base to draw, and it has no base" in str(done.exception)


def test_the_gain_is_nothing_where_nothing_better_was_found_and_certain_where_it_is_for_every_picture():
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 3, 50)
    names = ["uncached", "fora", "found"]
    table = pd.DataFrame({"schedule": names, "macs_share": [1.0, 0.5, 0.5], "found": [False, False, True]})
    worse = gain.gain(table, {"uncached": 0 * base, "fora": base, "found": 2 * base})
    assert worse.found == worse.heuristics and (worse.low, worse.high) == (0, 0)
    better = gain.gain(table, {"uncached": 0 * base, "fora": 2 * base, "found": base})
    box = (
        0.5 * 0.5
    )  # between shares 0.5 and 1, where the distance of the uncached ends, and over half of the largest distance
    assert better.found - better.heuristics == pytest.approx(box)
    assert 0 < better.low < better.found - better.heuristics < better.high
