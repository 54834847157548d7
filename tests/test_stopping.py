import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from point_sets import VALUES, sets

from nas.search import stopping
from nas.search.dominance import contributions, nondominated_ranks, normalised
from nas.search.stopping import Stopping


def order(points):
    """Indices from best to worst: by non-dominated rank, then by contributed hypervolume, then by index."""
    ranks, added = nondominated_ranks(points), np.zeros(len(points))
    for rank in set(ranks.tolist()):
        added[ranks == rank] = contributions(normalised(points)[ranks == rank])
    return sorted(range(len(points)), key=lambda i: (ranks[i], -added[i], i))


# --- going on: any rule ----------------------------------------------------------------------------------------------

RULES = ("halving", "slope", "median")


def at(*points):
    """Curves of one rung."""
    return [[point] for point in points]


def curve_sets(least=2, most=9, rungs=2, objectives=2):
    """Curves (n, rungs, objectives) as lists."""
    point = st.lists(VALUES, min_size=objectives, max_size=objectives)
    return st.lists(st.lists(point, min_size=rungs, max_size=rungs), min_size=least, max_size=most)


@given(curve_sets(), st.sampled_from(RULES), st.floats(0.01, 1), st.randoms())
@effort(max_examples=100, deadline=None)
def test_the_order_of_the_earlier_trials_does_not_matter(curves, rule, keep, rng):
    *others, curve = curves
    settings = Stopping(rule=rule, keep=keep, min_peers=1)
    told = stopping.goes_on(curve, others, settings)
    rng.shuffle(others)
    assert stopping.goes_on(curve, others, settings) == told


@given(curve_sets(), st.sampled_from(RULES), st.floats(0.01, 0.99))
@effort(max_examples=60, deadline=None)
def test_what_is_worse_and_slower_than_all_is_stopped(curves, rule, keep):
    worst = [[10.0, 10.0], [11.0, 11.0]]  # VALUES end at 3; no member of VALUES gets worse by more than 5
    others = [[[a, b], [min(a, c), min(b, d)]] for [[a, b], [c, d]] in curves]
    if rule == "halving" and np.ceil(keep * (len(others) + 1)) > len(others):
        assert stopping.goes_on(worst, others, Stopping(rule=rule, keep=keep, min_peers=1))  # all of so few are kept
    else:
        assert not stopping.goes_on(worst, others, Stopping(rule=rule, keep=keep, min_peers=1))


@given(curve_sets(), st.sampled_from(RULES), st.floats(0.01, 1))
@effort(max_examples=60, deadline=None)
def test_trials_that_did_not_get_as_far_do_not_count(curves, rule, keep):
    *others, curve = curves
    settings = Stopping(rule=rule, keep=keep, min_peers=1)
    behind = [[[-9.0, -9.0]], []]
    ahead = [[*other, [5.0, -5.0]] for other in others]  # later rungs neither
    assert stopping.goes_on(curve, ahead + behind, settings) == stopping.goes_on(curve, others, settings)


@given(curve_sets(), st.sampled_from(RULES))
@effort(max_examples=40, deadline=None)
def test_none_and_keeping_all_never_stop_one(curves, rule):
    assert stopping.goes_on(curves[0], curves[1:], Stopping(rule="none", keep=0.01, min_peers=1))
    assert stopping.goes_on(curves[0], curves[1:], Stopping(rule=rule, keep=1.0, min_peers=1))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_stops_while_peers_are_few(rule):
    settings = Stopping(rule=rule, keep=0.25, min_peers=4)
    bad, good = [[9.0], [10.0]], [[2.0], [1.0]]
    assert stopping.goes_on(bad, [], settings) and stopping.goes_on(bad, [good, good], settings)
    assert not stopping.goes_on(bad, [good, good, good], settings)


def test_a_first_trial_has_nothing_to_be_compared_with():
    assert all(stopping.goes_on([[1.0]], [], Stopping(rule=rule, keep=0.01, min_peers=1)) for rule in RULES)


# --- halving ---------------------------------------------------------------------------------------------------------


@given(sets(least=3, objectives=(2, 3)), st.floats(0.01, 0.99))
@effort(max_examples=150, deadline=None)
def test_who_goes_on_is_the_best_share_of_the_whole_order(points, keep):
    *peers, point = points
    position = order(np.array(points)).index(len(points) - 1)
    expected = position < np.ceil(keep * len(points))
    assert stopping.goes_on([point], at(*peers), Stopping(rule="halving", keep=keep, min_peers=1)) == expected


def test_the_best_goes_on_and_the_worst_stops():
    peers = at([1.0, 5.0], [2.0, 3.0], [3.0, 2.0])
    assert stopping.goes_on(at([0.0, 0.0])[0], peers, Stopping(rule="halving", keep=0.01))
    assert not stopping.goes_on(at([9.0, 9.0])[0], peers, Stopping(rule="halving", keep=0.75))
    assert stopping.goes_on(at([9.0, 9.0])[0], peers, Stopping(rule="halving", keep=0.76))


# --- slope and median ------------------------------------------------------------------------------------------------


