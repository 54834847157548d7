"""Bradley-Terry scores against closed forms, another optimiser and known tastes; agreement of judges and of metrics."""

from itertools import combinations, permutations
from math import log

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from nas.analysis.people import judged, judges, preference
from nas.runs.judgements import Judgement

TRUTH = np.array([1.4, 0.6, 0.1, -0.2, -0.7, -1.2])


def answered(left, right, answer, judge="ann", caption=0):
    return Judgement(judge, "2026-01-01T10:00:00+00:00", caption, str(left), str(right), answer, 2.0)


def simulated(truth, count, seed, captions=16, judge="ann", ties=0.0):
    """Answers to different questions of somebody who prefers by Bradley-Terry with these scores."""
    rng = np.random.default_rng(seed)
    asked = [(c, i, j) for c in range(captions) for i, j in permutations(range(len(truth)), 2) if i < j]
    found = []
    for place in rng.permutation(len(asked))[:count]:
        caption, i, j = asked[place]
        likes = "left" if rng.random() < 1 / (1 + np.exp(truth[j] - truth[i])) else "right"
        found.append(answered(i, j, "tie" if rng.random() < ties else likes, judge, caption))
    return found


@pytest.mark.parametrize(("won", "lost"), [(30, 10), (1, 7), (5, 5), (0.5, 3.5)])
@pytest.mark.parametrize("prior", [0.0, 1.0, 4.0])
def test_two_trials_have_their_log_odds(won, lost, prior):
    values = preference.strengths(np.array([[0, won], [lost, 0]]), prior)
    assert values == pytest.approx([log((won + prior / 2) / (lost + prior / 2)) / 2 * sign for sign in (1, -1)])


def test_two_trials_have_the_variance_of_log_odds():
    """1 / won + 1 / lost, of the difference; one caption has no other to differ from."""
    made = preference.choices(
        [answered(0, 1, "left", f"j{k}") for k in range(30)] + [answered(0, 1, "right", f"k{k}") for k in range(10)]
    )
    found = preference.fit(made, prior=0.0)
    gap = np.array([1.0, -1.0])
    assert found.degrees == 0 and gap @ found.covariance @ gap == pytest.approx(1 / 30 + 1 / 10)
    assert found.p == pytest.approx(2 * norm.sf(log(3) / (1 / 30 + 1 / 10) ** 0.5))


@pytest.mark.parametrize("prior", [0.0, 1.0])
@pytest.mark.parametrize("wins", [[[0, 7, 9], [3, 0, 4.5], [2, 6.5, 0]], [[0, 40, 1], [1, 0, 30], [2, 1, 0]]])
def test_three_trials_against_another_optimiser(wins, prior):
    wins = np.array(wins, dtype=float)

    def loss(free):
        values = np.array([*free, 0.0])
        gap = values[:, None] - values[None]
        games = wins + prior / 4 * (1 - np.eye(3))  # one tie of each with the two others: a quarter of a win each
        return float((games * np.logaddexp(0, -gap)).sum())

    free = np.array([*minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x, 0.0])
    assert preference.strengths(wins, prior) == pytest.approx(free - free.mean(), abs=1e-5)


def test_who_always_won_has_a_finite_score():
    values = preference.strengths(np.triu(np.full((12, 12), 50.0), 1))
    assert np.isfinite(values).all() and (np.diff(values) < 0).all() and values.sum() == pytest.approx(0, abs=1e-9)


def test_scores_of_a_judge_whose_taste_is_known():
    truth = TRUTH - TRUTH.mean()
    found = preference.fit(preference.choices(simulated(truth, 240, seed=1)))
    assert found.trials == tuple(map(str, range(6))) and abs(found.values - truth).max() < 0.6
    many = preference.fit(
        preference.choices([one for k in range(12) for one in simulated(truth, 240, k, judge=f"j{k}")])
    )
    assert abs(many.values - truth).max() < 0.2 and (many.half < 0.4 * found.half).all()


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Also where a trial's pictures of a caption are better or worse as a whole, which the binomial variance does not know."""
    truth, inside = TRUTH - TRUTH.mean(), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        pictures = truth[:, None] + rng.normal(0, 0.8, (6, 12))
        given = []
        for caption in range(12):
            for one in simulated(pictures[:, caption], 15, seed * 100 + caption, captions=1):
                given.append(answered(one.left, one.right, one.answer, caption=caption))
        found = preference.fit(preference.choices(given))
        inside += list(abs(found.values - truth) < found.half)
    assert 0.9 < np.mean(inside) <= 0.995


def test_a_tie_is_half_a_choice_and_a_question_counts_once_a_judge():
    twice = [answered(0, 1, "left"), answered(1, 0, "left"), answered(2, 1, "tie"), answered(1, 0, "right", "ben")]
    made = preference.choices(twice)
    assert made.wins().tolist() == [[0, 1.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]]
    assert made.trials == ("0", "1", "2") and len(made.won) == 3


def test_trials_are_in_order_of_their_numbers_and_others_after_them():
    made = preference.choices(
        [answered(10, 9, "left"), answered("a/b:2", 9, "left"), answered("a/b:10", "a/b:2", "left")]
    )
    assert made.trials == ("9", "10", "a/b:2", "a/b:10")


def test_nobody_answered():
    found = preference.fit(preference.choices([]))
    assert found.trials == () and found.p == 1.0 and len(found.half) == 0


