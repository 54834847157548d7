"""`nas replay`: tables, a picture, tuning, and bad input."""

import itertools
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_run
from test_replay import STUDY, made_up_frame
from typer.testing import CliRunner

from nas import cli
from nas.analysis import results
from nas.errors import InputError
from nas.search import stopping
from nas.search.stopping import Stopping
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.study import pool
from nas.trust.replay import best_first, chooser, command, curves, looks, searches, simulation
from nas.trust.replay import rules as rules_

SPACE = SearchSpace.load("mobilediffusion")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    made_up_frame(16).to_csv(tmp_path / "curves.csv", index=False)
    return tmp_path


def test_the_command_writes_tables_and_a_picture(folder):
    options = ["--shuffles", "4", "--repeats", "2", "--samplers", "tpe,optuna_charged", "--set", "rungs=[0.25,1.0]"]
    told = CliRunner().invoke(cli.app, ["replay", str(folder), *options], catch_exceptions=False)
    assert told.exit_code == 0 and "16 architectures" in told.output
    rules = pd.read_csv(folder / "replay.csv").set_index("rule")
    assert list(rules.index) == list(rules_.RULES) and rules.loc["none", "images_saved"] == 0
    assert (rules["architectures"] == 16).all() and rules.loc["halving", "rungs"] == "0.25 1"
    samplers = pd.read_csv(folder / "samplers.csv")
    assert set(samplers["trainings"]) == {1, 2, 4, 8, 16} and samplers["hypervolume"].between(0, 1 + 1e-9).all()
    assert "a quarter of the compute" in told.output
    assert command.settings_of([], (0.0, 0.5, 1.0)) == Stopping(rungs=(0, 0.5, 1))
    assert (folder / "replay.png").read_bytes()[:4] == b"\x89PNG"


def test_quarters_by_hand():
    rows = [("tpe", "halving", 1, 0.3), ("tpe", "halving", 4, 0.6), ("tpe", "none", 1, 0.1), ("optuna", "none", 4, 0.5)]
    frame = pd.DataFrame(rows, columns=["sampler", "rule", "trainings", "hypervolume"]).assign(unit="images")
    assert searches.quarters(frame, "improvement").empty
    (row,) = searches.quarters(frame, "halving").to_dict("records")
    assert row == {"unit": "images", "full": 4, "default": 0.3, "plain": "optuna", "of_plain": 0.5}


def test_tuning_from_the_command(folder):
    told = CliRunner().invoke(cli.app, ["replay", str(folder), "--shuffles", "1", "--tune", "--rules", "halving"])
    assert "chosen on 8 architectures" in told.output and "about the other 8" in told.output
    assert pd.read_csv(folder / "replay.csv")["architectures"].tolist() == [8]
    assert len(pd.read_csv(folder / "tuning.csv")) == len(list(rules_.grid((0.25, 0.5, 1.0))))


def write_looks(folder):
    """Looks that see the end of each architecture, a tenth of a second each."""
    table, about = curves.load(folder)
    signs = [1.0 if way == "minimise" else -1.0 for way in about.objectives.values()]
    ends = pd.DataFrame(table.values[:, -1] * signs, columns=list(about.objectives))
    ends.assign(key=table.keys, seconds=0.1).to_csv(folder / "looks.csv", index=False)
    return table, about


def test_a_pool_is_replayed_from_its_looks(folder):
    table, about = write_looks(folder)
    told = CliRunner().invoke(
        cli.app, ["replay", str(folder), "--rules", "none", "--samplers", "random,pool", "--repeats", "3"]
    )
    assert told.exit_code == 0 and re.search(r"^look( +1\.0+)+$", told.output, re.M)  # they see the end
    found = pd.read_csv(folder / "samplers.csv").set_index(["sampler", "unit", "trainings"])["hypervolume"]
    assert found["pool", "images", 16] == pytest.approx(1)
    assert found["pool", "images", 4] > found["random", "images", 4].max()
    # looks that see the end: the best four by greedy choice, which is brute force here
    volume, chosen = simulation.volume_of(table), []
    for _ in range(4):
        chosen.append(max((one for one in range(16) if one not in chosen), key=lambda one: volume([*chosen, one])))
    assert found["pool", "images", 4] == pytest.approx(volume(chosen))


def read_looks(folder, table, about):
    return looks.read(folder / "looks.csv", table, about)