def quantile(values, share):
    """Linear interpolation between order statistics, from its definition."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@given(curve_sets(least=3, rungs=3), st.floats(0.05, 0.95))
@effort(max_examples=150, deadline=None)
def test_slope_and_median_are_their_definitions(curves, keep):
    *others, curve = curves
    best = [quantile([other[2][i] for other in others], keep) for i in range(2)]
    expected = any(curve[2][i] <= best[i] + 1e-12 for i in range(2))
    assert stopping.goes_on(curve, others, Stopping(rule="median", keep=keep, min_peers=1)) == expected

    scores = [i for i in range(2) if any(c[rung][i] != c[0][i] for c in curves for rung in (1, 2))]
    gains = {i: [other[1][i] - other[2][i] for other in others] for i in scores}
    margins = [curve[1][i] - curve[2][i] - quantile(gains[i], 1 - keep) for i in scores]
    alike = [len(set(gains[i])) == 1 for i in scores]  # then a quantile is that gain, and no rounding of two
    assume(
        all(same or abs(margin) > 1e-9 for same, margin in zip(alike, margins, strict=True))
    )  # else the last bit decides
    expected = not scores or any(margin >= 0 for margin in margins)
    assert stopping.goes_on(curve, others, Stopping(rule="slope", keep=keep, min_peers=1)) == expected


def test_slope_by_hand():
    # (FID, -CLIP, MACs): FID falls by 10, 6 and 2, CLIP rises by 1, 2 and 3; the medians are 6 and 2
    others = [[[90, -20, 7], [80, -21, 7]], [[90, -20, 5], [84, -22, 5]], [[90, -20, 1], [88, -23, 1]]]
    settings = Stopping(rule="slope")
    assert stopping.goes_on([[99, -10, 9], [93, -10, 9]], others, settings)  # FID as fast as the median
    assert stopping.goes_on([[99, -10, 9], [99, -12, 9]], others, settings)  # CLIP as fast
    assert not stopping.goes_on([[50, -40, 0.1], [45, -41, 0.1]], others, settings)  # better in all, but slower in both
    assert stopping.goes_on([[500, 0, 9]], others, settings)  # at the first rung nothing has a slope
    still = [[[90, 7], [90, 7]]] * 3
    assert stopping.goes_on([[99, 9], [99, 9]], still, settings)  # nothing is learnt, so nothing is slow


def test_median_by_hand():
    others = at([10, 1], [20, 2], [30, 3])
    settings = Stopping(rule="median")
    assert stopping.goes_on([[20, 9]], others, settings) and stopping.goes_on([[99, 2]], others, settings)
    assert not stopping.goes_on([[20.1, 2.1]], others, settings)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rungs", [(1.0,), (0.4, 1.0), (0.0, 0.1, 1.0)])
def test_rungs_rise_to_one(rungs):
    assert Stopping(rungs=rungs).rungs == rungs


@pytest.mark.parametrize(
    "rungs",
    [
        (),
        (0.4,),
        (0.4, 0.9),
        (0.4, 0.4, 1.0),
        (0.5, 0.4, 1.0),
        (-0.1, 1.0),
        (1.0, 1.0),
        (0.5, 2.0),
        (float("nan"), 1.0),
    ],
)
def test_other_rungs_are_refused(rungs):
    with pytest.raises(ValueError, match="rising fractions that end with 1"):
        Stopping(rungs=rungs)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 1.1}, {"min_peers": 0}, {"kept": 0.5}, {"rule": "halve"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Stopping(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep": 0.3}, "keep: rule improvement does not read it; expected rule halving, slope or median"),
        ({"rule": "halving", "gain": 0.3}, "gain: rule halving does not read it; expected rule improvement"),
    ],
)
def test_a_share_that_the_rule_ignores_is_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        Stopping(**options)
    assert Stopping(
        **Stopping(rule=options.get("rule", "improvement")).model_dump()
    )  # what a run writes down is read again


WAYS = {"fid": "minimise", "clip": "maximise"}


@given(curve_sets(least=3), st.floats(0.01, 0.99))
@effort(max_examples=100, deadline=None)
def test_the_place_that_is_told_is_the_one_that_decides(curves, keep):
    *others, curve = [one[:1] for one in curves]
    settings = Stopping(rule="halving", keep=keep, min_peers=1)
    told = stopping.reason(curve, others, settings, WAYS)
    place, of, best = map(int, re.findall(r"place (\d+) of (\d+); the best (\d+)", told)[0])
    assert of == len(curves) and (place <= best) == stopping.goes_on(curve, others, settings)


def test_a_stopped_trial_is_told_the_numbers_that_were_compared():
    others = [[[10.0, -3.0], [8.0, -5.0]], [[10.0, -3.0], [6.0, -7.0]]]
    behind = [[10.0, -3.0], [9.5, -3.5]]
    median = Stopping(rule="median", min_peers=1)
    assert not stopping.goes_on(behind, others, median)
    assert stopping.reason(behind, others, median, WAYS) == (
        "at rung 1 worse than the best 50% in every objective: fid 9.5 > 7, clip 3.5 < 6"
    )
    slope = Stopping(rule="slope", min_peers=1)
    assert not stopping.goes_on(behind, others, slope)
    assert stopping.reason(behind, others, slope, WAYS) == (
        "at rung 1 improving more slowly than the best 50% in every score: by fid -0.5 > -3, clip 0.5 < 3"
    )


def test_a_cost_has_no_slope():
    others = [[[10.0, 3.0], [8.0, 3.0]], [[10.0, 4.0], [6.0, 4.0]]]
    told = stopping.reason(
        [[10.0, 5.0], [9.5, 5.0]], others, Stopping(rule="slope"), {"fid": "minimise", "macs": "minimise"}
    )
    assert told.endswith("by fid -0.5 > -3")
