"""Noise-aware fronts: against the t test, brute force and, over many made-up problems, the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from scipy import stats

from nas.search import racing
from nas.search.dominance import hypervolume, nondominated
from nas.search.racing import Racing, hypervolume_interval, membership, next_repeats, noise, verdicts

SEPARATED = {"a": [[0.0, 10.0], [0.1, 10.1]], "b": [[5.0, 5.0], [5.1, 4.9]], "c": [[10.0, 0.1], [9.9, 0.0]]}
DOMINATED = {"d": [[9.0, 9.0], [9.1, 9.1]]}
GRID = st.sampled_from([-1.0, 0.0, 0.25, 2.0])  # few, so that ties and equal points occur


def named(rows):
    return {f"k{number}": each for number, each in enumerate(rows)}


def places(values, **options):
    return {verdict.key: verdict.place for verdict in verdicts(values, **options)}


# --- the noise -------------------------------------------------------------------------------------------------------


def test_the_pooled_sd_is_the_within_mean_square_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    groups = [rng.normal(loc, 2.0, size=count) for loc, count in ((0, 2), (3, 5), (-4, 3), (1, 2))]
    grand = np.concatenate(groups).mean()
    between = sum(len(g) * (g.mean() - grand) ** 2 for g in groups) / (len(groups) - 1)
    expected = math.sqrt(between / stats.f_oneway(*groups).statistic)
    found = noise(named([[[value, 7.0] for value in group] for group in groups] + [[[100.0, 1.0]]]))
    assert found.sd == (pytest.approx(expected), 0.0)  # what is measured once says nothing about noise
    assert found.degrees == 8 and found.known


def test_without_repeats_the_noise_is_unknown_and_so_is_the_front():
    values = {"a": [[0.0, 1.0]], "b": [[1.0, 0.0]], "c": [[2.0, 2.0]]}
    assert not noise(values).known and all(map(math.isnan, noise(values).sd))
    assert all(map(math.isnan, membership(values).values()))
    assert set(places(values).values()) == {"perhaps"}
    assert all(map(math.isnan, hypervolume_interval(values, [3, 3])))


# --- membership ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"), [([1.0, 2.0, 1.5], [2.0, 2.2]), ([0.3, 0.1], [0.2]), ([4.0, 1.0], [0.0, 3.0])]
)
def test_two_architectures_and_one_objective_are_a_t_test(first, second):
    if len(second) > 1:
        expected = stats.ttest_ind(first, second, alternative="less").pvalue
    else:
        step = np.std(first, ddof=1) * math.sqrt(1 / len(first) + 1)
        expected = stats.t.cdf((np.mean(first) - second[0]) / step, df=len(first) - 1)
    found = membership({"a": [[v] for v in first], "b": [[v] for v in second]}, draws=40_000)
    assert found["a"] == pytest.approx(1 - expected, abs=0.01)
    assert found["a"] + found["b"] == pytest.approx(1)


def test_separated_points_are_decided():
    assert places(SEPARATED | DOMINATED) == {"a": "sure", "b": "sure", "c": "sure", "d": "no"}
    assert next_repeats(SEPARATED | DOMINATED) == []


def test_equally_good_ones_are_undecided():
    values = named([[[1.0, 1.0], [2.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]], [[1.5, 1.0], [1.5, 2.0]]])
    assert set(places(values).values()) == {"perhaps"}
    assert sorted(next_repeats(values)) == sorted(values)


def test_a_verdict_says_what_was_measured():
    verdict = verdicts(SEPARATED)[1]
    assert (verdict.key, verdict.n, verdict.place) == ("b", 2, "sure")
    assert verdict.mean == pytest.approx((5.05, 4.95)) and verdict.probability == membership(SEPARATED)["b"]


def brute_force_front(points):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    return [not any(dominates(other, point) for other in points) for point in points]


@given(st.integers(1, 3).flatmap(lambda m: st.lists(st.tuples(*[GRID] * m), min_size=1, max_size=9)), st.integers(2, 4))
@effort(max_examples=60, deadline=None)
def test_without_noise_it_is_the_front(points, repeats):
    """The last architecture is measured once: pooled noise of 0 holds for it too."""
    values = named([[point] * (repeats if index else 2) for index, point in enumerate(points)])
    values[f"k{len(points) - 1}"] = [points[-1]] * (1 if len(points) > 1 else 2)
    assert list(membership(values, draws=3).values()) == [float(member) for member in brute_force_front(points)]
    assert next_repeats(values, draws=3) == []
    reference = np.full(len(points[0]), 3.0)
    assert hypervolume_interval(values, reference, draws=3) == pytest.approx(
        [hypervolume(np.array(points), reference)] * 2
    )


def test_ties_survive_averaging():
    """0.1 three times averages to something else in floating point, and equal costs would stop being equal."""
    values = {"a": [[0.1, 1.0]] * 3, "b": [[0.1, 1.0]] * 7, "c": [[0.1, 1.0]]}
    assert membership(values, draws=5) == {"a": 1.0, "b": 1.0, "c": 1.0}


@given(st.lists(st.lists(st.tuples(GRID, GRID), min_size=1, max_size=3), min_size=2, max_size=6), st.integers(0, 5))
@effort(max_examples=60, deadline=None)
def test_units_and_seeds(groups, seed):
    """Probabilities don't depend on units, repeat with the seed, and somebody is always on the front."""
    values = named([*groups, [(0.0, 0.5), (1.0, 0.0)]])
    found = membership(values, draws=40, seed=seed)
    assert found == membership(values, draws=40, seed=seed)
    assert sum(found.values()) >= 1 - 1e-9 and all(0 <= share <= 1 for share in found.values())
    other = {key: np.array(rows) * [8.0, 0.5] + [16.0, -4.0] for key, rows in values.items()}
    assert membership(other, draws=40, seed=seed) == found


