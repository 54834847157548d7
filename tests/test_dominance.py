"""Non-dominated ranks and contributed hypervolume."""

import numpy as np
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from point_sets import area_of_union, dominates, sets

from nas.search import dominance


def ranks_by_peeling(points):
    ranks, left, rank = {}, set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        ranks |= dict.fromkeys(front, rank)
        left, rank = left - front, rank + 1
    return [ranks[i] for i in range(len(points))]


@given(sets())
@effort(max_examples=150, deadline=None)
def test_ranks_are_those_of_peeling_off_front_after_front(points):
    assert dominance.nondominated_ranks(np.array(points)).tolist() == ranks_by_peeling(points)


def test_ranks_of_a_known_set():
    points = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [3.0, 3.0], [2.0, 2.0], [5.0, 5.0]])
    assert dominance.nondominated_ranks(points).tolist() == [0, 0, 0, 1, 0, 2]


@given(sets(least=2, objectives=(2, 3)), st.floats(0.01, 100), st.floats(-50, 50))
@effort(max_examples=50, deadline=None)
def test_units_do_not_matter(points, scale, shift):
    values = np.array(points)
    rescaled = values * np.array([scale] + [1.0] * (values.shape[1] - 1)) + shift
    ranks = dominance.nondominated_ranks
    assert ranks(np.round(rescaled, 9)).tolist() == ranks(values).tolist()
    np.testing.assert_allclose(dominance.normalised(rescaled), dominance.normalised(values), atol=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7))
@effort(max_examples=60, deadline=None)
def test_contributions_are_what_inclusion_and_exclusion_gives(points):
    front = [p for p in points if not any(dominates(list(q), list(p)) for q in points)]
    whole = area_of_union(front, 1.1)
    expected = [whole - area_of_union(front[:i] + front[i + 1 :], 1.1) for i in range(len(front))]
    np.testing.assert_allclose(dominance.contributions(np.array(front)), expected, atol=1e-9)


def test_the_lonely_add_more_than_the_crowded_and_twins_nothing():
    assert dominance.contributions(np.array([[0.0, 1.0], [0.05, 0.95], [0.1, 0.9], [1.0, 0.0]])).argmax() == 3
    assert dominance.contributions(np.array([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]))[:2].tolist() == [0, 0]
