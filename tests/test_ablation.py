"""Ablations: designs against brute force, statistics against known truth and scipy, bad input, and one tiny real run."""

import json
import math
import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from at_once import AtOnce
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import stats

import nas.study
from nas import ablation, cells, check, contrasts, design, export, fields, launch, results, stages, trial
from nas import settings as study_file
from nas.backbones import Proxy
from nas.backbones.unet import Config, presets
from nas.bench import Bench, fresh
from nas.errors import InputError
from nas.objectives import denoising
from nas.rundir import RunDirectory
from nas.searching import SearchRun
from nas.space import SearchSpace

REFERENCE = {"a": "0", "b": "0"}


def frame(values, levels, reference, column="fid", higher_is_better=False):
    """A results frame from values (cells, repeats) and one dict of levels per cell."""
    rows = [
        {"cell": ",".join(given.values()), "state": "complete", "repeat": repeat, column: values[cell, repeat]}
        | {f"factor.{name}": level for name, level in given.items()}
        for cell, given in enumerate(levels)
        for repeat in range(values.shape[1])
        if not math.isnan(values[cell, repeat])
    ]
    table = pd.DataFrame(rows)
    table.attrs = {"reference": reference, "conditions": {column: {"higher_is_better": higher_is_better}}}
    return table


def grid(*sizes):
    return [dict(zip("abc", map(str, row), strict=False)) for row in product(*(range(size) for size in sizes))]


def simulated(rng, cells, repeats, effects, seed_sd=5.0, noise_sd=1.0):
    """True effects, what a repeat's seed adds to all cells, and what is left."""
    return effects[:, None] + rng.normal(0, seed_sd, (1, repeats)) + rng.normal(0, noise_sd, (cells, repeats))


# --- coverage --------------------------------------------------------------------------------------------------------


def test_intervals_cover_their_truth_in_2000_simulated_ablations():
    rng = np.random.default_rng(7)
    levels = grid(2, 2)
    truth = np.array([10.0, 12.0, 9.0, 14.0])  # 00, 01, 10, 11
    true = {
        "cells": truth,
        "differences": truth[1:] - truth[0],
        "main_effects": [(9 + 14) / 2 - (10 + 12) / 2, (12 + 14) / 2 - (10 + 9) / 2],
        "interactions": [14 - 9 - 12 + 10],
    }
    seen = ablation.read(frame(np.zeros((4, 3)), levels, REFERENCE), "fid")
    makers = [(kind, getattr(ablation, kind), "separate") for kind in true]
    makers += [(kind, getattr(ablation, kind), "pooled") for kind in ("differences", "main_effects")]
    covered = {(kind, variance): [] for kind, _, variance in makers}
    for _ in range(2_000):
        drawn = replace(seen, values=simulated(rng, 4, 3, truth))
        for kind, make, variance in makers:
            table = make(replace(drawn, variance=variance))
            inside = (table["low"] <= true[kind]) & (true[kind] <= table["high"])
            covered[kind, variance].append(inside.to_numpy())
    for kind, hits in covered.items():
        share = np.mean(hits, axis=0)
        assert ((share >= 0.93) & (share <= 0.97)).all(), (kind, share)


def test_pairing_finds_what_the_unpaired_test_misses():
    """Power of both tests over 300 ablations with a planted difference of three noise sd and seeds that add ten."""
    rng = np.random.default_rng(3)
    paired = unpaired = 0
    seen = ablation.read(frame(np.zeros((2, 5)), grid(2), {"a": "0"}), "fid")
    for _ in range(300):
        values = simulated(rng, 2, 5, np.array([0.0, 3.0]), seed_sd=10.0, noise_sd=1.0)
        table = ablation.differences(replace(seen, values=values))
        paired += table["verdict"].iloc[0] == "worse"
        unpaired += stats.ttest_ind(values[1], values[0]).pvalue < 0.05
    assert paired > 250 and unpaired < 30, (paired, unpaired)