def test_a_pool_pays_for_its_looks_before_it_trains(folder):
    table, about = write_looks(folder)
    looked = read_looks(folder, table, about)
    assert looked.values.tolist() == table.values[:, -1].tolist() and looked.seconds.tolist() == [0.1] * 16
    (history,) = searches.explore_pool(table, about, looked, 16, 1)
    first = history.finished[0]
    rest = table.train_s[first].sum() + table.other_s[first, -1]
    assert history.seconds[0] == pytest.approx(1.6 + rest) and len(history.finished) == 16


def pool_of(folder, first, seed=0):
    table, about = write_looks(folder)
    return table, best_first.BestFirst(table, SPACE, read_looks(folder, table, about), first, seed)


def test_a_pool_looks_at_some_of_the_table_and_at_more_when_nothing_is_worth_a_training(folder, monkeypatch):
    monkeypatch.setattr(best_first, "MORE", 3)
    table, asker = pool_of(folder, 5)
    trained, looked = [], []
    while (asked := asker.ask()) is not None:
        looked.append(round(10 * asker.looked_s))
        trained.append(asked)
        asker.tell(asked, complete=True)
    assert looked[0] == 5 and sorted(trained) == list(range(16))
    assert {after - before for before, after in itertools.pairwise(looked)} == {
        0,
        3,
        2,
    }  # 5, 8, 11, 14 and the last two


def test_a_look_is_at_the_nearest_of_what_promises_most(folder, monkeypatch):
    monkeypatch.setattr(best_first, "NEAR", 1.0)
    table, asker = pool_of(folder, 2)
    asker._look()
    asker._look()
    first, second = asker._waiting
    away = [chooser.distance(SPACE, table.choices[first], choices) for choices in table.choices]
    assert away[second] == min(each for index, each in enumerate(away) if index != first)


def test_a_pool_with_a_small_funnel_and_two_workers_begins_as_many_trainings_as_are_paid(folder):
    made_up_frame(24).to_csv(folder / "curves.csv", index=False)
    table, about = write_looks(folder)
    looked = read_looks(folder, table, about)  # every training takes 3 s, and 2 s of scoring; every look a tenth
    (history,) = searches.explore_pool(table, about, looked, 2, 1, workers=2)
    assert best_first.funnel(about, 2) == 19 and history.started == 2
    assert history.seconds == pytest.approx((6.9, 11.9)) and history.images == (1000, 2000)
    assert (
        searches.hypervolumes(table, [history], 2, "images")[0]
        > searches.hypervolumes(table, [history], 2, "seconds")[0]
    )


def test_a_table_that_says_no_choices_has_no_samplers(folder):
    frame = pd.read_csv(folder / "curves.csv", dtype={"key": str})
    frame.drop(columns=[name for name in frame if name.startswith("arch.")]).to_csv(folder / "curves.csv", index=False)
    with pytest.raises(InputError, match="--samplers: expected a search's table, with columns arch.<axis>"):
        CliRunner().invoke(cli.app, ["replay", str(folder), "--samplers", "random"], catch_exceptions=False)


def test_the_funnel_of_a_pool_is_that_of_the_study_it_stands_for(folder):
    _, about = write_looks(folder)
    search = about.search.model_copy(update={"sampler": "pool", "trials": 40})
    planned = about.model_copy(update={"search": search, "stopping": Stopping(rungs=(1.0,))})
    assert best_first.funnel(about, 40) == pool.looks_of(planned)


# --- the truth -------------------------------------------------------------------------------------------------------


def write_truth(folder, change):
    frame = pd.read_csv(folder / "curves.csv", dtype={"key": str})
    change(frame[frame.fraction == 1]).to_csv(folder / "truth.csv", index=False)


def test_what_is_found_is_judged_by_the_truth(folder):
    """The truth turns the order of one score round, and lists the architectures the other way."""
    write_truth(folder, lambda frame: frame.assign(fid=1000 - frame.fid).iloc[::-1])
    table, about = curves.load(folder)
    assert table.judged[:, 0].tolist() == pytest.approx((1000 - table.values[:, -1, 0]).tolist())
    assert table.judged[:, 1].tolist() == table.values[:, -1, 1].tolist()
    half = table.rows([3, 1])
    assert half.judged.tolist() == table.judged[[3, 1]].tolist()
    scaled = simulation.normalised(table.judged)
    corner = np.full(2, simulation.CORNER)
    share = simulation.hypervolume(scaled[[5]], corner) / simulation.hypervolume(scaled, corner)
    assert simulation.volume_of(table)([5]) == pytest.approx(share)
    assert rules_.agreement(table, list(about.objectives))["fid"].tolist() == [-1.0] * 3


