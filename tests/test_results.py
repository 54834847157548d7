import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import synthetic_run
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.analysis import certainty, findings, fronts, picking, results
from nas.errors import InputError
from nas.runs import description
from nas.search import dominance

GOALS = {"fid_efficientnet_lite0": "minimise", "macs": "minimise", "clip_score": "maximise"}


def table_of(points, goals, states=None):
    """A frame of complete trials with the given objective values."""
    records = [
        {"trial": number, "key": str(number), "state": (states or {}).get(number, "complete"), "reason": "",
         "rungs": [{"rung": 0, "images_seen": 10, "metrics": dict(zip(goals, point, strict=True))}]}
        for number, point in enumerate(points)
    ]  # fmt: skip
    return results.frame(records, {}, goals)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_one_row_per_trial_with_the_last_rung(run_dir):
    table = results.load(run_dir)
    record = json.loads((run_dir / "trials" / "0002" / "record.json").read_text())
    row = table.iloc[2]
    assert list(table["trial"]) == list(range(24))
    assert row["rung"] == 2 and row["images_seen"] == 20480
    assert row["clip_score"] == record["rungs"][-1]["metrics"]["clip_score"]
    assert row["macs"] == record["cost"]["macs"] and row["proxy_macs"] == record["proxy_cost"]["macs"]
    assert row["train_s"] == 4.0 + 8.0 + 16.0  # summed over rungs
    assert row["wall_s"] == 28.0
    assert row["arch.depth"] == record["choices"]["depth"]
    assert set(table["state"]) == set(results.STATES)


def test_missing_is_an_empty_cell_never_a_number(run_dir):
    table = results.load(run_dir)
    refused = table[table["state"] == "over_budget"]
    assert (
        len(refused) and refused[["clip_score", "rung", "images_seen", "train_s", "peak_memory_mib"]].isna().all().all()
    )
    assert refused["macs"].notna().all()
    back = pd.read_csv(results.write_csv(run_dir))
    assert back[back["state"] == "over_budget"]["clip_score"].isna().all()


def test_csv_round_trip_is_exact(run_dir):
    table = results.load(run_dir)
    path = results.write_csv(run_dir)
    back = pd.read_csv(path)
    assert path == run_dir / "results.csv" and list(back) == list(table)
    for column in ("trial", "macs", "clip_score", "rung", "images_per_s", "arch.depth"):
        assert back[column].astype(float).equals(table[column].astype("Float64").astype(float))
    assert back["on_front"].tolist() == table["on_front"].tolist()


def test_a_run_without_trials(tmp_path):
    table = results.load(synthetic_run.write(tmp_path / "run", trials=0))
    assert len(table) == 0 and "clip_score" in table and "on_front" in table
    assert fronts.hypervolume_history(table, GOALS).empty


def test_unfinished_folders_are_skipped_and_broken_records_named(run_dir):
    (run_dir / "trials" / "0024").mkdir()
    assert len(results.load(run_dir)) == 24
    (run_dir / "trials" / "0024" / "record.json").write_text('{"trial": 24, ')
    with pytest.raises(InputError, match=r"0024.record\.json: not JSON: .*; nas run puts it aside"):
        results.load(run_dir)


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"expected the file resolved\.yaml"):
        results.load(tmp_path)


def test_objectives_come_from_the_settings():
    assert results.objectives({"search": {"minimise": ["a", "b"], "maximise": ["c"]}}) == {
        "a": "minimise",
        "b": "minimise",
        "c": "maximise",
    }
    with pytest.raises(InputError, match="names no objective"):
        results.objectives({"search": {"trials": 3}})


def test_lists_among_the_choices_become_text(run_dir):
    synthetic_run.copy_with(run_dir, 0, choices={"levels": [1, 2], "depth": 2})
    assert results.load(run_dir)["arch.levels"].iloc[0] == "[1, 2]"


