"""Trust: statistics against brute force and known distributions, the table from rows made by hand, what is stored."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.analysis.statistics import agreement
from nas.errors import InputError
from nas.trust import anchors

COLUMN = "fid_efficientnet_lite0"


def tau_b(x, y):
    """Kendall's tau-b by counting pairs."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    untied_x, untied_y = sum(a != 0 for a, _ in signs), sum(b != 0 for _, b in signs)
    return sum(a * b for a, b in signs) / math.sqrt(untied_x * untied_y) if untied_x and untied_y else 0.0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
@settings(deadline=None)
def test_tau_is_the_count_of_ordered_pairs(points):
    x, y = np.array(points, dtype=float).T
    assert agreement.tau(x, y) == pytest.approx(tau_b(x, y), abs=1e-12)


def test_the_taus_of_resamples_are_those_of_the_resampled_rows():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 9).astype(float), rng.normal(size=9)
    x[x == 0] = -np.inf  # what a zero-cost score may be
    drawn = rng.integers(0, 9, (50, 9))
    assert agreement.taus(x, y, drawn) == pytest.approx([agreement.tau(x[rows], y[rows]) for rows in drawn])


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=10, unique=True), st.randoms(use_true_random=False))
def test_regret_is_nothing_exactly_when_the_best_is_among_the_chosen(truth, random):
    truth = np.array(truth)
    scores = np.array([random.random() for _ in truth])
    chosen = set(np.argsort(-scores, kind="stable")[:3])
    assert (agreement.regret(scores, truth) == 0) == (int(truth.argmax()) in chosen)
    assert 0 <= agreement.regret(scores, truth) <= 1


def test_the_worst_signal_has_the_regret_of_the_worst_three():
    truth = np.arange(10.0)
    assert agreement.regret(-truth, truth) == pytest.approx((9 - 2) / 9)
    assert agreement.regret(truth, truth) == 0


def test_intervals_cover_the_tau_of_a_known_distribution():
    """For a bivariate normal tau is (2 / pi) asin(rho) (Kendall & Gibbons 1990)."""
    rng, rho, inside, count = np.random.default_rng(5), 0.7, 0, 100
    expected = 2 / math.pi * math.asin(rho)
    for _ in range(count):
        x, y = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 24).T
        found = agreement.agreement("s", "t", x, y)
        inside += found.tau_low <= expected <= found.tau_high
        assert found.tau_low <= found.tau <= found.tau_high
    assert inside >= 0.85 * count  # the percentile bootstrap is a little narrow at 24


def test_too_few_architectures_are_refused():
    with pytest.raises(ValueError, match="at least 8 architectures, got 7"):
        agreement.agreement("s", "t", np.arange(7.0), np.arange(7.0))
    for wrong in ({"anchors": 7}, {"seeds": 0}, {"long": 1}, {"seeds": 1, "long": 0}):
        with pytest.raises(InputError, match=f"--{next(iter(wrong))} .*expected at least"):
            anchors.Plan(**wrong)


