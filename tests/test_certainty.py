"""What a report says of its own certainty, from runs made by hand."""

import json

import numpy as np
import pytest
import synthetic_run

from nas.analysis import certainty, fronts, results
from nas.analysis.statistics import agreement
from nas.report import page as report
from nas.runs import description
from nas.search import racing

GOALS = {"fid_efficientnet_lite0": "minimise", "macs": "minimise", "clip_score": "maximise"}


@pytest.fixture
def run_dir(tmp_path):
    return synthetic_run.write(tmp_path / "study" / "run")


def stored(settings, tau_low):
    """A trust in the proxy of these settings, the same for every score."""
    kind = "scratch" if settings["training"]["init"] == "scratch" else "warm"
    rows = [
        agreement.Agreement(f"{kind}: {column}", column, 16, 0.7, tau_low, 0.9, 0.1, 0.0, 0.3)
        for column in ("fid_efficientnet_lite0", "clip_score")
    ]
    return agreement.Trust(agreement.proxy_settings(settings), 16, 2, 40_960, tuple(rows))


def test_verdicts_are_those_of_the_measurements(run_dir):
    table = results.load(run_dir)
    found = certainty.of_front(table, GOALS)
    assert found.degrees == 1  # trials 2 and 4 are one architecture
    pair = table[table["trial"].isin([2, 4])]["clip_score"].to_numpy(float)
    assert found.noise["clip_score"] == pytest.approx(np.std(pair, ddof=1))
    assert "macs" not in found.noise
    listed = {one.trial for one in found.contenders}
    assert set(table.loc[table["on_front"], "trial"]) <= listed and 4 not in listed
    by_trial = {one.trial: one for one in found.contenders}
    assert all(one.means["clip_score"] > 0 for one in found.contenders)  # in the column's own sign
    if 2 in by_trial:
        assert by_trial[2].trials == 2 and by_trial[2].means["clip_score"] == pytest.approx(pair.mean())
    low, high = found.hypervolume
    assert 0 <= low <= high <= 1


def test_the_interval_is_of_95_percent_whatever_calls_a_place_sure(run_dir):
    table = results.load(run_dir)
    measured = fronts.measurements(table, GOALS)
    signs = np.array([1, 1, -1])
    corner = signs * np.array(list(fronts.reference_point(table, GOALS).values()))
    box = np.prod(corner - np.min([rows.min(axis=0) for rows in measured.values()], axis=0))
    found = np.array(certainty.of_front(table, GOALS, confidence=0.6).hypervolume) * box
    wanted, narrower = (racing.hypervolume_interval(measured, corner, confidence=share) for share in (0.95, 0.6))
    assert found == pytest.approx(np.minimum(wanted, box)) and np.diff(wanted) > np.diff(narrower)


def test_without_repeats_nothing_is_claimed(run_dir):
    table = results.load(run_dir)
    once = table[~table["trial"].isin([4])]
    found = certainty.of_front(once, GOALS)
    assert found.degrees == 0 and found.hypervolume is None and found.noise == {}
    assert {one.place for one in found.contenders} == {"perhaps"}
    assert certainty.of_front(table[table["state"] == "failed"], GOALS).contenders == ()


def test_the_warning_names_the_scores_whose_interval_reaches_too_low(run_dir, tmp_path):
    settings = description.resolved(run_dir)
    assert "was not measured" in certainty.warning(settings, tmp_path)
    stored(settings, 0.5).save(tmp_path)
    assert certainty.warning(settings, tmp_path) == ""
    stored(settings, 0.29).save(tmp_path)
    told = certainty.warning(settings, tmp_path)
    assert "weak signal" in told and "CLIP score 0.70 [0.29, 0.90]" in told and "1 is the same order" in told


def test_the_report_shows_both(run_dir):
    settings = description.resolved(run_dir)
    stored(settings, 0.1).save(run_dir.parent.parent / ".cache")
    page = report.write(run_dir).read_text()
    assert "Who is on the front for sure" in page and "degrees of freedom" in page
    assert "How far these trials can be trusted" in page and "weak signal" in page and "0.70 [0.10, 0.90]" in page
    assert "<td>brief trial: same score</td>" in page.replace("\n", "") and "tau, FID (efficientnet_lite0)" in page


def test_a_stored_trust_of_other_settings_is_not_taken(run_dir, tmp_path):
    settings = description.resolved(run_dir)
    path = stored(settings, 0.5).save(tmp_path)
    changed = json.loads(json.dumps(settings))
    changed["training"]["images_seen"] += 1
    assert agreement.find(settings, tmp_path) is not None and path.exists()
    assert agreement.find(changed, tmp_path) is None