def test_an_unknown_cost_is_a_column_like_the_others(run_dir):
    synthetic_run.copy_with(run_dir, 0, cost={"params": 5, "latency_ms": 12.5})
    table = results.load(run_dir)
    assert table["latency_ms"].iloc[0] == 12.5 and table["macs"].isna().iloc[0]
    assert picking.pick(table, GOALS, "best:latency_ms") == 0


def test_curves_have_every_rung(run_dir):
    curves = results.curves(results.records(run_dir))
    complete = curves[curves["state"] == "complete"]
    assert set(complete.groupby("trial").size()) == {3}
    assert set(curves[curves["state"] == "stopped"].groupby("trial").size()) == {1}


def test_runs_with_other_conditions_are_not_joined(run_dir, tmp_path):
    other = synthetic_run.write(tmp_path / "other", seed=1)
    joined = results.concat([results.load(run_dir), results.load(other)])
    assert len(joined) == 48 and list(joined["run"].unique()) == [0, 1]
    found = json.loads((other / "conditions.json").read_text())
    found["clip_score"]["steps"] = 25
    (other / "conditions.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="clip_score cannot be compared between these runs: steps is 10 and 25"):
        results.concat([results.load(run_dir), results.load(other)])


def test_an_architecture_trained_twice_counts_once_with_its_mean(run_dir):
    table = results.load(run_dir)
    goals = results.objectives(description.resolved(run_dir))
    raw, pooled = fronts.minimised(table, goals), fronts.pooled(table, goals)
    first, second = (int(np.flatnonzero(table["trial"] == trial)[0]) for trial in (2, 4))
    assert table["key"][first] == table["key"][second]
    assert pooled[first] == pytest.approx((raw[first] + raw[second]) / 2)
    assert np.isnan(pooled[second]).all() and not table["on_front"][second]
    others = [row for row in range(len(table)) if row not in (first, second)]
    assert np.array_equal(pooled[others], raw[others], equal_nan=True)
    measured = fronts.measurements(table, goals)
    assert measured[table["key"][first]] == pytest.approx(raw[[first, second]])
    assert sum(map(len, measured.values())) == (table["state"] == "complete").sum()


def test_cells_of_one_architecture_are_no_repeats_of_each_other(tmp_path):
    table = results.load(synthetic_run.write_cells(tmp_path / "cells" / "2026", repeats=3))
    goals = {"fid_efficientnet_lite0": "minimise"}
    assert table["key"].nunique() == 1
    assert fronts.pooled(table, goals)[:2, 0] == pytest.approx([101.2, 91.3])
    assert picking.pick(table, goals, "knee") == 1
    table["on_front"] = fronts.front(table, goals)
    (best,) = certainty.of_front(table, goals).contenders
    assert (best.trial, best.trials) == (1, 3) and best.means["fid_efficientnet_lite0"] == pytest.approx(91.3)


# --- fronts ----------------------------------------------------------------------------------------------------------


def brute_force(points):
    """The definition of Pareto dominance, pair by pair."""

    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [not any(beats(other, point) for other in points) for point in points]


@given(st.integers(1, 4).flatmap(lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), max_size=12)))
def test_front_equals_brute_force(points):
    goals = {f"m{index}": "minimise" for index in range(len(points[0]) if points else 2)}
    assert fronts.front(table_of(points, goals), goals).tolist() == brute_force(points)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=10))
def test_maximising_is_minimising_the_negative(points):
    up = {"a": "minimise", "b": "maximise"}
    down = {"a": "minimise", "b": "minimise"}
    flipped = [(a, -b) for a, b in points]
    assert fronts.front(table_of(points, up), up).tolist() == fronts.front(table_of(flipped, down), down).tolist()


def test_ties_stay_and_unfinished_or_unmeasured_trials_do_not():
    goals = {"a": "minimise", "b": "minimise"}
    points = [(1, 1), (1, 1), (0, 0), (float("nan"), 0)]
    assert fronts.front(table_of(points, goals, {2: "stopped"}), goals).tolist() == [True, True, False, False]


