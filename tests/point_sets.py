"""Sets of points as hypothesis draws them, and what can be said of them without the library."""

import itertools

from hypothesis import strategies as st

VALUES = st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0])  # few, so that ties and equal points occur


def sets(least=1, most=12, objectives=(1, 2, 3)):
    """Points (n, objectives) as lists."""
    return st.sampled_from(objectives).flatmap(
        lambda width: st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=least, max_size=most)
    )


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def area_of_union(front, corner):
    """The area that boxes up to the corner cover, by inclusion and exclusion over all subsets."""
    total = 0.0
    for size in range(1, len(front) + 1):
        for subset in itertools.combinations(front, size):
            sides = [max(0.0, corner - max(point[axis] for point in subset)) for axis in range(2)]
            total += (-1) ** (size + 1) * sides[0] * sides[1]
    return total
