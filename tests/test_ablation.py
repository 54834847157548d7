"""Ablations: statistics against known truth and scipy, tables against hand formulas."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nas.analysis import ablation
from nas.analysis.statistics import contrasts
from nas.errors import InputError

REFERENCE = {"a": "0", "b": "0"}


def frame(values, levels, reference, column="fid", higher_is_better=False):
    """A results frame from values (cells, repeats) and one dict of levels per cell."""
    rows = [
        {"cell": ",".join(given.values()), "state": "complete", "repeat": repeat, column: values[cell, repeat]}
        | {f"factor.{name}": level for name, level in given.items()}
        for cell, given in enumerate(levels)
        for repeat in range(values.shape[1])
        if not math.isnan(values[cell, repeat])
    ]
    table = pd.DataFrame(rows)
    table.attrs = {"reference": reference, "conditions": {column: {"higher_is_better": higher_is_better}}}
    return table


def grid(*sizes):
    return [dict(zip("abc", map(str, row), strict=False)) for row in product(*(range(size) for size in sizes))]


def simulated(rng, cells, repeats, effects, seed_sd=5.0, noise_sd=1.0):
    """True effects, what a repeat's seed adds to all cells, and what is left."""
    return effects[:, None] + rng.normal(0, seed_sd, (1, repeats)) + rng.normal(0, noise_sd, (cells, repeats))


# --- coverage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unplanned(monkeypatch):
    """No search for the repeats that would be enough: it takes the most time, and the simulations do not look at it."""
    monkeypatch.setattr(contrasts, "repeats_needed", lambda *_, **__: 2.0)


def test_intervals_cover_their_truth_in_1000_simulated_ablations(unplanned):
    rng = np.random.default_rng(7)
    levels = grid(2, 2)
    truth = np.array([10.0, 12.0, 9.0, 14.0])  # 00, 01, 10, 11
    true = {
        "cells": truth,
        "differences": truth[1:] - truth[0],
        "main_effects": [(9 + 14) / 2 - (10 + 12) / 2, (12 + 14) / 2 - (10 + 9) / 2],
        "interactions": [14 - 9 - 12 + 10],
    }
    seen = ablation.read(frame(np.zeros((4, 3)), levels, REFERENCE), "fid")
    makers = [(kind, getattr(ablation, kind), "separate") for kind in true]
    makers += [(kind, getattr(ablation, kind), "pooled") for kind in ("differences", "main_effects")]
    covered = {(kind, variance): [] for kind, _, variance in makers}
    for _ in range(1_000):
        drawn = replace(seen, values=simulated(rng, 4, 3, truth))
        for kind, make, variance in makers:
            table = make(replace(drawn, variance=variance))
            low, high = table["low"].to_numpy(), table["high"].to_numpy()
            covered[kind, variance].append((low <= true[kind]) & (true[kind] <= high))
    for kind, hits in covered.items():
        share = np.mean(hits, axis=0)
        assert ((share >= 0.93) & (share <= 0.97)).all(), (kind, share)


def test_pairing_finds_what_the_unpaired_test_misses(unplanned):
    """Power of both tests over 300 ablations with a planted difference of three noise sd and seeds that add ten."""
    rng = np.random.default_rng(3)
    paired = unpaired = 0
    seen = ablation.read(frame(np.zeros((2, 5)), grid(2), {"a": "0"}), "fid")
    for _ in range(300):
        values = simulated(rng, 2, 5, np.array([0.0, 3.0]), seed_sd=10.0, noise_sd=1.0)
        table = ablation.differences(replace(seen, values=values))
        paired += table["verdict"].iloc[0] == "worse"
        unpaired += stats.ttest_ind(values[1], values[0]).pvalue < 0.05
    assert paired > 250 and unpaired < 30, (paired, unpaired)


def test_no_effect_is_settled_no_more_often_than_five_percent(unplanned):
    """Holm holds the family: the share of ablations with any false finding."""
    rng = np.random.default_rng(11)
    wrong = 0
    seen = ablation.read(frame(np.zeros((4, 4)), grid(4), {"a": "0"}), "fid")
    for _ in range(1_000):
        drawn = replace(seen, values=simulated(rng, 4, 4, np.zeros(4)))
        wrong += (ablation.differences(drawn)["p_holm"] < 0.05).any()
    assert wrong / 1_000 < 0.065, wrong  # 0.05 plus two standard errors


# --- against other implementations -----------------------------------------------------------------------------------