def test_a_table_has_the_architectures_that_its_truth_has(folder):
    write_truth(folder, lambda frame: frame.assign(fid=frame.fid + 1).iloc[2:5])
    table, _ = curves.load(folder)
    whole, _ = curves.whole(folder)
    assert table.keys == whole.keys[2:5] and table.left_out == 13
    assert table.judged == pytest.approx(whole.values[2:5, -1] + [1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(key="other" + frame.key), r"none of its architectures is in .*curves.csv"),
        (lambda frame: frame, "every score is that of .*expected trainings with other seeds"),
        (lambda frame: frame.assign(images_seen=500), "its trainings end after 500 images, those of .* after 1,000"),
    ],
)
def test_a_truth_that_is_none_is_one_line(folder, change, message):
    write_truth(folder, change)
    with pytest.raises(InputError, match=f"truth.csv: {message}") as told:
        curves.load(folder)
    assert "\n" not in str(told.value)


# --- samplers of one's own -------------------------------------------------------------------------------------------

OWN = """
from optuna.samplers import RandomSampler


def mine(seed):
    return RandomSampler(seed=seed)


def bare():
    pass


def other(seed):
    return seed


ready = 1
"""


def test_a_sampler_of_ones_own_is_replayed_as_far_as_asked(folder):
    (folder / "own.py").write_text(OWN)
    asked = ["replay", str(folder), "--rules", "", "--samplers", f"{folder}/own.py:mine", "--trainings", "6"]
    told = CliRunner().invoke(cli.app, [*asked, "--repeats", "3"], catch_exceptions=False)
    found = pd.read_csv(folder / "samplers.csv")
    assert told.exit_code == 0 and found["trainings"].max() == 6 and set(found["repeats"]) == {3}
    assert found["hypervolume"].max() < 1 and not (folder / "replay.csv").exists()
    assert (folder / "replay.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:mine", "no such file"),
        ("own.py:yours", "no function yours"),
        ("own.py:ready", "no function ready"),
        ("own.py:other", "returned int, expected an Optuna sampler"),
        ("own.py:bare", "TypeError: "),
        ("study.yaml.py:mine", "SyntaxError: "),
    ],
)
def test_a_sampler_of_ones_own_that_is_not_there_is_one_line(folder, monkeypatch, name, message):
    (folder / "own.py").write_text(OWN)
    (folder / "study.yaml.py").write_text(STUDY)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message) as told:
        CliRunner().invoke(cli.app, ["replay", str(folder), "--samplers", name], catch_exceptions=False)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: None, "looks.csv: no such file; `nas replay TABLE --look` makes it"),
        (lambda frame: frame.iloc[1:], "looks.csv: no look at architecture"),
        (lambda frame: frame.drop(columns="seconds"), "looks.csv: no column 'seconds'"),
        (lambda frame: frame.assign(macs=float("nan")), "looks.csv: expected a finite number"),
        (lambda frame: frame.assign(seconds="soon"), "looks.csv: expected a finite number"),
        (lambda frame: pd.DataFrame(), "looks.csv: .*expected a table with commas"),
    ],
)
def test_looks_that_are_not_whole_are_one_line(folder, spoil, message):
    write_looks(folder)
    spoiled = spoil(pd.read_csv(folder / "looks.csv", dtype={"key": str}))
    (folder / "looks.csv").unlink() if spoiled is None else spoiled.to_csv(folder / "looks.csv", index=False)
    with pytest.raises(InputError, match=message) as told:
        CliRunner().invoke(cli.app, ["replay", str(folder), "--samplers", "pool"], catch_exceptions=False)
    assert "\n" not in str(told.value) and not (folder / "replay.csv").exists()