def test_answers_at_random_do_not_tell_trials_apart():
    ps = [preference.fit(preference.choices(simulated(np.zeros(6), 200, seed))).p for seed in range(60)]
    assert np.mean(np.array(ps) < preference.CHANCE) <= 0.1
    assert preference.fit(preference.choices(simulated(TRUTH, 200, 0))).p < 1e-6


# --- judges ----------------------------------------------------------------------------------------------------------


def krippendorff(pairs):
    """Alpha by its coincidence matrix, every pair with both signs, interval differences."""
    values = [-1, 0, 1]
    seen = np.zeros((3, 3))
    for one, other in pairs:
        for sign in (1, -1):
            for a, b in ((one, other), (other, one)):
                seen[values.index(sign * a), values.index(sign * b)] += 1
    often, n = seen.sum(1), seen.sum()
    apart = np.subtract.outer(values, values) ** 2
    return 1 - (seen * apart).sum() / n / ((np.outer(often, often) * apart).sum() / n**2)


@pytest.mark.parametrize("seed", range(4))
def test_alpha_against_its_coincidence_matrix(seed):
    rng = np.random.default_rng(seed)
    pairs = [(int(a), int(a) if rng.random() < 0.6 else int(b)) for a, b in rng.integers(-1, 2, (40, 2))]
    found = judges.alike(pairs)
    assert found.alpha == pytest.approx(krippendorff(pairs))
    assert found.share == np.mean([a == b for a, b in pairs]) and found.low < found.share < found.high


def test_alpha_of_all_alike_of_chance_and_of_opposites():
    assert judges.alike([(1, 1), (-1, -1), (0, 0)]).alpha == 1.0
    assert judges.alike([(1, 1), (1, -1)]).alpha == 0.0 and judges.alike([(1, -1)]).alpha == -1.0
    assert np.isnan(judges.alike([]).share) and np.isnan(judges.alike([(0, 0)]).alpha)


def test_an_interval_of_a_share_is_wilsons():
    """10 of 20: the interval from statistics books, 0.2993 to 0.7007."""
    found = judges.alike([(1, 1)] * 10 + [(1, -1)] * 10)
    assert (found.low, found.high) == pytest.approx((0.2993, 0.7007), abs=1e-4)


def test_judges_with_themselves_and_with_others():
    given = [
        answered(0, 1, "left", "ann"),
        answered(1, 0, "right", "ann"),  # the same, with the sides changed
        answered(0, 2, "left", "ann"),
        answered(0, 2, "right", "ann"),  # another answer
        answered(1, 0, "left", "ben"),
        answered(2, 0, "right", "ben"),
        answered(1, 2, "tie", "ben"),
    ]
    ann, ben = judges.each(given)
    assert (ann.name, ann.answers, ann.ties, ann.left, ann.seconds) == ("ann", 4, 0, 0.5, 2.0)
    assert (ann.again.questions, ann.again.share) == (2, 0.5) and ben.again.questions == 0 and ben.ties == 1
    (both,) = judges.between(given).values()
    assert (both.questions, both.share) == (2, 0.5)  # ben prefers 1 to 0, and 0 to 2 as ann did first


# --- metrics ---------------------------------------------------------------------------------------------------------


def table_of(**metrics):
    """A run's frame with metrics, `loss` the lower the better."""
    table = pd.DataFrame(metrics)
    table.attrs["conditions"] = {name: {"higher_is_better": name != "loss"} for name in metrics}
    return table.assign(trial=range(len(table)))


def judged_of(given, goals=(), **metrics):
    return judged.of(given, table_of(**metrics), dict.fromkeys(goals, "maximise"))


def test_metrics_that_agree_that_disagree_and_that_are_open():
    truth = np.linspace(2, -2, 9)
    noise = [0.3, 0.9, 0.1, 0.8, 0.2, 0.7, 0.5, 0.4, 0.6]
    given = simulated(truth, 300, 0)
    found = judged_of(given, skill=truth, loss=truth, fid=noise, same=np.ones(9), gone=[*noise[:8], np.nan])
    assert [(one.signal, found.verdict(one)) for one in found.metrics] == [
        ("skill", "agrees"),
        ("loss", "disagrees"),
        ("fid", "open"),
    ]
    assert judged.sentence(found) == (
        "300 answers of one person on 9 trials tell some apart: skill orders them as people do; loss orders them the other way; "
        "of FID it cannot be told yet."
    )
    few = judged_of(given, ["skill", "macs"], skill=truth, fid=noise)
    assert judged.sentence(few).endswith("tell some apart: skill orders them as people do.")


def test_nothing_agrees_with_answers_at_random():
    given = simulated(np.zeros(9), 300, 3)
    scores = preference.fit(preference.choices(given)).values
    found = judged_of(given, skill=scores)  # the order that chance made
    assert not found.apart and found.verdict(found.metrics[0]) == "open"
    assert "do not tell the trials apart (p = 0." in judged.sentence(found)
    assert judged.sentence(found).endswith("So it cannot be told whether the metrics agree.")


def test_few_trials_or_no_metrics():
    found = judged_of(simulated(TRUTH, 200, 0), skill=TRUTH)
    assert not found.metrics and judged.sentence(found).endswith(
        "whether metrics agree can be told of 8 judged trials that have scores."
    )


def test_every_pair_of_the_simulation_is_a_question():
    given = simulated(TRUTH, 10**6, 0, captions=2)
    assert {one.question for one in given} == {
        (c, str(i), str(j)) for c in (0, 1) for i, j in combinations(range(6), 2)
    }