def test_differences_are_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    values = simulated(rng, 4, 6, np.array([0.0, 1.0, 0.2, 0.0]))
    table = ablation.differences(ablation.read(frame(values, grid(2, 2), REFERENCE), "fid"))
    for row, cell in enumerate((1, 2, 3)):
        told = stats.ttest_rel(values[cell], values[0])
        interval = told.confidence_interval(0.95)
        assert table["p"].iloc[row] == pytest.approx(told.pvalue)
        assert (table["low"].iloc[row], table["high"].iloc[row]) == pytest.approx((interval.low, interval.high))


def test_a_missing_training_leaves_out_its_repeat_in_its_cells_only():
    rng = np.random.default_rng(1)
    values = simulated(rng, 3, 5, np.zeros(3))
    values[1, 2] = math.nan
    table = ablation.differences(ablation.read(frame(values, grid(3), {"a": "0"}), "fid"))
    kept = [0, 1, 3, 4]
    assert table["n"].tolist() == [4, 5]
    assert table["p"].iloc[0] == pytest.approx(stats.ttest_rel(values[1, kept], values[0, kept]).pvalue)
    assert table["p"].iloc[1] == pytest.approx(stats.ttest_rel(values[2], values[0]).pvalue)


def test_pooled_effects_are_ordinary_least_squares_with_blocks():
    """Main effects and their standard errors from a regression on dummies, with a dummy for every repeat."""
    rng = np.random.default_rng(2)
    levels, repeats = grid(2, 3), 4
    values = simulated(rng, 6, repeats, rng.normal(0, 2, 6))
    rows = [(cell, repeat) for cell in range(6) for repeat in range(repeats)]
    design_matrix = np.zeros((len(rows), 6 + repeats - 1))  # a column per cell, and one per repeat but the first
    for index, (cell, repeat) in enumerate(rows):
        design_matrix[index, cell] = 1
        if repeat:
            design_matrix[index, 5 + repeat] = 1
    y = np.array([values[cell, repeat] for cell, repeat in rows])
    fitted, *_ = np.linalg.lstsq(design_matrix, y, rcond=None)
    freedom = len(rows) - design_matrix.shape[1]
    variance = ((y - design_matrix @ fitted) ** 2).sum() / freedom
    covariance = variance * np.linalg.inv(design_matrix.T @ design_matrix)
    table = ablation.main_effects(ablation.read(frame(values, levels, REFERENCE), "fid", variance="pooled"))
    for _, row in table.iterrows():
        weights = np.zeros(design_matrix.shape[1])
        for cell, of_cell in enumerate(levels):
            level = of_cell[row["factor"]]
            sign = (level == row["level"]) - (level == row["against"])
            weights[cell] = sign / (3 if row["factor"] == "a" else 2)
        error = math.sqrt(weights @ covariance @ weights)
        half = stats.t.ppf(0.975, freedom) * error
        assert row["estimate"] == pytest.approx(weights @ fitted)
        assert row["high"] - row["estimate"] == pytest.approx(half)


def holm_by_definition(p):
    """Reject in rising order while p_(i) <= alpha / (m - i); the adjusted p is the least alpha that rejects. By search."""

    def rejected(alpha):
        out = set()
        for i, index in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
            if p[index] > alpha / (len(p) - i):
                break
            out.add(index)
        return out

    adjusted = []
    for index in range(len(p)):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if index in rejected(middle) else (middle, high)
        adjusted.append(high)
    return adjusted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=7))
def test_holm_is_its_definition(p):
    assert contrasts.holm(np.array(p)) == pytest.approx(holm_by_definition(p), abs=1e-9)


def test_holm_leaves_out_what_was_not_tested():
    assert contrasts.holm(np.array([0.01, math.nan, 0.02])).tolist() == pytest.approx(
        [0.02, math.nan, 0.02], nan_ok=True
    )


@pytest.mark.parametrize(("ratio", "repeats"), [(8.2, 2), (3.0, 3), (1.0, 10), (0.5, 34)])
def test_power_is_the_share_of_simulated_tests_that_find_the_effect(ratio, repeats):
    rng = np.random.default_rng(repeats)
    drawn = rng.normal(ratio, 1, (40_000, repeats))
    found = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert contrasts.power(ratio, 1.0, repeats, 0.05) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 34), (1.0, 10), (0.2, 199)])
def test_repeats_needed_are_those_of_published_tables(ratio, expected):
    """Paired t, two-sided 0.05, power 0.8: G*Power and R's power.t.test(type="paired") round up to these."""
    assert contrasts.repeats_needed(ratio, 1.0) == expected


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 5.0), st.sampled_from([0.05, 0.01, 0.005]), st.sampled_from([2, 6]))
def test_repeats_needed_is_the_first_number_that_is_enough(ratio, alpha, cells):
    n = int(contrasts.repeats_needed(ratio, 1.0, alpha, cells=cells))
    assert contrasts.power(ratio, 1.0, n, alpha, cells) >= 0.8
    assert n == 2 or contrasts.power(ratio, 1.0, n - 1, alpha, cells) < 0.8


