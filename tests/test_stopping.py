import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from nas import stopping
from nas.stopping import Settings

VALUES = st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0])  # few, so that ties and equal points occur


def sets(least=1, most=12, objectives=(1, 2, 3)):
    """Points (n, objectives) as lists."""
    return st.sampled_from(objectives).flatmap(
        lambda width: st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=least, max_size=most)
    )


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def ranks_by_peeling(points):
    ranks, left, rank = {}, set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        ranks |= dict.fromkeys(front, rank)
        left, rank = left - front, rank + 1
    return [ranks[i] for i in range(len(points))]


# --- ranks and order -------------------------------------------------------------------------------------------------


@given(sets())
@effort(max_examples=150, deadline=None)
def test_ranks_are_those_of_peeling_off_front_after_front(points):
    assert stopping.nondominated_ranks(np.array(points)).tolist() == ranks_by_peeling(points)


def test_ranks_of_a_known_set():
    points = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [3.0, 3.0], [2.0, 2.0], [5.0, 5.0]])
    assert stopping.nondominated_ranks(points).tolist() == [0, 0, 0, 1, 0, 2]


@given(sets())
@effort(max_examples=100, deadline=None)
def test_order_is_a_permutation_with_better_ranks_first(points):
    order = stopping.order(np.array(points))
    ranks = ranks_by_peeling(points)
    assert sorted(order) == list(range(len(points)))
    assert [ranks[i] for i in order] == sorted(ranks)


@given(sets(objectives=(1,)))
@effort(max_examples=50, deadline=None)
def test_with_one_objective_order_is_sorting(points):
    assert [points[i][0] for i in stopping.order(np.array(points))] == sorted(value for (value,) in points)


@given(sets(least=2, objectives=(2, 3)), st.floats(0.01, 100), st.floats(-50, 50))
@effort(max_examples=50, deadline=None)
def test_units_do_not_matter(points, scale, shift):
    values = np.array(points)
    rescaled = values * np.array([scale] + [1.0] * (values.shape[1] - 1)) + shift
    ranks = stopping.nondominated_ranks
    assert ranks(np.round(rescaled, 9)).tolist() == ranks(values).tolist()
    wide = np.array([[0.0, 1.0], [0.2, 0.5], [1.0, 0.0], [2.0, 2.0]])
    assert stopping.order(wide * np.array([scale, 1.0]) + shift) == stopping.order(wide)


def area_of_union(front, corner):
    """The area that boxes up to the corner cover, by inclusion and exclusion over all subsets."""
    total = 0.0
    for size in range(1, len(front) + 1):
        for subset in itertools.combinations(front, size):
            sides = [max(0.0, corner - max(point[axis] for point in subset)) for axis in range(2)]
            total += (-1) ** (size + 1) * sides[0] * sides[1]
    return total


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7))
@effort(max_examples=60, deadline=None)
def test_contributions_are_what_inclusion_and_exclusion_gives(points):
    front = [p for p in points if not any(dominates(list(q), list(p)) for q in points)]
    whole = area_of_union(front, 1.1)
    expected = [whole - area_of_union(front[:i] + front[i + 1 :], 1.1) for i in range(len(front))]
    np.testing.assert_allclose(stopping._contributions(np.array(front)), expected, atol=1e-9)


def test_the_lonely_member_of_a_front_comes_before_the_crowded():
    crowded = [[0.0, 1.0], [0.05, 0.95], [0.1, 0.9], [1.0, 0.0]]
    assert stopping.order(np.array(crowded))[0] == 3
    twins = [[0.5, 0.5], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]
    assert stopping.order(np.array(twins))[-2:] == [0, 1]  # neither adds anything; the earlier comes first


# --- going on --------------------------------------------------------------------------------------------------------


@given(sets(least=3, objectives=(2,)), st.floats(0.01, 1))
@effort(max_examples=60, deadline=None)
def test_who_goes_on_is_the_best_share(points, keep):
    *peers, point = points
    position = stopping.order(np.array(points)).index(len(points) - 1)
    expected = position < np.ceil(keep * len(points))
    assert stopping.goes_on(point, peers, Settings(keep=keep, min_peers=1)) == expected


def test_the_best_goes_on_and_the_worst_stops():
    peers = [[1.0, 5.0], [2.0, 3.0], [3.0, 2.0]]
    assert stopping.goes_on([0.0, 0.0], peers, Settings(keep=0.01))
    assert not stopping.goes_on([9.0, 9.0], peers, Settings(keep=0.75))
    assert stopping.goes_on([9.0, 9.0], peers, Settings(keep=0.76))


def test_nothing_stops_while_peers_are_few():
    settings = Settings(keep=0.25, min_peers=4)
    assert stopping.goes_on([9.0], [], settings) and stopping.goes_on([9.0], [[1.0], [2.0]], settings)
    assert not stopping.goes_on([9.0], [[1.0], [2.0], [3.0]], settings)


@given(sets(objectives=(2,)))
@effort(max_examples=40, deadline=None)
def test_keeping_all_never_stops_one(points):
    assert stopping.goes_on(points[0], points[1:], Settings(keep=1.0, min_peers=1))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rungs", [(1.0,), (0.4, 1.0), (0.0, 0.1, 1.0)])
def test_rungs_rise_to_one(rungs):
    assert Settings(rungs=rungs).rungs == rungs


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
        Settings(rungs=rungs)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 1.1}, {"min_peers": 0}, {"kept": 0.5}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Settings(**options)