def test_no_effect_is_settled_no_more_often_than_five_percent():
    """Holm holds the family: the share of ablations with any false finding."""
    rng = np.random.default_rng(11)
    wrong = 0
    seen = ablation.read(frame(np.zeros((4, 4)), grid(4), {"a": "0"}), "fid")
    for _ in range(1_000):
        drawn = replace(seen, values=simulated(rng, 4, 4, np.zeros(4)))
        wrong += (ablation.differences(drawn)["p_holm"] < 0.05).any()
    assert wrong / 1_000 < 0.065, wrong  # 0.05 plus two standard errors


# --- against other implementations -----------------------------------------------------------------------------------


def test_differences_are_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    values = simulated(rng, 4, 6, np.array([0.0, 1.0, 0.2, 0.0]))
    table = ablation.differences(ablation.read(frame(values, grid(2, 2), REFERENCE), "fid"))
    for row, cell in enumerate((1, 2, 3)):
        told = stats.ttest_rel(values[cell], values[0])
        interval = told.confidence_interval(0.95)
        assert table["p"].iloc[row] == pytest.approx(told.pvalue)
        assert (table["low"].iloc[row], table["high"].iloc[row]) == pytest.approx((interval.low, interval.high))


def test_a_missing_training_leaves_out_its_repeat_in_its_cells_only():
    rng = np.random.default_rng(1)
    values = simulated(rng, 3, 5, np.zeros(3))
    values[1, 2] = math.nan
    table = ablation.differences(ablation.read(frame(values, grid(3), {"a": "0"}), "fid"))
    kept = [0, 1, 3, 4]
    assert table["n"].tolist() == [4, 5]
    assert table["p"].iloc[0] == pytest.approx(stats.ttest_rel(values[1, kept], values[0, kept]).pvalue)
    assert table["p"].iloc[1] == pytest.approx(stats.ttest_rel(values[2], values[0]).pvalue)


def test_pooled_effects_are_ordinary_least_squares_with_blocks():
    """Main effects and their standard errors from a regression on dummies, with a dummy for every repeat."""
    rng = np.random.default_rng(2)
    levels, repeats = grid(2, 3), 4
    values = simulated(rng, 6, repeats, rng.normal(0, 2, 6))
    rows = [(cell, repeat) for cell in range(6) for repeat in range(repeats)]
    design_matrix = np.zeros((len(rows), 6 + repeats - 1))  # a column per cell, and one per repeat but the first
    for index, (cell, repeat) in enumerate(rows):
        design_matrix[index, cell] = 1
        if repeat:
            design_matrix[index, 5 + repeat] = 1
    y = np.array([values[cell, repeat] for cell, repeat in rows])
    fitted, *_ = np.linalg.lstsq(design_matrix, y, rcond=None)
    freedom = len(rows) - design_matrix.shape[1]
    variance = ((y - design_matrix @ fitted) ** 2).sum() / freedom
    covariance = variance * np.linalg.inv(design_matrix.T @ design_matrix)
    table = ablation.main_effects(ablation.read(frame(values, levels, REFERENCE), "fid", variance="pooled"))
    for _, row in table.iterrows():
        weights = np.zeros(design_matrix.shape[1])
        for cell, of_cell in enumerate(levels):
            level = of_cell[row["factor"]]
            sign = (level == row["level"]) - (level == row["against"])
            weights[cell] = sign / (3 if row["factor"] == "a" else 2)
        error = math.sqrt(weights @ covariance @ weights)
        half = stats.t.ppf(0.975, freedom) * error
        assert row["estimate"] == pytest.approx(weights @ fitted)
        assert row["high"] - row["estimate"] == pytest.approx(half)


def holm_by_definition(p):
    """Reject in rising order while p_(i) <= alpha / (m - i); the adjusted p is the least alpha that rejects. By search."""

    def rejected(alpha):
        out = set()
        for i, index in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
            if p[index] > alpha / (len(p) - i):
                break
            out.add(index)
        return out

    adjusted = []
    for index in range(len(p)):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if index in rejected(middle) else (middle, high)
        adjusted.append(high)
    return adjusted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=7))
