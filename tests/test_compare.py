import json

import numpy as np
import pandas as pd
import pytest
import synthetic_run
import yaml
from PIL import Image
from test_report import data_of

from nas.analysis import compare, fronts, results
from nas.errors import InputError
from nas.report import comparison
from nas.search import dominance

GOALS = {"fid_efficientnet_lite0": "minimise", "macs": "minimise", "clip_score": "maximise"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [synthetic_run.write(root / f"s{seed}" / "run", trials=30, seed=seed, pictures=False) for seed in (0, 1)]


@pytest.fixture(scope="module")
def found(runs):
    return compare.of_runs(runs)


def edited(run_dir, root, **settings):
    """A copy of a run with other settings."""
    import shutil

    copy = root / "copy"
    shutil.copytree(run_dir, copy)
    path = copy / "resolved.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return copy


def test_domination_equals_brute_force(found):
    one, two = found.studies
    signs = np.array([1, 1, -1])
    expected = set()
    for mine, other in ((one, two), (two, one)):
        fronts = [s.run.table[s.run.table["on_front"]] for s in (mine, other)]
        for _, a in fronts[0].iterrows():
            for _, b in fronts[1].iterrows():
                x, y = (signs * r[list(GOALS)].to_numpy(dtype=float) for r in (a, b))
                if (y <= x).all() and (y < x).any():
                    expected.add((mine.name, a["trial"], b["trial"]))
    told = {(row["study"], row["trial"], by) for row in found.dominated.to_dict("records") for by in row["by_trials"]}
    assert told == expected and expected
    lost = {name: len({trial for study, trial, _ in expected if study == name}) for name in (one.name, two.name)}
    assert all(study.left == study.run.table["on_front"].sum() - lost[study.name] for study in found.studies)


def test_compute_is_equal_and_the_share_that_of_the_trials_within_it(found):
    totals = [study.history["macs"].iloc[-1] for study in found.studies]
    assert found.limit == min(totals)
    together = pd.concat([study.run.table for study in found.studies], ignore_index=True)
    reference = fronts.reference_point(together, GOALS)
    signs = np.array([1, 1, -1])
    corner = signs * np.array(list(reference.values()))
    complete = together[together["state"] == "complete"]
    box = np.prod(corner - (complete[list(GOALS)].astype(float).to_numpy() * signs).min(axis=0))
    for study in found.studies:
        within = study.run.table[(study.history["macs"] <= found.limit * (1 + 1e-9)).to_numpy()]
        trained = within[within["state"] == "complete"]
        points = trained[list(GOALS)].astype(float).groupby(trained["key"]).mean().to_numpy() * signs
        assert study.at == pytest.approx(dominance.hypervolume(points, corner) / box)
        assert study.interval[0] <= study.at <= study.interval[1]
        last = study.history[study.history["macs"] <= found.limit * (1 + 1e-9)]["share"].iloc[-1]
        assert study.at == pytest.approx(last)


def test_a_lucky_repeat_counts_only_in_the_mean():
    table = pd.DataFrame({"key": ["a", "b", "a"], "a": [0.4, 0.2, 0.0], "b": [0.4, 0.8, 0.2], "state": "complete"})
    at, (low, high) = compare.spread(table, {"a": "minimise", "b": "minimise"}, {"a": 1.0, "b": 1.0})
    assert at == pytest.approx(0.8 * 0.7)  # the box of a's mean, (0.2, 0.3), holds that of b
    assert low < at < high


def test_training_macs_are_three_passes_an_image_or_those_that_were_recorded(runs):
    from nas.analysis import findings

    table = results.load(runs[0])
    spent = findings.compute(table)
    by_hand = sum(
        3 * r["rungs"][-1]["images_seen"] * r["proxy_cost"]["macs"] for r in results.records(runs[0]) if r["rungs"]
    )
    assert spent["macs"].iloc[-1] == pytest.approx(by_hand)
    assert spent["images"].iloc[-1] == table["images_seen"].sum()
    dearer = findings.compute(table.assign(passes=42.0))  # of an objective with networks beside the generator
    assert dearer["macs"].iloc[-1] == pytest.approx(14 * by_hand)
    older = findings.compute(table.drop(columns="passes"))
    assert older["macs"].iloc[-1] == pytest.approx(by_hand)


def test_the_interval_covers_what_other_runs_would_reach():
    """Random search drawn again and again: the interval of one covers the mean over many, in most of 40 cases (0.92 expected)."""
    rng = np.random.default_rng(0)
    goals, reference = {"a": "minimise", "b": "minimise"}, {"a": 1.0, "b": 1.0}

    def drawn():
        points = rng.random((30, 2)) ** 1.5
        return pd.DataFrame({"key": range(30), "a": points[:, 0], "b": points[:, 1], "state": "complete"})

    many = [dominance.hypervolume(drawn()[["a", "b"]].to_numpy(), np.ones(2)) for _ in range(500)]
    intervals = [compare.spread(drawn(), goals, reference, draws=60, seed=seed)[1] for seed in range(40)]
    covered = np.mean([low <= np.mean(many) <= high for low, high in intervals])
    assert covered >= 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {"name": "coco"}}, "dataset.name is None and coco"),
        ({"deploy": {"image_size": 256}}, "deploy.image_size is None and 256"),
        ({"search": {"minimise": ["macs"], "maximise": ["clip_score"]}}, "different objectives"),
        ({"ablation": {"minimise": ["macs"]}, "search": None}, "an ablation has no front"),
        ({"provenance": {"format": 99}}, "written by a newer nas"),
    ],
)
def test_what_does_not_compare_is_refused_by_name(runs, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        compare.of_runs([runs[0], edited(runs[1], tmp_path, **change)])
    assert "\n" not in str(caught.value)


def test_other_conditions_are_refused_by_name(runs, tmp_path):
    copy = edited(runs[1], tmp_path)
    path = copy / "conditions.json"
    conditions = json.loads(path.read_text())
    conditions["caption_accuracy"]["images"] = 8  # no objective: does not matter
    path.write_text(json.dumps(conditions))
    compare.of_runs([runs[0], copy])
    conditions["clip_score"]["guidance"] = 7.5
    path.write_text(json.dumps(conditions))
    with pytest.raises(InputError, match=r"clip_score cannot be compared .* guidance is 3.0 and 7.5"):
        compare.of_runs([runs[0], copy])


def test_bad_input_is_one_line(runs, tmp_path):
    unfinished = synthetic_run.write(tmp_path / "none", states=["stopped", "failed"], trials=2)
    for given, by, message in (
        (runs[:1], "macs", "at least two"),
        (runs, "imges", "did you mean 'images'"),
        ([runs[0], unfinished], "macs", "no trial was trained to the end"),
        ([runs[0], tmp_path / "nothing"], "macs", "not a run directory"),
    ):
        with pytest.raises(InputError, match=message):
            compare.of_runs(given, by)


def test_a_run_and_its_copy_are_told_to_be_the_same(runs, tmp_path):
    alike = compare.of_runs([runs[0], edited(runs[0], tmp_path)])
    assert "hold the same 15 trainings: one is a copy of the other" in compare.verdict(alike)
    assert "chance" not in compare.verdict(alike)
    number = next(iter(alike.studies[0].run.table.query("state == 'complete'")["trial"]))
    synthetic_run.copy_with(
        tmp_path / "copy", int(number), finished="2025-03-02T00:00:00+00:00"
    )  # one was trained again
    assert "14 trainings of theirs are the same" in compare.verdict(compare.of_runs([runs[0], tmp_path / "copy"]))
    assert "the same" not in compare.verdict(compare.of_runs(runs))


def test_lines_of_reference_that_all_have_alike_stand_beside_the_studies(runs, tmp_path):
    import shutil

    one, two = (shutil.copytree(run, tmp_path / str(place) / "run") for place, run in enumerate(runs))
    synthetic_run.write_lines(one)
    synthetic_run.write_lines(two, base={"clip_score": 20.0})
    found = compare.of_runs([one, two])
    _, rows = compare.summary(found)
    assert [row[0] for row in rows[2:]] == ["real", "other real", "copies", "untrained"]  # the bases differ
    assert rows[4][-3:] == ["55.00", "", "29.00"]
    assert "untrained 437.0" in json.dumps(data_of(comparison.render(found)))
    assert len(compare.summary(compare.of_runs(runs))[1]) == 2  # older runs have none


def test_page_and_picture(found, tmp_path):
    page = comparison.write(found, tmp_path / "both.html").read_text()
    assert compare.verdict(found).split(":")[0] in page and '"front-2"' in page
    with Image.open(comparison.write(found, tmp_path / "both.png")) as image:
        assert image.width > 1500
    with pytest.raises(InputError, match=r"both.doc: expected a name that ends with .html"):
        comparison.write(found, tmp_path / "both.doc")
    with pytest.raises(InputError, match="cannot write"):
        comparison.write(found, tmp_path / "nowhere" / "both.html")


def test_names_are_escaped(runs, tmp_path):
    page = comparison.render(compare.of_runs([runs[0], edited(runs[1], tmp_path, name="<script>alert(1)</script>")]))
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_settings_that_differ_are_listed(runs, tmp_path):
    found = compare.of_runs(
        [runs[0], edited(runs[0], tmp_path, training={"init": "scratch", "images_seen": 20480, "batch": 64})]
    )
    assert found.differences["setting"].tolist() == ["training.init"]
    assert found.differences.iloc[0, 1:].tolist() == ["supernet", "scratch"]
