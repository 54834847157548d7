"""Replay against a table small enough to compute by hand, and the samplers over a made-up one."""

import itertools
import random

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from optuna.samplers import RandomSampler

from nas.errors import InputError
from nas.search.stopping import Stopping
from nas.settings import study
from nas.space.search_space import SearchSpace
from nas.trust.replay import chooser, curves, multi_metric, rules, searches, simulation

optuna.logging.set_verbosity(optuna.logging.ERROR)
GOALS = {"fid": "minimise", "clip": "maximise"}

# Four architectures, three rungs. At rung 0.25 the order by FID and CLIP is a, b, c, d; in the end d is the best by far.
#        FID at 0.25, 0.5, 1   CLIP               train_s     other_s
FOUR = {
    "a": ([10, 9, 8], [40, 41, 42], [1, 1, 2], [5, 5, 5]),
    "b": ([20, 19, 6], [30, 31, 32], [2, 2, 4], [5, 5, 5]),
    "c": ([30, 29, 9], [20, 21, 30], [3, 3, 6], [5, 5, 5]),
    "d": ([40, 39, 1], [10, 11, 50], [4, 4, 8], [5, 5, 5]),
}


def four():
    rows = [
        {"key": key, "trial": number, "rung": rung, "fraction": fraction, "images_seen": int(100 * fraction)}
        | {"fid": fid[rung], "clip": clip[rung], "train_s": train[rung], "other_s": other[rung]}
        for number, (key, (fid, clip, train, other)) in enumerate(FOUR.items())
        for rung, fraction in enumerate((0.25, 0.5, 1.0))
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def table():
    return curves.from_frame(four(), GOALS, "curves.csv")


def simulate(table, order, name="halving", workers=1, **options):
    options = {"rule": name, "rungs": table.rungs, "min_peers": 2} | options
    rule = rules.rule_of(name, Stopping(**options))
    return simulation.Simulation(table, simulation.Shuffled(order), rule, workers).run()


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_minimised_and_its_rungs_can_be_left_out(table):
    assert table.images == (25, 50, 100) and table.values[3].tolist() == [[40, -10], [39, -11], [1, -50]]
    sparse = table.at([0.25, 1])
    assert sparse.images == (25, 100) and sparse.train_s[1].tolist() == [2, 6] and sparse.other_s[1].tolist() == [5, 5]
    assert sparse.values[1].tolist() == [[20, -30], [6, -32]]
    last = table.at([1.0])
    assert last.train_s[:, 0].tolist() == [4, 8, 12, 16]
    assert table.rows([2, 0]).keys == ("c", "a") and table.rows([2, 0]).values[1, 0].tolist() == [10, -40]


def dropped(frame, which):
    return frame[~which(frame)]


BAD = [
    (lambda f: f.drop(columns="fraction"), "no column 'fraction'"),
    (lambda f: f.rename(columns={"clip": "clips"}), "did you mean 'clips'"),
    (lambda f: dropped(f, lambda f: (f.key == "c") & (f.rung == 1)), "architecture c lacks rung 0.5"),
    (lambda f: pd.concat([f, f[(f.key == "b") & (f.rung == 0)]]), "architecture b has a rung twice"),
    (lambda f: dropped(f, lambda f: f.fraction == 1), "expected 1 as last"),
    (lambda f: f.assign(fid=f.fid.where(f.key != "a")), "architecture a: fid: expected a finite number"),
    (lambda f: f.assign(train_s="soon"), "train_s: expected a finite number"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_table_with_something_missing_is_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as told:
        curves.from_frame(change(four()), GOALS, "curves.csv")
    assert "\n" not in str(told.value) and str(told.value).startswith("curves.csv: ")


def test_a_rung_that_was_not_recorded_is_refused_with_the_nearest(table):
    with pytest.raises(InputError, match="rung 0.3 was not recorded; the nearest is 0.25"):
        table.at([0.3, 1.0])


# --- one study, by hand ----------------------------------------------------------------------------------------------


def test_halving_by_hand(table):
    # a: first, so it goes on everywhere: 100 images, 4 + 15 s. b at 0.25: second of 2, of which 1 is kept: stopped, 25
    # images, 2 + 5 s. c: third of 3, of which 2 are kept: stopped. d: fourth of 4: stopped.
    ended = simulate(table, [0, 1, 2, 3])
    assert ended.finished == (0,) and ended.images == (100,) and ended.seconds == (19,)
    assert ended.total_images == 175 and ended.total_seconds == 19 + 7 + 8 + 9 and ended.started == 4
    # worst first: every new one is the best so far and goes on to the end
    ended = simulate(table, [3, 2, 1, 0])
    assert ended.finished == (3, 2, 1, 0) and ended.total_images == 400
    # min_peers 3: b goes on, and at 0.5 too
    assert simulate(table, [0, 1, 2, 3], min_peers=3).finished == (0, 1)


def test_two_workers_by_hand(table):
    # a ends its rung at 6 s and goes on; b at 7 s: second of 2, stopped. c starts at 7 and ends at 15: third of 3, stopped.
    # a: 0.5 at 12, 1 at 19. d starts at 15, ends at 24: stopped.
    ended = simulate(table, [0, 1, 2, 3], workers=2)
    assert ended.finished == (0,) and ended.images == (150,) and ended.total_images == 175
    assert ended.seconds == (19 + 7 + 8,) and ended.total_seconds == 43
    # the worst first: d ends its rung at 9 s, c at 8 s and before it: then c has nothing to be worse than
    ended = simulate(table, [3, 2], workers=2)
    assert ended.finished == (2,) and ended.total_images == 125


def test_what_was_finished_within_a_limit(table):
    ended = simulate(table, [2, 0, 1], "none")  # at 100, 200, 300 images; after 27, 46 and 69 s
    assert ended.within() == [2, 0, 1] and ended.within(images=250) == [2, 0] and ended.within(images=99) == []
    assert ended.within(seconds=46) == [2, 0] and ended.within(images=100, seconds=69) == [2]


@given(st.permutations(range(4)), st.integers(1, 4))
@effort(max_examples=24, deadline=None)
def test_without_stopping_all_is_trained_and_nothing_lost(order, workers):
    table = curves.from_frame(four(), GOALS, "")
    ended = simulate(table, order, "none", workers)
    assert sorted(ended.finished) == [0, 1, 2, 3] and ended.total_images == 400
    assert ended.total_seconds == table.train_s.sum() + table.other_s.sum()
    assert simulation.volume_of(table)(ended.finished) == pytest.approx(1)


def test_hypervolume_by_hand(table):
    # final FID 8 6 9 1, CLIP 42 32 30 50; scaled to [0, 1]: FID 7/8, 5/8, 1, 0; -CLIP 0.4, 0.9, 1, 0; corner 1.1
    volume = simulation.volume_of(table)
    assert volume([3]) == pytest.approx(1) and volume([]) == 0
    assert volume([0]) == pytest.approx((1.1 - 7 / 8) * (1.1 - 0.4) / 1.21)
    both = (1.1 - 7 / 8) * 0.7 + (7 / 8 - 5 / 8) * (1.1 - 0.9)
    assert volume([0, 1]) == pytest.approx(both / 1.21)


def test_a_verdict_by_hand(table):
    # the 24 orders, each by the loop above, whose own cases are computed by hand
    study = Stopping(rule="halving", rungs=(0.25, 1.0), min_peers=2)
    told = rules.judge(table, "halving", study, shuffles=60)
    volume = simulation.volume_of(table)
    images, lost = [], []
    for order in rules.orders(4, 60, 0):
        ended = simulate(table.at([0.25, 1]), order.tolist())
        images.append(1 - ended.total_images / 400)
        lost.append(1 - volume(ended.finished))
    assert told.images_saved.mean == pytest.approx(np.mean(images))
    assert told.hypervolume_lost.mean == pytest.approx(np.mean(lost))
    assert told.hypervolume_lost.low <= told.hypervolume_lost.mean <= told.hypervolume_lost.high
    assert 0 < told.images_saved.mean < 0.75
    none = rules.judge(table, "none", study, shuffles=3)
    assert (none.images_saved.mean, none.seconds_saved.mean, none.hypervolume_lost.mean) == (0, 0, 0)


def test_what_is_chosen_on_one_half_is_reported_on_the_other():
    table = made_up(24)
    first, second = rules.halves(table)
    assert not set(first.keys) & set(second.keys) and set(first.keys) | set(second.keys) == set(table.keys)
    found = rules.tune(table.at([0.25, 1.0]), lost=0.05, shuffles=3)
    best = found[0]
    assert best.chosen_on == rules.judge(first, best.settings.rule, best.settings, 3)
    assert best.other == rules.judge(second, best.settings.rule, best.settings, 3)
    allowed = [each for each in found if each.chosen_on.hypervolume_lost.mean <= 0.05]
    assert not allowed or best.chosen_on.images_saved.mean == max(e.chosen_on.images_saved.mean for e in allowed)


def test_agreement_of_rungs_leaves_out_what_training_does_not_move():
    frame = four()
    frame["macs"] = frame["trial"] * 1e9
    found = rules.agreement(curves.from_frame(frame, {**GOALS, "macs": "minimise"}, "x"), ["fid", "clip", "macs"])
    assert found.columns.tolist() == ["fid", "clip"] and found.index.tolist() == [0.25, 0.5]
    early, late = zip(*[(fid[0], fid[-1]) for fid, *_ in FOUR.values()], strict=True)
    signs = [np.sign((early[a] - early[b]) * (late[a] - late[b])) for a, b in itertools.combinations(range(4), 2)]
    assert found["fid"].iloc[0] == pytest.approx(sum(signs) / len(signs), abs=0.005)


# --- Optuna Hub's rule -----------------------------------------------------------------------------------------------


def test_multi_metric_rewards_by_hand():
    # ranks 0, 1, 1, 2; the last is alone in its rank
    points = np.array([[1.0, 1.0], [2.0, 4.0], [4.0, 2.0], [5.0, 5.0]])
    assert multi_metric.rewards(points).tolist() == [0, 1, 1, 2]
    # the last is on the front: -1 for it, and the other member of the front keeps 0
    assert multi_metric.rewards(np.array([[2.0, 1.0], [3.0, 3.0], [1.0, 2.0]])).tolist() == [0, 1, -1]
    # (2, 4) and (3, 2) share rank 1 with reference 1.1 * (3, 4) = (3.3, 4.4): areas 1.3 * 0.4 and 0.3 * 2.4
    assert multi_metric.rewards(np.array([[1.0, 1.0], [2.0, 4.0], [3.0, 2.0]])).tolist() == [0, 0.9, 0.5]


@given(st.lists(st.tuples(*[st.sampled_from([-2.0, -1.0, 0.5, 1.0, 2.0])] * 4), min_size=1, max_size=9))
@effort(max_examples=80, deadline=None)
def test_multi_metric_is_optunas_median_pruner_on_the_rewards(rows):
    *others, curve = [np.array(row).reshape(2, 2) for row in rows]
    told = [multi_metric.rewards(np.array([*(o[step] for o in others), curve[step]])) for step in (0, 1)]
    synthetic = optuna.create_study(direction="minimize")
    for index in range(len(others)):
        values = {step: told[step][index] for step in (0, 1)}
        synthetic.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=values))
    state = optuna.trial.TrialState.RUNNING
    running = optuna.trial.create_trial(state=state, intermediate_values={step: told[step][-1] for step in (0, 1)})
    expected = optuna.pruners.MedianPruner().prune(synthetic, running)
    assert multi_metric.goes_on(curve, others) == (not expected)


# --- samplers --------------------------------------------------------------------------------------------------------

STUDY = """
space: mobilediffusion
dataset: emoji
budget: {params: 400M, macs: 200G}
search: {sampler: random, trials: 8, minimise: [fid, macs]}
metrics: [fid]
"""


def made_up_frame(count):
    space, rng, rows = SearchSpace.load("mobilediffusion"), random.Random(1), []
    while len(rows) < 3 * count:
        choices = space.sample(rng)
        config = space.architecture(choices)
        cost = config.cost(64, 77)
        if cost.params > 4e8 or cost.macs > 2e11:
            continue
        for rung, fraction in enumerate((0.25, 0.5, 1.0)):
            row = {"key": config.key, "trial": len(rows) // 3, "rung": rung, "fraction": fraction}
            row |= {"images_seen": int(1000 * fraction), "train_s": 1.0, "other_s": 2.0, "macs": cost.macs}
            row |= {"fid": 1e11 / cost.params * (2 - fraction), "params": cost.params}
            rows.append(row | {f"arch.{axis}": str(choice) for axis, choice in choices.items()})
    return pd.DataFrame(rows)


def made_up(count):
    return curves.from_frame(
        made_up_frame(count), {"fid": "minimise", "macs": "minimise"}, "", SearchSpace.load("mobilediffusion")
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    made_up_frame(16).to_csv(tmp_path / "curves.csv", index=False)
    return tmp_path


def test_choices_survive_the_file(folder):
    table, _ = curves.load(folder)
    assert table.choices == made_up(16).choices
    space = SearchSpace.load("mobilediffusion")
    assert [space.architecture(choices).key for choices in table.choices] == list(table.keys)


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "optuna"])
def test_every_sampler_takes_every_architecture_once(folder, sampler):
    table, about = curves.load(folder)
    settings_ = Stopping(rungs=(0.25, 0.5, 1.0), min_peers=2)
    (whole,) = searches.explore(table, about, sampler, "none", settings_, 1)
    assert sorted(whole.finished) == list(range(16))
    (stopped,) = searches.explore(table, about, sampler, "halving", settings_, 1, 2)
    assert len(stopped.finished) < stopped.started == 16
    assert searches.hypervolumes(table, [whole], 16, "images") == [pytest.approx(1)]
    four_of_them = [simulation.volume_of(table)(whole.finished[:4])]
    assert searches.hypervolumes(table, [whole], 4, "images") == four_of_them
    last_only = table.at([1.0])  # each took 3 s of training and 2 s of scoring
    (whole,) = searches.explore(last_only, about, sampler, "none", settings_, 1)
    assert searches.hypervolumes(last_only, [whole], 4, "seconds") == [simulation.volume_of(table)(whole.finished[:4])]


def test_a_gaussian_process_does_too(folder):
    table, about = curves.load(folder)
    (ended,) = searches.explore(table.rows(range(8)), about, "gp", "none", Stopping(rungs=(0.5, 1.0)), 1)
    assert sorted(ended.finished) == list(range(8))


def test_a_charged_sampler_pays_for_what_is_over_budget(folder):
    table, about = curves.load(folder)
    (ended,) = searches.explore(table, about, "optuna_charged", "none", Stopping(), 1)
    vain = ended.started - len(ended.finished)
    assert vain > 0 and ended.total_images == 1000 * ended.started


def test_a_budget_of_latency_is_charged(folder, monkeypatch):
    """The latency is made up: a tenth of a millisecond for a million parameters."""
    table, about = curves.load(folder)
    monkeypatch.setattr(study.Deploy, "costs", lambda _, config: {"latency_ms": config.cost(64, 77).params / 1e7})
    about = about.model_copy(update={"budget": {"latency_ms": 30.0}})
    space, taken = SearchSpace.load("mobilediffusion"), []
    chosen = chooser.Chooser(table, about, space, RandomSampler(seed=0), charged=True, seed=0)
    monkeypatch.setattr(chosen, "_take", lambda _, choices: taken.append(space.architecture(choices)))
    told = [chosen.ask() for _ in range(30)]
    assert 0 < len(taken) < 30 and told.count(simulation.OVER_BUDGET) == 30 - len(taken)
    assert all(config.cost(64, 77).params <= 3e8 for config in taken)


def test_what_is_taken_is_the_nearest_left(folder):
    table, about = curves.load(folder)
    space = SearchSpace.load("mobilediffusion")
    chosen = chooser.Chooser(table, about, space, RandomSampler(seed=0), charged=False, seed=0)
    for index in (3, 7):  # suggested exactly, so taken exactly
        chosen.optuna.enqueue_trial(space.parameters(table.choices[index]))
        assert chosen.ask() == index
        chosen.tell(index, complete=True)
    chosen.optuna.enqueue_trial(space.parameters(table.choices[3]))
    taken = chosen.ask()
    distances = [chooser.distance(space, table.choices[3], choices) for choices in table.choices]
    assert distances[3] == 0 and distances[taken] == min(d for i, d in enumerate(distances) if i not in (3, 7))
    told = chosen.optuna.get_trials()
    assert told[0].values == table.values[3, -1].tolist() and all(value <= 0 for value in told[0].constraints.values())


def test_distances_by_hand():
    offered = (768, 896, 1024, 1152, 1280)
    assert chooser.axis_distance(offered, True, {"w": 768}, {"w": 1024}, "w") == 0.5
    assert chooser.axis_distance(offered, False, {"w": 768}, {"w": 1024}, "w") == 1
    assert chooser.axis_distance(offered, True, {}, {"w": 768}, "w") == 1
    assert chooser.axis_distance(offered, True, {}, {}, "w") == 0