def test_holm_is_its_definition(p):
    assert contrasts.holm(np.array(p)) == pytest.approx(holm_by_definition(p), abs=1e-9)


def test_holm_leaves_out_what_was_not_tested():
    assert contrasts.holm(np.array([0.01, math.nan, 0.02])).tolist() == pytest.approx(
        [0.02, math.nan, 0.02], nan_ok=True
    )


@pytest.mark.parametrize(("ratio", "repeats"), [(8.2, 2), (3.0, 3), (1.0, 10), (0.5, 34)])
def test_power_is_the_share_of_simulated_tests_that_find_the_effect(ratio, repeats):
    rng = np.random.default_rng(repeats)
    drawn = rng.normal(ratio, 1, (40_000, repeats))
    found = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert contrasts.power(ratio, 1.0, repeats, 0.05) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 34), (1.0, 10), (0.2, 199)])
def test_repeats_needed_are_those_of_published_tables(ratio, expected):
    """Paired t, two-sided 0.05, power 0.8: G*Power and R's power.t.test(type="paired") round up to these."""
    assert contrasts.repeats_needed(ratio, 1.0) == expected


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 5.0), st.sampled_from([0.05, 0.01, 0.005]), st.sampled_from([2, 6]))
def test_repeats_needed_is_the_first_number_that_is_enough(ratio, alpha, cells):
    n = int(contrasts.repeats_needed(ratio, 1.0, alpha, cells=cells))
    assert contrasts.power(ratio, 1.0, n, alpha, cells) >= 0.8
    assert n == 2 or contrasts.power(ratio, 1.0, n - 1, alpha, cells) < 0.8


def test_no_scatter_and_no_difference_are_said_without_numbers_that_mislead():
    values = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    table = ablation.differences(ablation.read(frame(values, grid(3), {"a": "0"}), "fid"))
    assert table["p"].tolist() == [1.0, 0.0]
    assert table["verdict"].tolist() == ["not settled", "worse"]
    assert table["repeats_needed"].iloc[0] == math.inf


def test_ratios_are_of_geometric_means():
    values = np.array([[1.0, 2.0, 4.0], [2.2, 3.8, 8.0]])
    seen = ablation.read(frame(values, grid(2), {"a": "0"}), "fid")
    told = ablation.ratios(seen).iloc[0]
    assert told["estimate"] == pytest.approx(stats.gmean(values[1]) / stats.gmean(values[0]))
    assert told["low"] < 2 < told["high"]
    assert ablation.against(seen, 2.0)["estimate"].tolist() == pytest.approx([1.0, stats.gmean(values[1]) / 2])
    with pytest.raises(InputError, match="ratios"):
        ablation.ratios(ablation.read(frame(-values, grid(2), {"a": "0"}), "fid"))


# --- what is averaged ------------------------------------------------------------------------------------------------


def test_effects_of_a_full_factorial_are_those_of_hand_formulas():
    rng = np.random.default_rng(5)
    levels = grid(3, 2, 2)
    values = rng.normal(0, 1, (12, 3))
    seen = ablation.read(frame(values, levels, {"a": "0", "b": "0", "c": "0"}), "fid")
    mean = {tuple(given.values()): values[i].mean() for i, given in enumerate(levels)}
    main = ablation.main_effects(seen).set_index(["factor", "level"])["estimate"]
    by_hand = np.mean([mean["2", b, c] - mean["0", b, c] for b, c in product("01", "01")])
    assert main["a", "2"] == pytest.approx(by_hand)
    both = ablation.interactions(seen).set_index(["factor", "level", "with_factor", "with_level"])["estimate"]
    by_hand = np.mean([mean["1", b, "1"] - mean["0", b, "1"] - mean["1", b, "0"] + mean["0", b, "0"] for b in "01"])
    assert both["a", "1", "c", "1"] == pytest.approx(by_hand)
    assert len(both) == 2 + 2 + 1


