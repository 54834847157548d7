import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway

from nas.analysis import importance, results


def points_of(rng, trials, score, axes=("a", "b", "c")):
    """Trials with a random value 1, 2 or 4 for every axis, and the score a function of them."""
    rows = []
    for trial in range(trials):
        choices = {axis: int(rng.choice([1, 2, 4])) for axis in axes}
        value = score(choices, rng)
        rows += [
            {"axis": axis, "value": str(one), "order": float(one), "trial": trial, "score": value}
            for axis, one in choices.items()
        ]
    return pd.DataFrame(rows)


def test_the_decision_that_decides_is_found_and_noise_is_not_beyond_chance():
    points = points_of(np.random.default_rng(0), 16, lambda choices, rng: choices["b"] + rng.normal(0, 0.3))
    found = importance.explained(points)
    assert found["share"].idxmax() == "b" and found.loc["b", "share"] > 0.8 and found.loc["b", "p"] < 0.01
    assert (found.loc[["a", "c"], "p"] > importance.CHANCE).all()


def test_p_is_that_of_the_f_test_where_scores_are_normal():
    """Among normal scores, shuffling gives what the one-way analysis of variance says, times Holm's factor."""
    points = points_of(np.random.default_rng(3), 60, lambda choices, rng: 0.35 * choices["a"] + rng.normal())
    plain = pd.Series(
        {
            axis: f_oneway(*(group["score"] for _, group in part.groupby("value"))).pvalue
            for axis, part in points.groupby("axis")
        }
    )
    found = importance.explained(points)["p"]
    ordered = plain.sort_values()
    expected = np.minimum(np.maximum.accumulate(ordered.to_numpy() * [3, 2, 1]), 1.0)
    assert found[ordered.index].to_numpy() == pytest.approx(expected, abs=0.05)


def test_chance_is_rarely_beaten_by_noise():
    """Any of six axes of noise is beyond chance in one study of twenty: more than 6 of 40 would be a miss at 1e-3."""
    beaten = 0
    for seed in range(40):
        points = points_of(np.random.default_rng(seed), 20, lambda _, rng: rng.normal(), axes=tuple("abcdef"))
        beaten += bool((importance.explained(points)["p"] < importance.CHANCE).any())
    assert beaten <= 6


def test_a_choice_that_few_trials_have_is_compared_among_those():
    points = points_of(np.random.default_rng(0), 30, lambda choices, rng: choices["a"] + rng.normal(0, 0.1))
    some = points[(points["axis"] != "b") | (points["trial"] < 3)]
    assert importance.explained(some).loc["b", "p"] > importance.CHANCE


def test_table_and_figures_give_one_answer(run_dir):
    table, curves = results.load(run_dir), results.curves(results.records(run_dir))
    found = importance.of_decisions(table, curves, {"clip_score": "maximise"}).set_index("axis")
    shown = importance.effects(importance.scores_by_choice(table, curves, "clip_score")).groupby("axis").first()
    assert shown[["share", "p"]].to_dict() == found[["share", "p"]].to_dict()


@pytest.mark.parametrize(("sign", "best", "worst", "trend"), [(1.0, "1", "4", 1.0), (-1.0, "4", "1", 1.0)])
def test_direction(sign, best, worst, trend):
    part = pd.DataFrame(
        {"value": ["1", "2", "4", "1"], "order": [1.0, 2.0, 4.0, 1.0], "score": [10.0, 20.0, 30.0, 10.0]}
    )
    found = importance.direction(part, sign)
    assert (found["best"], found["worst"], found["gain"]) == (best, worst, 20.0)
    assert found["trend"] == pytest.approx(trend)


def test_direction_of_words_has_no_trend():
    part = pd.DataFrame({"value": ["relu", "softmax"], "order": [0.0, 0.0], "score": [1.0, 3.0]})
    found = importance.direction(part, 1.0)
    assert found["best"] == "relu" and np.isnan(found["trend"])


def test_of_decisions_covers_scores_and_costs(run_dir):
    table, curves = results.load(run_dir), results.curves(results.records(run_dir))
    goals = {"clip_score": "maximise", "macs": "minimise"}
    found = importance.of_decisions(table, curves, goals)
    assert set(found["column"]) == set(goals)
    assert found["share"].between(0, 1).all() and found["p"].between(0, 1).all()
    axes = list(dict.fromkeys(found["axis"]))
    means = found.groupby("axis")["share"].mean()
    assert means.reindex(axes).is_monotonic_decreasing
    cost = found[(found["column"] == "macs") & (found["axis"] == "depth")].iloc[0]
    by_depth = table.groupby("arch.depth")["macs"].mean()
    assert (cost["best"], cost["worst"]) == (str(by_depth.astype(float).idxmin()), str(by_depth.astype(float).idxmax()))


def test_too_few_trials_say_nothing():
    table = pd.DataFrame({"trial": range(7), "arch.a": [1, 2] * 3 + [1], "macs": range(7)})
    assert importance.of_decisions(table, pd.DataFrame(), {"macs": "minimise"}).empty
