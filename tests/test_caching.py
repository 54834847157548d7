"""Drawing with kept units: what a schedule leaves to be computed is computed, and what is kept is what a second way keeps."""

import numpy as np
import pytest
import torch
from torch import nn

from nas.cost import units as counting
from nas.cost.count import Count
from nas.cost.traced import traced_by_module
from nas.cost.units import COMPUTE, FEED_FORWARD, SELF, WHOLE, Unit
from nas.diffusion import solvers
from nas.diffusion.caches import cache_schedules
from nas.diffusion.caches.cache_schedules import DeepCache, Evenly, Fora, TaylorSeer, TGate, written
from nas.diffusion.caches.caching import keeping
from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, noise_schedule
from nas.errors import InputError
from nas.networks import backbones
from nas.networks.backbones import Proxy
from nas.networks.conditioning import Text

STEPS, SIDE, TOKENS = 6, 8, 5
PROXY = Proxy(width_divisor=16, latent_channels=4, text_width=16, pooled_width=12)
SCHEDULE = dict(noise_schedule(Settings()).config)
FAMILIES = {"mobilediffusion": PROXY, "pixart": Proxy(24, 4, 16, 12), "u-vit-h": Proxy(24, 4, 16, 12)}


def network(name):
    torch.manual_seed(0)
    made = backbones.presets()[name].scaled(FAMILIES[name]).build().eval()
    for parameter in made.parameters():  # layers that start at zero would hide what is kept
        scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        parameter.data += scale * torch.randn(parameter.shape)
    return made, made.config.units(SIDE, TOKENS)


NETWORKS = {name: network(name) for name in FAMILIES}


def draw(name, cache, guidance=3.0, steps=STEPS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 4, SIDE, SIDE, generator=generator)
    text = Text(torch.randn(2, TOKENS, 16, generator=generator), torch.randn(2, 12, generator=generator))
    null = Text(torch.zeros(1, TOKENS, 16), torch.zeros(1, 12))
    plan = Plan(steps=steps, guidance=guidance, cache=cache)
    return solvers.sample(NETWORKS[name][0], plan, SCHEDULE, noise, text, null)