def test_main_effects_of_one_factor_designs_are_the_differences_and_told_once():
    levels = [{"a": "0", "b": "0"}, {"a": "1", "b": "0"}, {"a": "0", "b": "1"}]
    seen = ablation.read(frame(np.arange(9.0).reshape(3, 3) ** 1.5, levels, REFERENCE), "fid")
    assert set(ablation.tables(seen)) == {"cells", "differences"}
    main, apart = ablation.main_effects(seen), ablation.differences(seen)
    assert main["estimate"].tolist() == pytest.approx(apart["estimate"].tolist())


def test_higher_is_better_turns_the_verdict():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 3.1, 4.0]])
    for higher, verdict in ((True, "better"), (False, "worse")):
        seen = ablation.read(frame(values, grid(2), {"a": "0"}, "clip", higher), "clip")
        assert ablation.differences(seen)["verdict"].tolist() == [verdict]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="cell"), ["no cells"]),
        (lambda t: t.assign(state="failed"), ["no cell was trained"]),
        (lambda t: t.rename(columns={"fid": "fidd"}), ["'fid'", "did you mean 'fidd'"]),
        (lambda t: t[t["factor.a"] != "0"], ["a=0", "trained to the end"]),
    ],
)
def test_a_frame_that_is_no_ablation_is_one_line(change, words):
    table = frame(np.ones((2, 2)), grid(2), {"a": "0"})
    attrs = table.attrs
    table = change(table)
    table.attrs = attrs
    with pytest.raises(InputError) as error:
        ablation.read(table, "fid")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_tables_escape_what_people_write():
    levels = [{"a": "<b>|%_"}, {"a": "x"}]
    table = ablation.cells(ablation.read(frame(np.ones((2, 2)), levels, {}), "fid"))
    assert "&lt;b&gt;" in ablation.render(table, "html") and "<b>" not in ablation.render(table, "html")
    assert r"\%\_" in ablation.render(table, "latex") and r"95\% interval" in ablation.render(table, "latex")
    assert r"<b>\|%_" in ablation.render(table, "markdown")


# --- designs ---------------------------------------------------------------------------------------------------------

sizes = st.lists(st.integers(2, 4), min_size=1, max_size=3)


def designed(kind, sizes, **more):
    factors = {f"f{i}": {"field": f"training.f{i}", "levels": list(range(size))} for i, size in enumerate(sizes)}
    return design.Settings(design=kind, factors=factors, minimise=["fid"], **more)


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_factorial_is_every_combination_once(counts):
    found = [tuple(cell.levels.values()) for cell in design.cells(designed("factorial", counts))]
    assert found == [tuple(map(str, row)) for row in product(*map(range, counts))]


@settings(max_examples=30, deadline=None)
@given(sizes, st.randoms())
def test_one_factor_is_every_combination_at_distance_one_from_the_reference(counts, rng):
    reference = {f"f{i}": rng.randrange(size) for i, size in enumerate(counts)}
    cells = design.cells(designed("one_factor", counts, reference=reference))
    found = {tuple(map(int, cell.levels.values())) for cell in cells}
    wanted = {row for row in product(*map(range, counts)) if sum(map(lambda a, b: a != b, row, reference.values())) < 2}
    assert found == wanted and len(cells) == len(wanted)
    assert cells[0].name == "reference" and tuple(map(int, cells[0].levels.values())) == tuple(reference.values())


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_leave_one_out_is_the_full_cell_and_each_factor_set_back(counts):
    cells = design.cells(designed("leave_one_out", counts))
    full = [size - 1 for size in counts]
    wanted = [full] + [[0 if i == out else last for i, last in enumerate(full)] for out in range(len(counts))]
    assert [list(map(int, cell.levels.values())) for cell in cells] == wanted
    assert [cell.name for cell in cells] == ["full", *(f"without f{i}" for i in range(len(counts)))]


def test_outstanding_is_what_no_record_completes_whole_repeats_first():
    asked = designed("factorial", [2], repeats=2)
    records = [{"cell": "f0=0", "repeat": 0, "state": "complete"}, {"cell": "f0=1", "repeat": 0, "state": "failed"}]
    assert design.outstanding(asked, records) == [("f0=1", 0), ("f0=0", 1), ("f0=1", 1)]