def test_fewer_draws_are_the_first_of_more():
    measured = racing._checked(SEPARATED)
    few, many = (racing._drawn_means(measured, draws, 3) for draws in (10, 50))
    assert np.array_equal(few[:, :, :], many[:10]) or np.allclose(few, many[:10], rtol=1e-12)


def test_draws_have_the_spread_of_the_mean():
    """Student's t with the pooled degrees and sd / sqrt(n), for each architecture and objective."""
    rng = np.random.default_rng(1)
    values = named([rng.normal(size=(count, 2)) * [1.0, 30.0] for count in (1, 2, 4, 9)])
    found, drawn = noise(values), racing._drawn_means(racing._checked(values), 4000, 0)
    for index, rows in enumerate(values.values()):
        for objective in range(2):
            step = found.sd[objective] / math.sqrt(len(rows))
            scaled = (drawn[:, index, objective] - rows[:, objective].mean()) / step
            assert stats.kstest(scaled, stats.t(found.degrees).cdf).pvalue > 1e-3


# --- what to measure again -------------------------------------------------------------------------------------------


def test_members_measured_once_come_first():
    values = {"a": [[0.0, 3.0]], "b": [[1.0, 1.0]], "c": [[3.0, 0.0]], "d": [[4.0, 4.0]]}
    assert next_repeats(values) == ["a", "b", "c"]
    values["b"] = [[1.0, 1.0], [1.2, 0.9]]
    assert next_repeats(values)[:2] == ["a", "c"]


def test_then_the_undecided_nearest_to_one_half_first():
    values = {
        "sure": [[0.0], [0.2], [0.1]],
        "close": [[0.1], [0.3], [0.2]],
        "closer": [[0.05], [0.25], [0.15]],
        "out": [[5.0], [5.2], [5.1]],
    }
    probabilities = membership(values)
    expected = [key for key in values if 0.05 <= probabilities[key] < 0.95]
    assert next_repeats(values) == sorted(expected, key=lambda key: abs(probabilities[key] - 0.5))
    assert "out" not in next_repeats(values) and len(expected) == 3


