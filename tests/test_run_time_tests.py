"""Schedules by tests of what has changed: on changes by hand, and measured against hooks on a network."""

import itertools

import exported
import numpy as np
import pytest

from nas.cost.units import COMPUTE, WHOLE
from nas.diffusion import solvers
from nas.networks import backbones
from nas.networks.conditioning import Text
from nas.schedules import run_time_tests, subjects
from nas.schedules.drawing import Task
from nas.schedules.run_time_tests import Changes, first_block, teacache


def changes_of(values):
    """Between numbers instead of tensors."""
    row = np.array(values, dtype=float)
    table = np.abs(row[None] - row[:, None]) / np.abs(row[:, None])
    return Changes(table, table)


def test_the_first_block_is_compared_with_the_last_computed_step():
    """Small changes add up, since the comparison is with what is kept: 10, 11 and 12 are kept under 0.25, 13 is not."""
    drifting = changes_of([10, 11, 12, 13, 14, 20])
    assert first_block(drifting, 0.25).tolist() == [True, False, False, True, False, True]
    assert first_block(drifting, 0.0).all() and first_block(drifting, 9.0).tolist() == [True] + [False] * 5


def test_teacache_sums_changes_and_computes_both_ends():
    wavering = changes_of([10, 11, 10, 11, 10, 11])  # by 1/10 and 1/11: never far off, yet the sum grows
    assert teacache(wavering, 0.25).tolist() == [True, False, False, True, False, True]
    assert teacache(wavering, 9.0).tolist() == [True, False, False, False, False, True]
    assert not first_block(wavering, 0.25)[1:].any()


@pytest.mark.parametrize("test", [first_block, teacache])
def test_every_number_of_steps_that_a_threshold_reaches_is_found(test):
    """Against a fine grid of thresholds."""
    changes = changes_of(np.random.default_rng(3).uniform(1, 2, 9))
    values = changes.first if test is first_block else run_time_tests._sums(np.diag(changes.output, 1))
    found = {int(one.sum()) for one in run_time_tests._by_count(test, changes, values)}
    grid = {int(test(changes, threshold).sum()) for threshold in np.linspace(1e-6, 6, 20_000)}
    assert found == grid - {9}


@pytest.mark.parametrize("name", ["mobilediffusion", "pixart"])
def test_a_step_that_is_not_computed_keeps_all_but_the_shell(name):
    units = backbones.presets()[name].units(16, 7)
    changes = changes_of([8, 7, 5, 4, 2, 1])
    found = dict(run_time_tests.schedules(changes, units))
    assert {title.split()[0] for title in found} == {"firstblockcache", "teacache"}
    for (title, modes), step in itertools.product(found.items(), range(6)):
        kept = modes[step] != COMPUTE
        assert int(title.split()[1]) == (modes == COMPUTE).all(axis=1).sum()
        wanted = units.depths > 0 if name == "mobilediffusion" else units.components != WHOLE
        assert not kept.any() or (kept[1:] == wanted[1:]).all()
        assert not (title.startswith("first") and kept[0])


def test_changes_are_those_of_a_drawing(tmp_path):
    """Of a small network: the last row by hooks and calls of a test of its own."""
    run = exported.run_directory(tmp_path / "runs" / "small" / "2026").path
    subject, _ = subjects.find(run, "trial:0")
    task = Task.calibration(subject.bench, 2, 0)
    found = run_time_tests.measured(subject, task)
    seen, predicted = [], []
    first = subject.network.get_submodule(subject.units.members[0].name)
    hooks = [first.register_forward_hook(lambda _, __, output: seen.append(output.detach().numpy()))]
    hooks += [subject.network.register_forward_hook(lambda _, __, output: predicted.append(output.detach().numpy()))]
    null = subject.bench.train_data.null
    solvers.sample(subject.network, subject.plan, subject.schedule, task.noise, Text(*task.text), null)
    for hook in hooks:
        hook.remove()
    for table, outputs in ((found.first, seen), (found.output, predicted)):
        assert table.shape == (subject.plan.evaluations,) * 2
        wanted = [np.abs(outputs[-1] - one).mean() / np.abs(one).mean() for one in outputs]
        np.testing.assert_allclose(table[:, -1], wanted, rtol=1e-5)