# --- study files -----------------------------------------------------------------------------------------------------

STUDY = """
name: small
architecture: mobilediffusion
dataset: {name: emoji, limit: 96}
proxy: {width_divisor: 16}
training: {images_seen: 32, batch: 16}
sampling: {steps: 2, guidance: 1.0}
evaluation: {images: 8}
metrics: [clip_score]
ablation:
  design: factorial
  factors:
    ratio: {field: architecture.levels.*.ffn_ratio, levels: [2, 3]}
    pace:
      levels:
        slow: {training.learning_rate: 1.0e-4}
        fast: {training.learning_rate: 1.0e-3, sampling.steps: 1}
  minimise: [denoising_loss]
  maximise: [clip_score]
  repeats: 2
stopping: {rungs: [1.0]}
tracking: {mode: "off"}
workers: 1
"""


def loaded(tmp_path, *overrides, text=STUDY):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return study_file.load(path, overrides)


def test_cells_set_what_their_levels_say(tmp_path):
    study = loaded(tmp_path)
    cells = {cell.name: cell for cell in design.cells(study.ablation)}
    assert list(cells) == ["ratio=2, pace=slow", "ratio=2, pace=fast", "ratio=3, pace=slow", "ratio=3, pace=fast"]
    fast = design.changed(study, cells["ratio=2, pace=fast"].settings)
    assert (fast.training.learning_rate, fast.sampling.steps, fast.training.images_seen) == (1e-3, 1, 32)
    networks = design.architectures(study)
    # the outer level has no transformer, so its ratio builds nothing and the canonical network keeps the default there
    assert [level.ffn_ratio for level in networks["ratio=2, pace=fast"].levels[1:]] == [2, 2]
    assert networks["ratio=3, pace=fast"].key == networks["ratio=3, pace=slow"].key
    again = study_file.Study.model_validate(study.resolved())
    assert again.resolved() == study.resolved()