def test_of_the_undecided_the_least_often_measured_first():
    """However close a tie is, it waits until the others have been measured as often."""
    values = {"a": [[0.0], [1.0]] * 4, "b": [[0.0], [1.0]] * 4, "c": [[0.2], [1.2]] * 3, "d": [[0.2], [1.1]] * 2}
    probabilities = membership(values)
    assert all(0.05 <= share < 0.95 for share in probabilities.values())
    assert next_repeats(values)[:2] == ["d", "c"] and set(next_repeats(values)[2:]) == {"a", "b"}
    assert max(abs(probabilities[key] - 0.5) for key in "ab") < abs(probabilities["c"] - 0.5)


def test_confidence_moves_the_line():
    values = {"a": [[0.0], [1.0]], "b": [[1.5], [2.5]], "c": [[1.0], [2.0]]}
    probability = membership(values)["a"]
    assert 0.55 < probability < 0.95
    assert places(values)["a"] == "perhaps" and places(values, confidence=0.55)["a"] == "sure"


@pytest.mark.parametrize(
    ("probability", "place"), [(0.95, "sure"), (0.9499, "perhaps"), (0.05, "perhaps"), (0.0499, "no")]
)
def test_the_lines_belong_to_the_better_side(probability, place):
    assert racing._place(probability, 0.95) == place


# --- against the truth -----------------------------------------------------------------------------------------------


def problem(rng, crowded):
    """True means (n, 2): scattered at random, or along a front with some behind it."""
    count = int(rng.integers(6, 20))
    if not crowded:
        return rng.standard_normal((count, 2))
    along = rng.random(count)
    return 3 * np.stack([along, (1 - along) ** 2 + rng.exponential(0.15, count)], axis=1)


def measure(rng, truth, sd, counts):
    return named([point + sd * rng.standard_normal((count, 2)) for point, count in zip(truth, counts, strict=True)])


@pytest.mark.parametrize(
    ("sd", "crowded"), [((0.1, 0.1), True), ((0.3, 0.0), True), ((0.3, 0.3), False), ((0.6, 0.6), False)]
)
def test_calibration_over_simulated_problems(sd, crowded):
    """Who is sure is there, who is out is not, the rest about as often as said; and the interval holds the volume.

    Crowded fronts are there more often than said (see the module's assumptions), never clearly less. The interval's
    coverage, over 400 problems each, is 0.90 to 0.94: it is tested against 0.9, with the chance of 40 problems.
    """
    rng, sure, out, said, true, covered = np.random.default_rng(7), [], [], [], [], []
    reference = np.array([4.0, 4.0])
    for _ in range(150):
        truth = problem(rng, crowded)
        values = measure(rng, truth, np.array(sd), [2, *rng.integers(1, 4, len(truth) - 1)])
        probability = np.array(list(membership(values, draws=400).values()))
        front = nondominated(truth)
        sure += front[probability >= 0.95].tolist()
        out += (~front[probability < 0.05]).tolist()
        middle = (probability >= 0.05) & (probability < 0.95)
        said, true = said + probability[middle].tolist(), true + front[middle].tolist()
        if len(covered) < 40:  # the slow part
            low, high = hypervolume_interval(values, reference, draws=80)
            covered.append(low <= hypervolume(truth, reference) <= high)
    assert len(sure) > 80 and np.mean(sure) >= 0.93
    assert len(out) > 80 and np.mean(out) >= 0.93
    assert -0.05 <= np.mean(true) - np.mean(said) <= (0.2 if crowded else 0.1)
    assert stats.binomtest(sum(covered), len(covered), 0.9, alternative="less").pvalue > 1e-3 and not all(covered)


def test_the_interval_is_corrected_for_luck():
    """Noise makes nearly every measured front too good, and the draws around it better still; the interval allows for it."""
    rng, reference, covered, too_good, within_draws = np.random.default_rng(0), np.array([4.0, 4.0]), 0, 0, 0
    for _ in range(40):
        truth = problem(rng, crowded=True)
        values = measure(rng, truth, 1.0, [2] * len(truth))
        volume, measured = hypervolume(truth, reference), hypervolume(racing._means(racing._checked(values)), reference)
        low, high = hypervolume_interval(values, reference, draws=80)
        covered += low <= volume <= high
        too_good += measured > volume
        within_draws += 2 * measured - high <= volume <= 2 * measured - low
    assert too_good > 30
    assert stats.binomtest(within_draws, 40, 0.9, alternative="less").pvalue < 1e-3  # what it would be uncorrected
    assert stats.binomtest(covered, 40, 0.9, alternative="less").pvalue > 1e-3


