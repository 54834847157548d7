"""Units of every backbone: those that are built (test_backbones traces their costs), and what a schedule of them costs."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backbones import CASES, PROXY, SIDE, TOKENS, inputs

from nas.cost import units as counting
from nas.cost.count import Count
from nas.cost.units import COMPUTE, CROSS, FEED_FORWARD, SELF, WHOLE, Unit
from nas.networks import backbones
from nas.space.search_space import SearchSpace


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_every_unit_is_a_method_of_a_module_that_a_call_reaches_once(backbone, name):
    config = backbone.presets()[name].scaled(PROXY)
    network, called = config.build(), Counter()
    for unit in config.units(SIDE, TOKENS).members:
        module = network.get_submodule(unit.name)
        compute = getattr(module, unit.method)

        def counted(*given, _name=unit.name, _compute=compute):
            called[_name] += 1
            return _compute(*given)

        setattr(module, unit.method, counted)
    network(*inputs(config, SIDE, batch=1))
    assert called == Counter(config.units(SIDE, TOKENS).names)


@pytest.mark.parametrize("space", ["mobilediffusion", "dit"])
def test_members_of_a_space_have_the_units_that_are_built(space):
    """Random members, as they are spelled: what their units name is there, and nothing costs less than nothing."""
    loaded, rng = SearchSpace.load(space), random.Random(0)
    for _ in range(10):
        config = loaded.built(loaded.sample(rng)).scaled(PROXY)
        found = config.units(SIDE, TOKENS)
        with torch.device("meta"):
            network = config.build()
        assert all(hasattr(network.get_submodule(unit.name), unit.method) for unit in found.members)
        assert sum(unit.own.macs for unit in found.members) < found.network.macs == config.cost(SIDE, TOKENS).macs


# --- schedules --------------------------------------------------------------------------------------------------------


TREE = counting.of(
    [
        Unit("a", WHOLE, Count(macs=1), depth=0),
        Unit("a.x", SELF, Count(macs=10, attention=4), "a"),
        Unit("b", WHOLE, Count(macs=100), depth=1),
        Unit("b.x", SELF, Count(macs=1000), "b"),
        Unit("b.y", CROSS, Count(macs=10_000), "b"),
        Unit("c", FEED_FORWARD, Count(macs=100_000)),
    ],
    Count(macs=1_111_111, attention=4),
)
SCHEDULES = st.lists(st.lists(st.sampled_from([COMPUTE, 0, 1]), min_size=6, max_size=6), min_size=1, max_size=5)


def by_hand(modes):
    """Which units are computed, said once more without arrays."""
    filled, rows = set(), []
    for row in modes:
        now = {}
        for unit, mode in zip(TREE.members, row, strict=True):
            called = unit.inside is None or now[unit.inside]
            now[unit.name] = called and (mode == COMPUTE or unit.name not in filled)
        filled |= {name for name, computed in now.items() if computed}
        rows.append([now[name] for name in TREE.names])
    return np.array(rows)


@given(SCHEDULES)
@settings(deadline=None)
def test_the_effective_schedule_is_the_one_that_a_loop_finds(rows):
    modes = np.array(rows, dtype=np.int8)
    expected = by_hand(modes)
    assert np.array_equal(TREE.effective(modes), expected)
    assert np.array_equal(TREE.effective(np.stack([modes, modes[::-1]])), [expected, by_hand(modes[::-1])])
    own = np.array([1, 10, 100, 1000, 10_000, 100_000])
    members = np.array([{"a": 1, "a.x": 10, "b": 100, "b.x": 1000, "b.y": 10_000, "c": 100_000}[n] for n in TREE.names])
    assert np.array_equal(TREE.macs(expected), 1_000_000 + expected @ members) and own.sum() == members.sum()
    canonical = TREE.canonical(modes)
    assert np.array_equal(TREE.effective(canonical), expected)
    assert np.array_equal(TREE.canonical(canonical), canonical)


@given(SCHEDULES, st.data())
@settings(deadline=None)
def test_computing_more_never_costs_less(rows, data):
    modes = np.array(rows, dtype=np.int8)
    more = modes.copy()
    more[data.draw(st.integers(0, len(modes) - 1)), data.draw(st.integers(0, 5))] = COMPUTE
    assert TREE.macs(TREE.effective(more)).sum() >= TREE.macs(TREE.effective(modes)).sum()


def test_the_first_step_computes_everything_whatever_the_schedule_says():
    assert TREE.effective(np.zeros((3, 6), np.int8)).tolist() == [[True] * 6, [False] * 6, [False] * 6]


# --- ECAD's numbers ---------------------------------------------------------------------------------------------------

STEPS, BATCH = 20, 2
GENOMES = {  # computed self-attention, cross-attention and feed-forward of the released schedules, and their multiply-adds
    "fast": ((219, 160, 219), 2_134_989_471_744),
    "faster": ((145, 111, 149), 1_455_554_691_072),
    "fastest": ((119, 85, 120), 1_175_355_260_928),
}


def released(counts):
    """A schedule of PixArt-alpha in 20 steps with so many units of each kind computed."""
    found = backbones.presets()["pixart"].units(32, 120)
    computed = np.zeros((STEPS, len(found)), dtype=bool)
    for component, count in zip((SELF, CROSS, FEED_FORWARD), counts, strict=True):
        places = np.argwhere(np.broadcast_to(found.components == component, computed.shape))[:count]
        computed[places[:, 0], places[:, 1]] = True
    return found, computed


def variance():
    """The channels of a predicted variance, which the preset leaves out: of 2 x 2 patches of 4 channels, 256 tokens a picture."""
    return BATCH * STEPS * 256 * 1152 * 16


def ecad_macs(found, computed):
    return BATCH * int(found.macs(computed, attention=False).sum()) + variance()


def test_pixart_costs_what_ecad_says():
    found, _ = released((0, 0, 0))
    assert ecad_macs(found, np.ones((STEPS, len(found)), bool)) / 1e12 == pytest.approx(5.71380, abs=5e-6)
    for every, published in ((2, 2.87188), (3, 2.01931)):
        computed = np.zeros((STEPS, len(found)), dtype=bool)
        computed[::every] = True
        assert ecad_macs(found, computed) / 1e12 == pytest.approx(published, abs=5e-6)


@pytest.mark.parametrize("name", GENOMES)
def test_ecads_released_schedules_cost_what_their_files_say(name):
    counts, published = GENOMES[name]
    assert ecad_macs(*released(counts)) == published