WRONG = [
    (["--rules", "halvin"], "did you mean 'halving'"),
    (["--samplers", "tp"], "did you mean 'tpe'"),
    (["--set", "kep=0.4"], "did you mean 'keep'"),
    (["--set", "gain=2"], "expected less than 1"),
    (["--set", "rungs=[0.3,1.0]"], "the nearest is 0.25"),
    (["--record", "nowhere"], "not a run directory"),
    (["--tune", "--set", "keep=0.4"], "--set keep=0.4: --tune chooses the settings"),
    (["--trainings", "4"], "--trainings 4: it ends samplers"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_bad_input_is_one_line(folder, options, message):
    with pytest.raises(InputError, match=message) as told:
        CliRunner().invoke(cli.app, ["replay", str(folder), *options], catch_exceptions=False)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("kept", "message"),
    [(lambda f: f.fraction == 1, "only rung 1 was recorded"), (lambda f: f.trial == 0, "holds 1 architecture")],
)
def test_a_table_with_nothing_to_tune_is_refused(folder, kept, message):
    frame = pd.read_csv(folder / "curves.csv", dtype={"key": str})
    frame[kept(frame)].to_csv(folder / "curves.csv", index=False)
    with pytest.raises(InputError, match=f"curves.csv: --tune: {message}"):
        command.run(folder, command.Plan(tune=True, shuffles=1), None, None)


def test_two_architectures_are_enough_to_tune(folder):
    frame = pd.read_csv(folder / "curves.csv", dtype={"key": str})
    frame[frame.trial < 2].to_csv(folder / "curves.csv", index=False)
    command.run(folder, command.Plan(tune=True, shuffles=1, rules=("none",)), None, None)
    assert pd.read_csv(folder / "replay.csv")["architectures"].tolist() == [1]


def test_no_table_says_how_it_is_made(tmp_path):
    with pytest.raises(InputError, match="nas replay FOLDER --record RUN"):
        curves.load(tmp_path)


def test_an_unknown_rule_in_a_study_names_those_there_are(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY + "stopping: {rule: halve}\n")
    with pytest.raises(
        InputError,
        match="study.yaml:7: stopping.rule: expected 'improvement', 'halving', 'slope', 'median' or 'none'",
    ):
        study_file.load(tmp_path)


def test_a_run_is_recorded_as_a_table(run_dir, tmp_path):
    with (run_dir / "resolved.yaml").open("a") as file:
        file.write("stopping: {rungs: [0.1, 0.4, 1.0]}\n")
    found = pd.read_csv(curves.record(run_dir, tmp_path))
    trained = [r for r in results.records(run_dir) if r["state"] == "complete"]
    complete = [r for place, r in enumerate(trained) if r["key"] not in [other["key"] for other in trained[:place]]]
    assert len(complete) == len(trained) - 1  # trials 2 and 4 are one architecture
    assert sorted(set(found["trial"])) == sorted(r["trial"] for r in complete)
    first = complete[0]
    rows = found[found["trial"] == first["trial"]]
    assert len(rows) == len(first["rungs"]) and rows["fraction"].tolist() == [0.1, 0.4, 1.0][: len(rows)]
    assert rows["train_s"].sum() == pytest.approx(sum(g["timings"]["train_s"] for g in first["rungs"]), abs=0.01)
    both = rows["train_s"].sum() + rows["other_s"].sum()
    assert both == pytest.approx(sum(g["timings"]["total_s"] for g in first["rungs"]), abs=0.01)


def test_a_recorded_run_with_repeats_and_latency_can_be_read(tmp_path):
    run_dir = synthetic_run.write(tmp_path / "run", trials=4, states=["complete"] * 4)
    with (run_dir / "resolved.yaml").open("a") as file:
        file.write("stopping: {rungs: [0.25, 0.5, 1.0]}\n")
    for number, record in enumerate(results.records(run_dir)):
        key = record["key"] if number < 3 else results.records(run_dir)[0]["key"]
        synthetic_run.copy_with(run_dir, number, key=key, cost={**record["cost"], "latency_ms": 10.0 + number})
    frame = pd.read_csv(curves.record(run_dir, tmp_path), dtype={"key": str})
    table = curves.from_frame(frame, {"latency_ms": "minimise"}, "curves.csv")
    assert len(table) == 3 and table.values[:, :, 0].tolist() == [[10.0] * 3, [11.0] * 3, [12.0] * 3]


def test_the_default_rule_is_the_one_that_is_replayed():
    assert asdict(command.Plan())["rules"][0] == stopping.Stopping().rule == "improvement"


@pytest.mark.parametrize("name", ["stopping_replay", "search_benchmark"])
def test_the_shipped_table_is_whole(name):
    folder_ = Path(__file__).parents[1] / "studies" / name
    table, about = curves.whole(folder_)
    assert table.rungs == about.stopping.rungs and len(set(table.keys)) == len(table)
    space = SearchSpace.load(about.space)
    assert [space.architecture(choices).key for choices in table.choices] == list(table.keys)
    assert looks.read(folder_ / looks.NAME, table, about).seconds.min() > 0