def factor(text):
    return f"ablation.factors={{x: {text}}}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (factor("{field: architecture.levels.2.chanels, levels: [768, 1024]}"),
         ["factors.x.field", "chanels", "did you mean 'levels.2.channels'"]),
        (factor("{field: architecture.levels.2.channels, levels: [1024, 1000]}"),
         ["factors.x.levels.1", "1000", "divisible by groups=32"]),
        (factor("{field: architecture.shared_kv, levels: [true, maybe]}"), ["factors.x.levels.1", "shared_kv", "maybe"]),
        (factor("{field: training.learning_rat, levels: [1, 2]}"), ["factors.x.field", "training.learning_rat", "unknown key"]),
        (factor("{field: training.learning_rate, levels: [1, -2]}"), ["factors.x.levels.1", "greater than 0", "-2"]),
        (factor("{field: objective.prediction, levels: [v, w]}"), ["factors.x.levels.1", "objective.prediction", "'w'"]),
        (factor("{field: objective.predicton, levels: [v, w]}"), ["factors.x.field", "did you mean 'prediction'"]),
        (factor("{field: sampling.steps, levels: [1, 0]}"), ["factors.x.levels.1", "sampling.steps", "0"]),
        (factor("{field: trainng.batch, levels: [1, 2]}"), ["factors.x.field", "trainng", "did you mean 'training'"]),
        (factor("{levels: {p: {training.batch: 8}, q: {training.bach: 8}}}"),
         ["factors.x.levels.q.training.bach", "unknown key"]),
        (factor("{field: training.batch, levels: [8]}"), ["factors.x", "1 given, expected at least two"]),
        (factor("{field: training.batch, levels: [8, 8]}"), ["factors.x", "8 is given twice"]),
        (factor("{levels: [8, 16]}"), ["factors.x", "give field"]),
        (factor("{field: architecture.activation, levels: [swish, swish ]}"), ["given twice"]),
        (factor("{levels: {p: {}, q: {architecture.levels.0.ffn_ratio: 4}}}"), ["'x=p' and 'x=q' are the same"]),
        ("ablation.factors.more={field: training.learning_rate, levels: [1.0e-4, 1.0e-3]}", ["factors.more", "'pace' sets too"]),
        ("ablation.repeats=1", ["ablation: repeats: 1 gives no interval", "at least 2"]),
        ("ablation.repeats=0", ["ablation.repeats", "greater than or equal to 1"]),
        ("ablation.reference={ratoi: 2}", ["no factor 'ratoi'", "did you mean 'ratio'"]),
        ("ablation.reference={ratio: 5}", ["reference.ratio: no level 5", "2, 3"]),
        ("ablation.minimise=[denoising_los]", ["ablation.minimise", "denoising_los", "did you mean 'denoising_loss'"]),
        ("ablation.minimise=[macs]", ["ablation.minimise", "macs"]),
        ("architecture=mobildiffusion", ["architecture", "mobildiffusion", "did you mean 'mobilediffusion'"]),
        ("architecture=null", ["architecture", "required"]),
        ("search={minimise: [macs]}", ["ablation", "one of search and ablation"]),
        ("budget={params: 1M}", ["budget", "cell 'ratio=2, pace=slow'", "params"]),
        ("proxy.width_divisor=3", ["cell 'ratio=2, pace=slow'", "width_divisor=3"]),
        ("training.init=supernet", ["training.init", "space"]),
        ("training.init=base", ["training.init", "no base section"]),
        ("base={checkpoint: nowhere}", ["base.checkpoint", "nowhere", "no such file"]),
        ("base={training: {init: base}}", ["base.training.init", "cannot start from itself"]),
        ("base={objective: {name: denoising, prediction: x}}", ["base.objective", "prediction", "'x'"]),
    ],
)  # fmt: skip
def test_a_bad_ablation_is_one_line_and_nothing_is_written(tmp_path, override, words):
    with pytest.raises(InputError) as error:
        check.check(loaded(tmp_path, override), None)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_errors_name_the_line_of_the_file(tmp_path):
    with pytest.raises(InputError) as error:
        loaded(tmp_path, text=STUDY.replace("fast: {training.learning_rate", "fast: {training.learning_rte"))
    assert "study.yaml:17: ablation.factors.pace.levels.fast.training.learning_rte" in str(error.value)


def test_cells_must_have_the_shapes_of_the_base_they_start_from(tmp_path):
    study = loaded(tmp_path, "training.init=base", "base={training: {images_seen: 16}}")
    with pytest.raises(InputError) as error:
        check.check(study, None)
    assert "cell 'ratio=2" in str(error.value) and "the base model is another architecture" in str(error.value)


def test_cells_must_lie_in_the_supernet_they_start_from(tmp_path):
    wide = "{field: architecture.levels.2.channels, levels: [1024, 1536]}"
    with pytest.raises(InputError) as error:
        check.check(loaded(tmp_path, "training.init=supernet", "space=mobilediffusion", factor(wide)), None)
    assert "cell 'x=1536'" in str(error.value) and "does not cover" in str(error.value)


# --- a real run ------------------------------------------------------------------------------------------------------


