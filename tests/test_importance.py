import numpy as np
import pandas as pd
import pytest

from nas import importance, results


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
    points = points_of(np.random.default_rng(0), 120, lambda choices, rng: choices["b"] + rng.normal(0, 0.1))
    found = importance.ped_anova(points, 1.0)
    assert found["share"].idxmax() == "b" and found.loc["b", "share"] > 0.6
    assert found["share"].sum() == pytest.approx(1.0)
    assert found.loc["b", "beyond_chance"] and not found.loc[["a", "c"], "beyond_chance"].any()


def test_ped_anova_is_the_divergence_of_the_best_tenth():
    """Optuna smooths, so not equal: with many trials it is near sum_v (p_top(v) - p(v))^2 / p(v) (the paper, equation 7)."""
    points = points_of(
        np.random.default_rng(1), 1500, lambda choices, rng: choices["a"] + 2 * choices["b"] + rng.normal(0, 1)
    )
    wide = points.pivot(index="trial", columns="axis", values="value")
    scores = points.groupby("trial")["score"].first()
    top = wide[scores <= scores.quantile(0.1)]

    def divergence(axis):
        every, best = wide[axis].value_counts(normalize=True), top[axis].value_counts(normalize=True)
        return float(sum((best.get(value, 0.0) - share) ** 2 / share for value, share in every.items()))

    expected = pd.Series({axis: divergence(axis) for axis in "abc"})
    found = importance.ped_anova(points, 1.0)["share"]
    pd.testing.assert_series_equal(
        found, expected / expected.sum(), atol=0.03, rtol=0.1, check_names=False, check_index_type=False
    )


def test_chance_is_rarely_beaten_by_noise():
    """19 shuffles: noise is above all of them in one case of twenty. 30 axes of noise: more than 7 would be a miss at 1e-4."""
    beaten = 0
    for seed in range(5):
        points = points_of(np.random.default_rng(seed), 40, lambda _, rng: rng.normal(), axes=tuple("abcdef"))
        beaten += int(importance.ped_anova(points, 1.0)["beyond_chance"].sum())
    assert beaten <= 7


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
    assert found.groupby("column")["share"].sum().tolist() == pytest.approx([1.0, 1.0])
    axes = list(dict.fromkeys(found["axis"]))
    means = found.groupby("axis")["share"].mean()
    assert means.reindex(axes).is_monotonic_decreasing
    cost = found[(found["column"] == "macs") & (found["axis"] == "depth")].iloc[0]
    by_depth = table.groupby("arch.depth")["macs"].mean()
    assert (cost["best"], cost["worst"]) == (str(by_depth.astype(float).idxmin()), str(by_depth.astype(float).idxmax()))


def test_too_few_trials_say_nothing():
    table = pd.DataFrame({"trial": range(7), "arch.a": [1, 2] * 3 + [1], "macs": range(7)})
    assert importance.of_decisions(table, pd.DataFrame(), {"macs": "minimise"}).empty