def rows(n=16, seed=0):
    """Long scores rise with quality; warm ones follow exactly, scratch ones not at all, MACs oppose."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(n):
        common = {"key": f"k{index:02d}", "params": 10 + index, "macs": 1000 - index}
        for kind, score in (("long", 100 - index), ("warm", 50 - index), ("scratch", rng.random())):
            for repeat in (0, 1):
                loss = {"denoising_loss": score / 100, "denoising_loss_t062": score / 50}
                made.append({"kind": kind, "seed": repeat, "images_seen": 640, **common, COLUMN: score, **loss})
        made.append({"kind": "zero_cost", "seed": 0, "images_seen": 0, **common, "synflow": float(index)})
    return pd.DataFrame(made)


def test_every_signal_is_compared_with_the_right_sign():
    found = {each.signal: each for each in agreement.table(rows(), {COLUMN: False})}
    assert found[f"warm: {COLUMN}"].tau == 1 and not found[f"warm: {COLUMN}"].doubtful
    assert found["warm: denoising_loss"].tau == 1
    assert found["warm: denoising_loss_t062"].tau == 1
    assert found["zero-cost: synflow"].tau == 1
    assert found["params"].tau == 1
    assert found["macs"].tau == -1 and found["macs"].doubtful
    assert abs(found[f"scratch: {COLUMN}"].tau) < 0.6
    assert found["long: seed 0 with seed 1"].tau == 1


def test_signals_that_were_not_measured_are_left_out_and_not_numbers():
    part = rows()
    found = agreement.table(part[part["kind"].isin(["long", "warm"])], {COLUMN: False})
    assert not [each for each in found if "scratch" in each.signal or "zero-cost" in each.signal]
    assert agreement.table(part[part["key"] < "k07"], {COLUMN: False}) == []


def test_the_truth_is_the_greatest_length_that_enough_architectures_have():
    shorter, longer = (rows().query("kind == 'long'").assign(images_seen=images) for images in (320, 1280))
    shorter[COLUMN] *= -1
    longer[COLUMN] = 0.0
    few = longer[longer["key"] < "k07"]
    found = {each.signal: each for each in agreement.table(pd.concat([rows(), shorter, few]), {COLUMN: False})}
    assert found[f"warm: {COLUMN}"].tau == 1
    assert found[f"scratch of 320 images: {COLUMN}"].tau == -1
    assert not [signal for signal in found if "1,280" in signal]
    whole = agreement.at_one_length(pd.concat([rows(), shorter, longer])).query("kind == 'long'")
    assert set(whole["images_seen"]) == {1280}
    assert set(agreement.at_one_length(few)["images_seen"]) == {1280}  # all there is


def resolved(images=4096, init="supernet"):
    plain = {name: name for name in agreement.PROXY_SETTINGS}
    return {**plain, "training": {"init": init, "images_seen": images}, "search": {"trials": 3}}


def test_what_is_stored_is_found_by_the_settings_that_decide_what_a_trial_means(tmp_path):
    found = tuple(agreement.table(rows(), {COLUMN: False}))
    stored = agreement.Trust(agreement.proxy_settings(resolved()), 16, 2, 40960, found)
    stored.save(tmp_path)
    assert agreement.find({**resolved(), "search": {"trials": 99}}, tmp_path) == stored
    assert agreement.find(resolved(images=8192), tmp_path) is None
    assert [each.signal for each in stored.of_trials()] == [f"warm: {COLUMN}"]


def test_a_study_from_scratch_is_measured_under_its_own_training():
    from pathlib import Path

    from nas.settings import study_file

    study = study_file.load(Path("studies/emoji/study.yaml"), ["training.init=scratch"])
    own = study.training
    made = anchors._study_of("long", study, anchors.Plan(8, 2, 5)).training
    assert made == own.model_copy(update={"images_seen": 5 * own.images_seen})
    warm = study_file.load(Path("studies/emoji/study.yaml"))
    made = anchors._study_of("long", warm, anchors.Plan(8, 2, 5)).training
    assert (made.init, made.images_seen, made.learning_rate) == ("scratch", 5 * own.images_seen, 1e-3)


def test_anchors_are_spread_over_the_costs():
    from itertools import pairwise
    from pathlib import Path

    from nas.settings import study_file
    from nas.space.search_space import SearchSpace

    study = study_file.load(Path("studies/emoji/study.yaml"))
    space = SearchSpace.load(study.space)
    chosen = anchors.choose(study, space, 8)
    macs = [config.cost(64, 77).macs for config in chosen]
    assert macs == sorted(macs) and len({config.key for config in chosen}) == 8
    assert max(macs) <= study.budget["macs"] and max(macs) > 1.6 * min(macs)
    assert [c.key for c in anchors.choose(study, space, 8)] == [c.key for c in chosen]
    more = anchors.choose(study, space, 12, kept=chosen)
    assert more[:8] == chosen and len({config.key for config in more}) == 12
    added = sorted(config.cost(64, 77).macs for config in more[8:])
    assert all(sum(low < one < high for one in added) <= 2 for low, high in pairwise([0, *macs, 10**15]))
    assert anchors.choose(study, space, 8, kept=more) == more  # none is dropped


def test_what_ships_is_of_studies_emoji_as_it_is(tmp_path):
    """A new setting with a default changes what the table is looked up by."""
    from nas.settings.study_file import load

    found = agreement.find(load(Path(__file__).parents[1] / "studies" / "emoji").resolved(), tmp_path)
    assert found is not None and found.anchors >= 16
