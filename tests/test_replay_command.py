"""`nas replay`: tables, a picture, tuning, and bad input."""

import re
from dataclasses import asdict
from pathlib import Path

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
from nas.trust import curves, replay, simulation, table_looks


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
    assert list(rules.index) == list(replay.RULES) and rules.loc["none", "images_saved"] == 0
    assert (rules["architectures"] == 16).all() and rules.loc["halving", "rungs"] == "0.25 1"
    samplers = pd.read_csv(folder / "samplers.csv")
    assert set(samplers["trainings"]) == {1, 2, 4, 8, 16} and samplers["hypervolume"].between(0, 1 + 1e-9).all()
    assert "a quarter of the compute" in told.output
    assert replay.settings_of([], (0.0, 0.5, 1.0)) == Stopping(rungs=(0, 0.5, 1))
    assert (folder / "replay.png").read_bytes()[:4] == b"\x89PNG"


def test_quarters_by_hand():
    rows = [("tpe", "halving", 1, 0.3), ("tpe", "halving", 4, 0.6), ("tpe", "none", 1, 0.1), ("optuna", "none", 4, 0.5)]
    frame = pd.DataFrame(rows, columns=["sampler", "rule", "trainings", "hypervolume"]).assign(unit="images")
    assert replay.quarters(frame, "improvement").empty
    (row,) = replay.quarters(frame, "halving").to_dict("records")
    assert row == {"unit": "images", "full": 4, "default": 0.3, "plain": "optuna", "of_plain": 0.5}


def test_tuning_from_the_command(folder):
    told = CliRunner().invoke(cli.app, ["replay", str(folder), "--shuffles", "1", "--tune", "--rules", "halving"])
    assert "chosen on 8 architectures" in told.output and "about the other 8" in told.output
    assert pd.read_csv(folder / "replay.csv")["architectures"].tolist() == [8]
    assert len(pd.read_csv(folder / "tuning.csv")) == len(list(replay.grid((0.25, 0.5, 1.0))))


def write_looks(folder):
    """Looks that see the end of each architecture, a tenth of a second each."""
    table, about = curves.load(folder)
    signs = [1.0 if way == "minimise" else -1.0 for way in about.objectives.values()]
    ends = pd.DataFrame(table.values[:, -1] * signs, columns=list(about.objectives))
    ends.assign(key=table.keys, seconds=0.1).to_csv(folder / "looks.csv", index=False)
    return table, about


def test_a_pool_is_replayed_from_its_looks(folder):
    table, about = write_looks(folder)
    told = CliRunner().invoke(cli.app, ["replay", str(folder), "--rules", "none", "--samplers", "random,pool"])
    assert told.exit_code == 0 and re.search(r"^look( +1\.0+)+$", told.output, re.M)  # they see the end
    found = pd.read_csv(folder / "samplers.csv").set_index(["sampler", "unit", "trainings"])["hypervolume"]
    assert found["pool", "images", 16] == pytest.approx(1)
    assert found["pool", "images", 4] > found["random", "images", 4].max()
    # looks that see the end: the best four by greedy choice, which is brute force here
    volume, chosen = simulation.volume_of(table), []
    for _ in range(4):
        chosen.append(max((one for one in range(16) if one not in chosen), key=lambda one: volume([*chosen, one])))
    assert found["pool", "images", 4] == pytest.approx(volume(chosen))


def test_a_pool_pays_for_its_looks_before_it_trains(folder):
    table, about = write_looks(folder)
    values, seconds = table_looks.read(folder / "looks.csv", table, about)
    assert values.tolist() == table.values[:, -1].tolist() and seconds == pytest.approx(1.6)
    (history,) = replay.explore_pool(table, values, seconds)
    first = history.finished[0]
    rest = table.train_s[first].sum() + table.other_s[first, -1]
    assert history.seconds[0] == pytest.approx(1.6 + rest) and len(history.finished) == 16


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: None, "looks.csv: no such file; `nas replay TABLE --look` makes it"),
        (lambda frame: frame.iloc[1:], "looks.csv: no look at architecture"),
        (lambda frame: frame.drop(columns="seconds"), "looks.csv: no column 'seconds'"),
        (lambda frame: frame.assign(macs=float("nan")), "looks.csv: expected a finite number"),
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
        replay.run(folder, replay.Plan(tune=True, shuffles=1), None, None)


def test_two_architectures_are_enough_to_tune(folder):
    frame = pd.read_csv(folder / "curves.csv", dtype={"key": str})
    frame[frame.trial < 2].to_csv(folder / "curves.csv", index=False)
    replay.run(folder, replay.Plan(tune=True, shuffles=1, rules=("none",)), None, None)
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
    assert asdict(replay.Plan())["rules"][0] == stopping.Stopping().rule == "improvement"


def test_the_shipped_table_is_whole():
    table, about = curves.load(Path(__file__).parents[1] / "studies" / "stopping_replay")
    assert table.rungs == about.stopping.rungs and len(set(table.keys)) == len(table)
    space = SearchSpace.load(about.space)
    assert [space.architecture(choices).key for choices in table.choices] == list(table.keys)