class InProcess(AtOnce):
    """The real functions, without the seconds a process takes to start."""

    slots = 1

    def __init__(self, count, study, cache):
        super().__init__(count, study, cache)
        trial.start_worker(study, cache, 1)

    def compute(self, tag, function, *arguments):
        return function(*pickle.loads(pickle.dumps(arguments)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The small study over the kind of attention, which starts from a base model; its folder and how to run it again."""
    patch = pytest.MonkeyPatch()
    patch.setattr(nas.study, "Workers", InProcess)
    root = tmp_path_factory.mktemp("ablation")
    (root / "study.yaml").write_text(STUDY)
    options = ["base={training: {images_seen: 32, batch: 16}}", 'ablation.factors={kv: {field: architecture.attention, '
               'levels: [softmax, relu]}}', "training.init=base"]  # fmt: skip
    options += ["architecture={levels: [{channels: 320, down: [0], up: [0]}, {channels: 320, down: [1], up: [1], "
                "self_attention: true, cross_attention: true}]}", "dataset.limit=32"]  # fmt: skip
    launch.run(root / "study.yaml", options, root / "runs")
    (folder,) = (root / "runs" / "small").iterdir()
    yield root, folder, options
    patch.undo()


def test_a_run_trains_every_cell_with_shared_seeds_and_writes_its_tables(finished):
    _, folder, _ = finished
    table = results.load(folder)
    assert sorted(zip(table["cell"], table["repeat"], strict=True)) == list(product(["kv=relu", "kv=softmax"], [0, 1]))
    assert (table["state"] == "complete").all()
    assert table.groupby("repeat")["seed"].nunique().tolist() == [1, 1] and table["seed"].nunique() == 2
    for name in ("effects.csv", "effects.md", "effects.tex", "effects.html", "report.html", "base.json"):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "best.yaml").exists()
    page = (folder / "report.html").read_text()
    assert "Differences from the reference cell" in page and "Which decision mattered" not in page
    written = pd.read_csv(folder / "effects.csv")
    assert set(written["table"]) == {"cells", "differences"}
    cell = written[(written["column"] == "denoising_loss") & (written["table"] == "cells")].set_index("cell")
    by_hand = table[table["cell"] == "kv=relu"]["denoising_loss"].mean()
    assert cell["mean"]["kv=relu"] == pytest.approx(by_hand)


def test_a_failed_cell_runs_again_and_more_repeats_continue(finished, capsys):
    root, folder, options = finished
    record = folder / "trials" / "0003" / "record.json"
    broken = json.loads(record.read_text()) | {"state": "failed", "reason": "made so by the test"}
    record.write_text(json.dumps(broken))
    base = json.loads((folder / "base.json").read_text())["weights"]
    trained = (root / base).stat().st_mtime_ns
    launch.run(root / "study.yaml", [*options, "ablation.repeats=3"], root / "runs")
    assert [path.name for path in (root / "runs" / "small").iterdir()] == [folder.name]
    table = results.load(folder)
    assert table["state"].value_counts().to_dict() == {"complete": 6, "failed": 1}
    again = table[(table["cell"] == broken["cell"]) & (table["repeat"] == broken["repeat"])]
    assert again["denoising_loss"].nunique() == 1  # the same seed gives the same training
    assert (root / base).stat().st_mtime_ns == trained
    assert "continuing" in capsys.readouterr().out


def test_an_exported_cell_draws_as_its_cell_says(finished, tmp_path):
    _, folder, _ = finished
    export.export(RunDirectory(folder), "trial:0", tmp_path / "model")
    assert yaml.safe_load((tmp_path / "model" / "pipeline.yaml").read_text())["sampling"]["steps"] == 2
    # an exported model is a base checkpoint; one of another architecture is refused
    config = Config.from_dict(yaml.safe_load((tmp_path / "model" / "proxy" / "config.yaml").read_text()))
    path = stages.checkpoint_file(tmp_path / "model")
    stages.load_weights(config.build(), path, "base.checkpoint")
    other = Config.from_dict({**config.to_dict(), "latent_channels": 16})
    with pytest.raises(InputError, match=r"base\.checkpoint: .* holds another architecture: .* expected"):
        stages.load_weights(other.build(), path, "base.checkpoint")


def test_initial_weights_agree_where_shapes_do():
    proxy = Proxy(16, 8, 16, 16)
    base = presets()["mobilediffusion"]
    one, two = (fresh(fields.changed(base, [("levels.2.channels", w)]).scaled(proxy), 5) for w in (1024, 1280))
    before = {name: tensor.clone() for name, tensor in two.state_dict().items()}
    stages.copy_agreeing(one, two)
    own, other = two.state_dict(), one.state_dict()
    same = [name for name in own if own[name].shape == other[name].shape]
    assert all(torch.equal(own[name], other[name]) for name in same)
    assert all(torch.equal(own[name], before[name]) for name in own if name not in same)
    assert 0 < len(same) < len(own)


def test_an_objective_that_asks_for_a_teacher_gets_its_own_copy_of_the_base(finished, monkeypatch):
    root, folder, options = finished
    study = study_file.load(root / "study.yaml", options)
    bench = Bench(study, RunDirectory(folder).cache)
    network = bench.network(bench.scaled(stages.architecture(study).to_dict()), seed=1)
    taught = []
    monkeypatch.setattr(denoising.Objective, "requires", frozenset({"teacher"}))
    monkeypatch.setattr(
        denoising.Objective, "__init__", lambda self, generator, teacher, settings: taught.append(teacher)
    )
    bench.objective(network, 0)
    bench.objective(network, 0)
    base = load_file(stages.weights_path(bench))
    assert taught[0] is not taught[1]
    assert all(torch.equal(tensor, base[name]) for name, tensor in taught[0].state_dict().items())
    assert all(torch.equal(tensor, base[name]) for name, tensor in network.state_dict().items())  # init: base
    assert not any(parameter.requires_grad for parameter in taught[0].parameters())


def test_an_objective_that_asks_for_a_teacher_needs_a_base(tmp_path, monkeypatch):
    monkeypatch.setattr(denoising.Objective, "requires", frozenset({"teacher"}))
    with pytest.raises(
        InputError, match=r"^cell '.*': objective: denoising starts from a trained network.* no base section"
    ):
        check.check(loaded(tmp_path), None)


def test_an_objective_that_is_taught_predicts_what_its_teacher_does(tmp_path):
    def study(prediction):
        taught = f"{{training: {{images_seen: 16}}, objective: {{name: denoising, prediction: {prediction}}}}}"
        return loaded(tmp_path, "training.init=base", f"base={taught}", "objective=ufogen",
                      "ablation.factors={pace: {field: training.batch, levels: [8, 16]}}",
                      "ablation.minimise=[denoising_loss]")  # fmt: skip

    check.check(study("v"), None)
    with pytest.raises(InputError, match=r"^cell 'pace=8': objective.prediction: 'v', .* with 'epsilon'"):
        check.check(study("epsilon"), None)


def test_the_base_is_cached_by_everything_that_went_into_it(tmp_path):
    def path(*overrides):
        study = loaded(tmp_path, "base={training: {images_seen: 32, batch: 16}}", *overrides)
        return stages.weights_path(Bench(study, tmp_path / "cache"))

    changes = ("seed=1", "proxy.width_divisor=8", "base.training.images_seen=48", "architecture=sd15",
               "base.objective={name: denoising, prediction: epsilon}", "dataset.limit=64")  # fmt: skip
    paths = [path(), *map(path, changes)]
    assert len(set(paths)) == len(paths)
    assert path("training.images_seen=64", "ablation.repeats=4", "evaluation.images=16", "sampling.steps=1") == paths[0]


def test_conditions_say_what_the_cells_vary(tmp_path):
    varied = design.varied(loaded(tmp_path).ablation)
    assert varied == ["architecture.levels.*.ffn_ratio", "training.learning_rate", "sampling.steps"]
    fid = {"unit": "", "images": 8, "steps": 2, "guidance": 1.0}
    told = cells.conditions_of(varied, {"fid": fid, "denoising_loss": {"unit": "", "times": 8}})
    assert told["fid"] == {"unit": "", "images": 8, "steps": "as the cell says", "guidance": 1.0}
    assert told["denoising_loss"] == {"unit": "", "times": 8}


@pytest.mark.parametrize("name", ["sa_ca_placement", "quickstart"])
def test_a_study_that_names_a_space_is_a_search_only_without_an_ablation(name):
    study = study_file.load(Path(__file__).parents[1] / "studies" / name)
    assert study.space is not None
    kind = launch.kind_of(study, SearchSpace.load(study.space))
    assert kind.func is (cells.CellRun if study.ablation else SearchRun)