def test_unknown_objective_names_the_nearest():
    with pytest.raises(InputError, match="unknown objective 'clip_scor'; did you mean 'clip_score'"):
        fronts.front(table_of([(1,)], {"clip_score": "maximise"}), {"clip_scor": "maximise"})


def inclusion_exclusion(points, corner):
    """The union of boxes by its definition."""
    return sum(
        (-1) ** (size + 1) * np.prod(np.clip(corner - np.max(chosen, axis=0), 0, None))
        for size in range(1, len(points) + 1)
        for chosen in itertools.combinations(points, size)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda m: st.lists(st.lists(st.integers(0, 6), min_size=m, max_size=m), min_size=1, max_size=6)
    )
)
def test_hypervolume_equals_inclusion_exclusion(points):
    points = np.array(points, dtype=float)
    corner = np.full(points.shape[1], 5.0)
    assert dominance.hypervolume(points, corner) == pytest.approx(inclusion_exclusion(points, corner), abs=1e-9)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_near_monte_carlo(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.random((30, objectives))
    drawn = rng.random((100_000, objectives))
    share = (drawn[:, None, :] >= points[None]).all(axis=2).any(axis=1).mean()
    assert dominance.hypervolume(points, np.ones(objectives)) == pytest.approx(
        share, abs=0.006
    )  # about 4 standard errors


def test_hypervolume_of_nothing():
    assert dominance.hypervolume(np.empty((0, 3)), np.ones(3)) == 0.0
    assert dominance.hypervolume(np.array([[2.0, 0.0]]), np.ones(2)) == 0.0


def of_means(table, goals, corner):
    """Hypervolume of the means over repeats, with neither the package's grouping nor its hypervolume."""
    found = {}
    for row in table[table["state"] == "complete"].to_dict("records"):
        found.setdefault(row["key"], []).append(
            [float(row[c]) * (1 if way == "minimise" else -1) for c, way in goals.items()]
        )
    means = np.array([np.mean(rows, axis=0) for rows in found.values()]).reshape(-1, len(goals))
    return inclusion_exclusion(means, corner)


def test_history_is_that_of_the_front_at_every_trial(run_dir):
    table = results.load(run_dir)
    reference = fronts.reference_point(table, GOALS)
    history = fronts.hypervolume_history(table, GOALS)
    corner = np.array([1, 1, -1]) * np.array([reference[column] for column in GOALS])
    expected = [of_means(table[:count], GOALS, corner) for count in range(1, len(table) + 1)]
    assert history["hypervolume"].to_numpy() == pytest.approx(np.array(expected))
    assert history["images_trained"].iloc[-1] == table["images_seen"].sum()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("column", ["a", "b"])
def test_what_is_not_finite_counts_nowhere(bad, column):
    """Neither on the front, nor in the corner, nor in the volume, nor in its share of the box."""
    goals = {"a": "minimise", "b": "maximise"}
    whole = table_of([(4.0, 1.0), (2.0, 2.0), (3.0, 5.0)], goals)
    broken = table_of([(4.0, 1.0), (2.0, 2.0), (bad, 9.0) if column == "a" else (0.0, bad), (3.0, 5.0)], goals)
    assert fronts.front(broken, goals).tolist() == [False, True, False, True]
    assert fronts.reference_point(broken, goals) == fronts.reference_point(whole, goals)
    expected = fronts.hypervolume_history(whole, goals)["hypervolume"].tolist()
    for history in (fronts.hypervolume_history(broken, goals), findings.hypervolume(broken, goals)):
        assert history["hypervolume"].tolist() == pytest.approx([*expected[:2], expected[1], expected[2]])
    shares = findings.hypervolume(whole, goals)["share"].tolist()
    assert findings.hypervolume(broken, goals)["share"].tolist() == pytest.approx([*shares[:2], shares[1], shares[2]])
    corner = fronts.reference_point(whole, goals)
    assert fronts.hypervolume_box(broken, goals, corner) == fronts.hypervolume_box(whole, goals, corner)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.integers(0, 5), st.integers(0, 5), st.sampled_from(["complete", "stopped"])
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_lucky_repeat_counts_only_in_the_mean(rows):
    table = pd.DataFrame(rows, columns=["key", "a", "b", "state"]).assign(trial=range(len(rows)), images_seen=1)
    goals, corner = {"a": "minimise", "b": "maximise"}, np.array([6.0, 1.0])
    history = fronts.hypervolume_history(table[::-1], goals, {"a": 6.0, "b": -1.0})
    expected = [of_means(table[: count + 1], goals, corner) for count in range(len(table))]
    assert history["hypervolume"].to_numpy() == pytest.approx(np.array(expected), abs=1e-9)


# --- picking ---------------------------------------------------------------------------------------------------------


def test_knee_is_farthest_below_the_line_through_the_ends():
    goals = {"a": "minimise", "b": "minimise"}
    points = [(0, 10), (2, 3), (5, 2), (10, 0), (9, 9)]
    line = [abs(10 * a + 10 * b - 100) / math.hypot(10, 10) for a, b in points[:4]]
    table = table_of(points, goals)
    assert fronts.knee(table, goals) == int(np.argmax(line)) == 1
    assert picking.pick(table, goals, "knee") == 1


def test_of_a_front_of_two_the_knee_is_the_one_that_gives_up_less_of_all_that_was_trained():
    goals = {"a": "minimise", "b": "minimise"}
    assert fronts.knee(table_of([(0, 10), (1, 0)], goals), goals) == 0  # nothing else to go by: the earlier
    assert fronts.knee(table_of([(0, 10), (1, 0), (50, 9)], goals), goals) == 1  # a fiftieth of a for nine tenths of b


def test_knee_does_not_depend_on_units_or_constant_objectives():
    goals = {"a": "minimise", "b": "maximise", "c": "minimise"}
    points = [(0, -10, 7), (2, -3, 7), (5, -2, 7), (10, 0, 7)]
    scaled = [(1e9 * a, 1e-3 * b, c) for a, b, c in points]
    assert fronts.knee(table_of(points, goals), goals) == fronts.knee(table_of(scaled, goals), goals) == 1


def test_knee_of_one_and_of_none():
    goals = {"a": "minimise"}
    assert fronts.knee(table_of([(3,)], goals), goals) == 0
    with pytest.raises(InputError, match="no trial was trained to the end"):
        fronts.knee(table_of([(3,)], goals, {0: "stopped"}), goals)


def test_best_follows_the_direction_of_the_column(run_dir):
    table = results.load(run_dir)
    complete = table[table["state"] == "complete"].set_index("trial")
    assert picking.pick(table, GOALS, "best:fid_efficientnet_lite0") == complete["fid_efficientnet_lite0"].idxmin()
    assert picking.pick(table, GOALS, "best:fid") == complete["fid_efficientnet_lite0"].idxmin()
    assert picking.pick(table, GOALS, "best:clip_score") == complete["clip_score"].idxmax()
    assert (
        picking.pick(table, GOALS, "best:caption_accuracy") == complete["caption_accuracy"].idxmax()
    )  # by its conditions
    assert picking.pick(table, GOALS, "best:params") == complete["params"].astype(int).idxmin()


def test_trial_by_number(run_dir):
    table = results.load(run_dir)
    assert picking.pick(table, GOALS, "trial:3") == 3  # stopped early, yet trained


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("kneee", "did you mean 'knee'"),
        ("best:clip_scor", "did you mean 'clip_score'"),
        ("best:arch.depth", "no such column"),
        ("trial:99", "expected a number from 0 to 23"),
        ("trial:1", "was never trained .over_budget: over budget"),
    ],
)
def test_bad_picks_are_one_readable_line(run_dir, how, message):
    with pytest.raises(InputError, match=message) as caught:
        picking.pick(results.load(run_dir), GOALS, how)
    assert "\n" not in str(caught.value)
