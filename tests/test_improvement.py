"""Expected hypervolume improvement, against areas by inclusion and exclusion, and what the rule does with it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from point_sets import area_of_union

from nas.search import improvement, stopping
from nas.search.peers import Peers
from nas.search.stopping import Stopping

POINT = st.lists(st.floats(-3, 3).map(lambda value: round(value, 2)), min_size=2, max_size=2)
CURVE = st.lists(POINT, min_size=2, max_size=2)  # of two rungs


def by_definition(curve, finished, stopped):
    """The mean, over recorded gains, of the share by which the area under the front grows; two objectives, two rungs."""
    gains = [[end - start for start, end in zip(*each, strict=True)] for each in finished]
    mean = [sum(column) / len(gains) for column in zip(*gains, strict=True)]
    ends = [each[1] for each in finished]
    peers = [each[0] for each in [*finished, *stopped, curve]]
    seen = [*ends, *([a + b for a, b in zip(peer, mean, strict=True)] for peer in peers)]
    low = [min(point[axis] for point in seen) for axis in range(2)]
    span = [max(point[axis] for point in seen) - low[axis] or 1.0 for axis in range(2)]

    def scaled(point):
        return [(point[axis] - low[axis]) / span[axis] for axis in range(2)]

    before = area_of_union([scaled(end) for end in ends], 1.1)
    reached = [[a + b for a, b in zip(curve[0], gain, strict=True)] for gain in gains]
    after = [area_of_union([*map(scaled, ends), scaled(point)], 1.1) for point in reached]
    return sum(area - before for area in after) / len(after) / before


@given(POINT, st.lists(CURVE, min_size=1, max_size=5), st.lists(POINT, max_size=3))
@effort(max_examples=150, deadline=None)
def test_it_is_the_mean_growth_of_the_area_under_the_front(point, finished, stopped):
    curve, others = [point], [*finished, *([one] for one in stopped)]
    found = improvement.of_curves(np.array(curve), Peers.of(others), rungs=2)
    assert found == pytest.approx(by_definition(curve, finished, [[one] for one in stopped]), abs=1e-9)


@given(st.lists(CURVE, min_size=4, max_size=8), POINT, st.floats(0.01, 100), st.floats(-50, 50), st.randoms())
@effort(max_examples=60, deadline=None)
def test_neither_units_nor_the_order_of_the_others_matter(others, point, scale, shift, rng):
    def told(curves, one):
        return improvement.of_curves(np.array([one]), Peers.of(curves), rungs=2)

    def moved(one):
        return [one[0] * scale + shift, one[1]]

    rescaled = [[moved(one) for one in curve] for curve in others]
    rng.shuffle(rescaled)
    assert told(rescaled, moved(point)) == pytest.approx(told(others, point), abs=1e-6)


FINISHED = [
    [[10.0, 5.0], [8.0, 5.0]],
    [[12.0, 3.0], [9.0, 3.0]],
    [[15.0, 2.0], [14.0, 2.0]],
    [[20.0, 1.0], [18.0, 1.0]],
]


def goes_on(point, others=FINISHED, **given):
    return stopping.goes_on([point], others, Stopping(**{"rule": "improvement", "rungs": (0.0, 1.0)} | given))


def test_what_no_gain_on_record_would_bring_to_the_front_is_stopped():
    assert not goes_on([13.0, 5.0], gain=0)  # at most 10, and 9 costs but 3
    assert not goes_on([12.5, 5.0], gain=0)
    assert goes_on([10.5, 5.0], gain=0)  # at most 7.5, and 8 is the best of its cost
    assert goes_on([5.0, 0.5], gain=0.1)


def test_a_larger_gain_is_asked_for_or_a_smaller():
    found = improvement.of_curves(np.array([[10.5, 5.0]]), Peers.of(FINISHED), rungs=2)
    assert 0 < found < 0.2
    assert goes_on([10.5, 5.0], gain=0.99 * found) and not goes_on([10.5, 5.0], gain=1.01 * found)


def test_nothing_is_stopped_before_enough_have_finished():
    unfinished = [[[1.0, 0.1]]] * 9
    assert goes_on([99.0, 99.0], [*FINISHED[:3], *unfinished])
    assert not goes_on([99.0, 99.0], [*FINISHED, *unfinished])
    assert goes_on([99.0, 99.0], FINISHED, min_peers=5)
    assert goes_on([99.0, 99.0], [], min_peers=1)


def test_gains_that_scatter_keep_a_trial_alive():
    """The same scores at the rung and the same mean gain, but one finished trial gained much."""
    steady = [[[10.0, cost], [8.0, cost]] for cost in (4.0, 3.0, 2.0, 1.0)]
    uneven = [[[10.0 + jump, cost], [8.0, cost]] for cost, jump in ((4.0, 6.0), (3.0, -2.0), (2.0, -2.0), (1.0, -2.0))]
    assert goes_on([11.0, 4.0], uneven) and not goes_on([11.0, 4.0], steady)


def test_of_very_many_recorded_gains_a_part_is_enough():
    curves = [np.array(curve) for curve in FINISHED]
    often = [curve for curve in curves for _ in range(improvement.MOST_GAINS)]
    point = np.array([[10.5, 5.0]])
    expected = improvement.of_curves(point, Peers.of(curves), 2)
    assert improvement.of_curves(point, Peers.of(often), 2) == pytest.approx(expected)


@pytest.mark.parametrize("gain", [-0.1, 1.0, "much"])
def test_an_impossible_gain_is_refused(gain):
    with pytest.raises(ValueError, match="gain"):
        Stopping(rule="improvement", gain=gain)


def test_the_reason_names_the_share_and_the_gain():
    curves = [np.array(curve) for curve in FINISHED]
    point, settings = np.array([[10.5, 5.0]]), Stopping(rule="improvement", gain=0.005, rungs=(0.5, 1.0))
    share = improvement.of_curves(point, Peers.of(curves), 2)
    told = stopping.reason(point, curves, settings, {"fid": "minimise", "macs": "minimise"})
    assert told == f"at rung 0 expected to add {share:.2%} to the hypervolume, not more than 0.50%"