def test_noise_as_large_as_the_spread_declares_few_and_rarely_a_wrong_one():
    rng, declared, wrong = np.random.default_rng(11), 0, 0
    for _ in range(150):
        truth = problem(rng, crowded=False)
        values = measure(rng, truth, 1.0, [2, *rng.integers(1, 4, len(truth) - 1)])
        sure = np.array(list(membership(values, draws=200).values())) >= 0.95
        declared, wrong = declared + sure.sum(), wrong + (sure & ~nondominated(truth)).sum()
    assert 0 < declared < 0.5 * 150 and wrong <= 0.05 * 150


def undecided(values):
    return sum(place == "perhaps" for place in places(values, draws=200).values())


def test_more_repeats_leave_fewer_undecided():
    rng, left = np.random.default_rng(3), {2: 0, 6: 0, 30: 0}
    for _ in range(25):
        truth = problem(rng, crowded=True)
        values = measure(rng, truth, 0.4, [30] * len(truth))
        for count in left:
            left[count] += undecided({key: rows[:count] for key, rows in values.items()})
    assert left[2] > 1.05 * left[6] and left[6] > 1.2 * left[30]


def race(pool, trials):
    """Measurements of each architecture after as many repeats as are wanted, at most `trials`."""
    counts = dict.fromkeys(pool, 1)
    for _ in range(trials):
        urgent = next_repeats({key: pool[key][: counts[key]] for key in pool}, draws=200)
        if not urgent:
            break
        counts[urgent[0]] += 1
    return counts


def test_racing_decides_more_with_fewer_trials_than_repeating_all_alike():
    rng, raced, even, saved = np.random.default_rng(5), 0, 0, 0
    for _ in range(12):
        truth = problem(rng, crowded=False)
        pool = measure(rng, truth, 0.25, [60] * len(truth))
        counts = race(pool, 2 * len(pool))
        raced += undecided({key: pool[key][: counts[key]] for key in pool})
        even += undecided({key: rows[:3] for key, rows in pool.items()})
        saved += 3 * len(pool) - sum(counts.values())
    assert raced < even and saved > 0


# --- bad input -------------------------------------------------------------------------------------------------------


BAD = {
    "no architectures": ({}, "no architectures"),
    "nan": ({"a": [[1.0, 2.0]], "b": [[1.0, math.nan]]}, "values of b.*finite"),
    "infinite": ({"a": [[math.inf, 2.0]]}, "values of a.*finite"),
    "ragged": ({"a": [[1.0, 2.0], [1.0]]}, "values of a are not an array"),
    "words": ({"a": [["low", "high"]]}, "values of a are not an array"),
    "other objectives": (
        {"a": [[1.0, 2.0]], "b": [[1.0]]},
        r"values of b have shape \(1, 1\), expected \(repeats, 2\)",
    ),
    "one row": ({"a": [1.0, 2.0]}, "values of a have shape"),
    "no repeats": ({"a": [[1.0, 2.0]], "b": np.empty((0, 2))}, "values of b have shape"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize(
    "function", [noise, membership, verdicts, next_repeats, lambda v: hypervolume_interval(v, [1, 1])]
)
def test_bad_values_are_named(case, function):
    values, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        function(values)


@pytest.mark.parametrize("reference", [[1.0], [1.0, math.nan], 3.0])
def test_the_reference_has_one_number_per_objective(reference):
    with pytest.raises(ValueError, match="reference"):
        hypervolume_interval(SEPARATED, reference)


def test_draws_are_positive():
    with pytest.raises(ValueError, match="draws=0"):
        membership(SEPARATED, draws=0)


def test_settings():
    assert Racing() == Racing(trials=0, confidence=0.95)
    for wrong in ({"trials": -1}, {"confidence": 0.5}, {"confidence": 1.0}, {"repeats": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Racing.model_validate(wrong)