def test_no_scatter_and_no_difference_are_said_without_numbers_that_mislead():
    values = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    table = ablation.differences(ablation.read(frame(values, grid(3), {"a": "0"}), "fid"))
    assert table["p"].tolist() == [1.0, 0.0]
    assert table["verdict"].tolist() == ["not settled", "worse"]
    assert table["repeats_needed"].iloc[0] == math.inf


def test_ratios_are_of_geometric_means():
    values = np.array([[1.0, 2.0, 4.0], [2.2, 3.8, 8.0]])
    seen = ablation.read(frame(values, grid(2), {"a": "0"}), "fid")
    told = ablation.ratios(seen).iloc[0]
    assert told["estimate"] == pytest.approx(stats.gmean(values[1]) / stats.gmean(values[0]))
    assert told["low"] < 2 < told["high"]
    assert ablation.against(seen, 2.0)["estimate"].tolist() == pytest.approx([1.0, stats.gmean(values[1]) / 2])
    with pytest.raises(InputError, match="ratios"):
        ablation.ratios(ablation.read(frame(-values, grid(2), {"a": "0"}), "fid"))


# --- what is averaged ------------------------------------------------------------------------------------------------


def test_effects_of_a_full_factorial_are_those_of_hand_formulas():
    rng = np.random.default_rng(5)
    levels = grid(3, 2, 2)
    values = rng.normal(0, 1, (12, 3))
    seen = ablation.read(frame(values, levels, {"a": "0", "b": "0", "c": "0"}), "fid")
    mean = {tuple(given.values()): values[i].mean() for i, given in enumerate(levels)}
    main = ablation.main_effects(seen).set_index(["factor", "level"])["estimate"]
    by_hand = np.mean([mean["2", b, c] - mean["0", b, c] for b, c in product("01", "01")])
    assert main["a", "2"] == pytest.approx(by_hand)
    both = ablation.interactions(seen).set_index(["factor", "level", "with_factor", "with_level"])["estimate"]
    by_hand = np.mean([mean["1", b, "1"] - mean["0", b, "1"] - mean["1", b, "0"] + mean["0", b, "0"] for b in "01"])
    assert both["a", "1", "c", "1"] == pytest.approx(by_hand)
    assert len(both) == 2 + 2 + 1


def test_main_effects_of_one_factor_designs_are_the_differences_and_told_once():
    levels = [{"a": "0", "b": "0"}, {"a": "1", "b": "0"}, {"a": "0", "b": "1"}]
    seen = ablation.read(frame(np.arange(9.0).reshape(3, 3) ** 1.5, levels, REFERENCE), "fid")
    assert set(ablation.tables(seen)) == {"cells", "differences"}
    main, apart = ablation.main_effects(seen), ablation.differences(seen)
    assert main["estimate"].tolist() == pytest.approx(apart["estimate"].tolist())


def test_higher_is_better_turns_the_verdict():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 3.1, 4.0]])
    for higher, verdict in ((True, "better"), (False, "worse")):
        seen = ablation.read(frame(values, grid(2), {"a": "0"}, "clip", higher), "clip")
        assert ablation.differences(seen)["verdict"].tolist() == [verdict]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="cell"), ["no cells"]),
        (lambda t: t.assign(state="failed"), ["no cell was trained"]),
        (lambda t: t.rename(columns={"fid": "fidd"}), ["'fid'", "did you mean 'fidd'"]),
        (lambda t: t[t["factor.a"] != "0"], ["a=0", "trained to the end"]),
    ],
)
def test_a_frame_that_is_no_ablation_is_one_line(change, words):
    table = frame(np.ones((2, 2)), grid(2), {"a": "0"})
    attrs = table.attrs
    table = change(table)
    table.attrs = attrs
    with pytest.raises(InputError) as error:
        ablation.read(table, "fid")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_tables_escape_what_people_write():
    levels = [{"a": "<b>|%_"}, {"a": "x"}]
    table = ablation.cells(ablation.read(frame(np.ones((2, 2)), levels, {}), "fid"))
    assert "&lt;b&gt;" in ablation.render(table, "html") and "<b>" not in ablation.render(table, "html")
    assert r"\%\_" in ablation.render(table, "latex") and r"95\% interval" in ablation.render(table, "latex")
    assert r"<b>\|%_" in ablation.render(table, "markdown")