def modes(name, preset, steps=STEPS):
    return preset.modes(steps, NETWORKS[name][1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_schedule_that_computes_everything_draws_what_no_schedule_draws(name):
    units = NETWORKS[name][1]
    full = written(np.full((STEPS, len(units)), COMPUTE), units)
    assert torch.equal(draw(name, full), draw(name, None))
    assert torch.equal(draw(name, Fora(name="fora", every=1)), draw(name, None))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_schedule_that_keeps_every_unit_computes_the_first_step_alone(name):
    units = NETWORKS[name][1]
    keep = np.zeros((STEPS, len(units)), dtype=np.int8)
    keep[:, units.components == WHOLE] = COMPUTE
    assert torch.equal(draw(name, written(keep, units)), draw(name, Fora(name="fora", every=STEPS)))


@pytest.mark.parametrize("name", FAMILIES)
def test_fora_is_taylorseer_of_order_zero(name):
    fora, taylor = Fora(name="fora", every=3), TaylorSeer(name="taylorseer", every=3, order=0, first=1)
    assert np.array_equal(modes(name, fora), modes(name, taylor))
    assert not torch.equal(draw(name, fora), draw(name, TaylorSeer(name="taylorseer", every=3, order=1, first=2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_of_a_drawing_is_left_for_the_next(name):
    """Two drawings in a row give what fresh networks give, and the network's own methods are back."""
    cache, before = Fora(name="fora", every=2), draw(name, None, seed=2)
    first, second = draw(name, cache, seed=1), draw(name, cache, seed=2)
    assert torch.equal(second, draw(name, cache, seed=2)) and torch.equal(first, draw(name, cache, seed=1))
    assert torch.equal(draw(name, None, seed=2), before)
    for unit in NETWORKS[name][1].members:
        assert unit.method not in vars(NETWORKS[name][0].get_submodule(unit.name))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_counted_is_what_is_computed(name):
    """Calls of every unit's own method while drawing a random schedule, times its traced cost, are the closed form."""
    made, units = NETWORKS[name]
    rng = np.random.default_rng(0)
    table = rng.choice([COMPUTE, 0, 1, 2], p=[0.4, 0.3, 0.2, 0.1], size=(STEPS, len(units))).astype(np.int8)
    table[:, units.components == WHOLE] = rng.choice([COMPUTE, 0], size=(STEPS, int((units.components == WHOLE).sum())))
    calls, undo = dict.fromkeys(units.names, 0), []
    for unit in units.members:
        module = made.get_submodule(unit.name)
        compute = getattr(type(module), unit.method).__get__(module)

        def counted(*given, _name=unit.name, _compute=compute):
            calls[_name] += 1
            return _compute(*given)

        setattr(module, unit.method, counted)
        undo.append((module, unit.method))
    try:
        draw(name, written(table, units))
    finally:
        for module, method in undo:
            vars(module).pop(method, None)
    inputs = (torch.randn(1, 4, SIDE, SIDE), torch.zeros(1), Text(torch.randn(1, TOKENS, 16), torch.randn(1, 12)))
    whole = traced_by_module(made, *inputs)[""].macs
    spared = sum((STEPS - calls[unit.name]) * unit.own.macs for unit in units.members)
    assert Plan(steps=STEPS, guidance=1, cache=written(table, units)).macs(units) == STEPS * whole - spared
    assert Plan(steps=STEPS, guidance=3, cache=written(table, units)).macs(units) == 2 * (STEPS * whole - spared)


def test_a_cache_on_a_network_that_has_nothing_to_keep_is_one_line():
    bare = counting.of([], network("mobilediffusion")[1].network)
    with pytest.raises(InputError, match="^cache: this family of networks has no units"):
        Plan(steps=STEPS, cache=Fora(name="fora", every=2)).macs(bare)
    assert Plan(steps=STEPS, guidance=1).macs(bare) == STEPS * bare.network.macs


# --- DeepCache, against a forward pass of two paths -------------------------------------------------------------------


def two_paths(made, latents, time, text, branch, stored):
    """The UNet with everything deeper than a skip connection taken from `stored`, or computed and put there; by levels, with the
    blocks upwards numbered from the end."""
    import torch.nn.functional as F

    embedded = F.silu(made.embedding(time, text.pooled))
    levels = list(made.levels)
    total = sum(len(level.up) for level in levels)
    x, kept = made.conv_in(latents), []
    deep = stored or {}

    def upwards(x, kept):
        number = total
        for level in reversed(levels):
            skips = kept.pop()
            for width, block in zip(level.skips, level.up, strict=True):
                number -= 1
                if number == branch and stored:
                    x = deep["x"]
                if number == branch and not stored:
                    deep["x"] = x
                skip = skips.pop() if width else None
                if number > branch and stored:
                    continue
                x = block(torch.cat([x, skip], dim=1) if width else x, embedded, text.tokens)
            if level.upsample is not None and not (number > branch and stored):
                x = level.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x

    for level in levels:
        x, saved = level.descend(x, embedded, text.tokens)
        kept.append(saved)
    for block in made.mid:
        x = block(x, embedded, text.tokens)
    x = upwards(x, kept)
    return made.conv_out(F.silu(made.norm_out(x))), deep


@pytest.mark.parametrize("branch", range(5))
def test_deepcache_is_a_forward_pass_of_two_paths(branch):
    made, units = NETWORKS["mobilediffusion"]
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 4, SIDE, SIDE, generator=generator) for _ in range(3)]
    text = Text(torch.randn(1, TOKENS, 16, generator=generator), torch.randn(1, 12, generator=generator))
    table = DeepCache(name="deepcache", every=3, branch=branch).modes(3, units)
    stored = None
    with torch.no_grad(), keeping(made, units, table) as steps:
        found = []
        for steps.now in range(3):
            found.append(made(latents[steps.now], torch.full((1,), 900 - 300 * steps.now), text))
    with torch.no_grad():
        for step, one in enumerate(found):
            expected, stored = two_paths(made, latents[step], torch.full((1,), 900 - 300 * step), text, branch, stored)
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


def test_deepcache_of_the_outermost_branch_computes_what_the_paper_names():
    """First and last convolution, and the last block upwards."""
    _, units = NETWORKS["mobilediffusion"]
    table = DeepCache(name="deepcache", every=2, branch=0).modes(2, units)
    computed = units.effective(table)[1]
    assert [name for name, now in zip(units.names, computed, strict=True) if now and "conv." not in name] == [
        "levels.0.up.1"
    ]


# --- gates and extrapolation, on a network small enough to follow -----------------------------------------------------


class Gated(nn.Module):
    """x + time * f(x), f counted."""

    def __init__(self):
        super().__init__()
        self.f, self.calls = nn.Linear(1, 1, bias=False), 0
        nn.init.ones_(self.f.weight)

    def forward(self, x, time):
        return x + time * self.f(x)


UNIT = counting.of([Unit("f", FEED_FORWARD, Count(macs=1))], Count(macs=1))


def test_a_kept_unit_is_gated_by_the_time_of_the_step():
    made = Gated()
    with torch.no_grad(), keeping(made, UNIT, np.array([[COMPUTE], [0]], np.int8)) as steps:
        first = made(torch.tensor([[2.0]]), 1.0)
        steps.now = 1
        second = made(torch.tensor([[5.0]]), 10.0)
    assert first.item() == 2 + 1 * 2 and second.item() == 5 + 10 * 2


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_extrapolation_of_an_order_is_exact_for_polynomials_of_degree_one_and_lags_as_differences_do(order):
    """Finite differences over steps that were computed, and the Taylor polynomial of them, by hand."""
    made, table = Gated(), np.array([[COMPUTE]] * 4 + [[order]] * 2, np.int8)
    values = [1.0, 3.0, 5.0, 7.0, 0.0, 0.0]
    with torch.no_grad(), keeping(made, UNIT, table) as steps:
        found = []
        for steps.now, value in enumerate(values):
            found.append(made(torch.tensor([[value]]), 1.0).item() - value)
    assert found[4:] == ([7.0, 7.0] if order == 0 else [9.0, 11.0])


def test_extrapolation_of_a_square_by_hand():
    made, table = Gated(), np.array([[COMPUTE], [COMPUTE], [COMPUTE], [2]], np.int8)
    with torch.no_grad(), keeping(made, UNIT, table) as steps:
        for steps.now, value in enumerate([0.0, 1.0, 4.0, 0.0]):
            found = made(torch.tensor([[value]]), 1.0).item() - value
    assert found == 4 + 3 * 1 + 2 * 1 / 2  # D_0 = 4, D_1 = 4 - 1, D_2 = 3 - 1


# --- heuristics ---------------------------------------------------------------------------------------------------------


def test_tgate_freezes_cross_attention_and_thins_self_attention_before_the_gate():
    name = "pixart"
    table, units = modes(name, TGate(name="tgate", gate=4, every=3)), NETWORKS[name][1]
    cross, own, feed = (
        table[:, np.flatnonzero(units.components == kind)[0]] for kind in ("cross_attention", SELF, FEED_FORWARD)
    )
    assert (cross == COMPUTE).tolist() == [True] * 4 + [False] * 2
    assert (own == COMPUTE).tolist() == [True, True, False, True, True, True]
    assert (feed == COMPUTE).all()


def test_one_kind_of_unit_is_computed_evenly():
    table, units = modes("pixart", Evenly(name="evenly", component=SELF, computed=2)), NETWORKS["pixart"][1]
    assert (table[:, units.components == SELF] == COMPUTE)[:, 0].tolist() == [True, False, False, True, False, False]
    assert (table[:, units.components != SELF] == COMPUTE).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_draws_and_is_written_and_read_again(name):
    units = NETWORKS[name][1]
    for preset in cache_schedules.presets(STEPS, units):
        table = preset.modes(STEPS, units)
        again = Plan.model_validate_json(Plan(steps=STEPS, cache=written(table, units)).model_dump_json())
        assert np.array_equal(again.cache.modes(STEPS, units), table)
        assert Plan(steps=STEPS, cache=preset).macs(units) < Plan(steps=STEPS).macs(units)


# --- bad input ----------------------------------------------------------------------------------------------------------


def schedule_of(steps=STEPS, name="pixart"):
    units = NETWORKS[name][1]
    return written(np.zeros((steps, len(units)), np.int8), units)


@pytest.mark.parametrize(
    ("cache", "name", "message"),
    [
        (schedule_of(), "mobilediffusion", "cache.rows: 84 letters in a row, and the network has 77 units"),
        (
            schedule_of().model_copy(update={"network": "0" * 12}),
            "pixart",
            "cache.network: the schedule is for units '0000",
        ),
        (DeepCache(name="deepcache"), "pixart", "this network has none"),
        (DeepCache(name="deepcache", branch=9), "mobilediffusion", "cache.branch: 9; expected at most"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(cache, name, message):
    with pytest.raises(InputError, match=message):
        draw(name, cache)


def test_rows_are_checked_as_they_are_read():
    with pytest.raises(
        ValueError, match="cache: its schedule has 4 rows, and ddim in 6 steps evaluates the network 6 times"
    ):
        Plan(steps=6, cache=schedule_of(4))
    assert Plan(solver="heun", steps=2, cache=schedule_of(3)).evaluations == 3
    with pytest.raises(ValueError, match="row 1 has 'x'; expected letters among c, r, 1, 2, 3"):
        Plan(steps=2, cache={"name": "schedule", "network": "", "rows": ["cr", "cx"]})
    with pytest.raises(ValueError, match="row 1 has 3 letters; expected 2"):
        Plan(steps=2, cache={"name": "schedule", "network": "", "rows": ["cr", "crr"]})


def test_a_network_that_is_no_module_keeps_nothing():
    with pytest.raises(InputError, match="these graphs compute every unit"):
        solvers.sample(
            lambda x, t, c: x, Plan(steps=2, cache=Fora(name="fora")), SCHEDULE, torch.zeros(1, 4, 8, 8), None, None
        )


def test_a_cache_and_guidance_that_comes_and_goes_are_refused_together():
    with pytest.raises(ValueError, match="cache: what both branches put out cannot stand for one"):
        Plan(cache=Fora(name="fora"), guidance_interval=[200, 799])
    assert Plan(cache=Fora(name="fora"), guidance_interval=[200, 799], guidance=1.0).calls == 25


def test_rows_are_evaluations_so_that_heun_keeps_within_a_step():
    units = NETWORKS["pixart"][1]
    plan = Plan(solver="heun", steps=3, guidance=1.0, cache=Fora(name="fora", every=5))
    assert plan.computed(units).any(axis=1).tolist() == [True, False, False, False, False]
    assert plan.macs(units) == Plan(steps=1, guidance=1.0).macs(units) + 4 * (
        units.network.macs - sum(unit.own.macs for unit in units.members)
    )


def test_plans_without_a_cache_are_written_as_they_were():
    assert Plan().model_dump() == {"solver": "ddim", "steps": 25, "guidance": 3.0}
    assert Plan(cache=Fora(name="fora")).model_dump()["cache"] == {"name": "fora", "every": 2}
