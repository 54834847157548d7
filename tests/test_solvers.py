"""Solvers, spacings and guidance intervals: exact answers of a linear denoiser, second implementations, and what is called."""

import json
import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_sampling import KINDS, NULL, Gaussian, Linear, captions, noise, schedule

from nas.diffusion.plan import Plan
from nas.diffusion.solvers import sample
from nas.documents.document import Document
from nas.errors import InputError

SOLVERS = ["ddim", "dpm++", "unipc", "heun"]
SPACINGS = ["trailing", "leading", "linspace"]
MEAN, DEVIATION = 1.5, 0.7


def drawn(made, plan, start=None):
    start = noise(4) if start is None else start
    return sample(Gaussian(made, DEVIATION), plan, made.config, start, captions(*[MEAN] * len(start)), NULL)


def exact(made, plan):
    """Along the probability flow of N(m, d^2) to the last time asked about, and there the posterior mean.

    x_t - a_t m is z sqrt(a_t^2 d^2 + s_t^2) with the same z at all times.
    """
    kept = made.alphas_cumprod.double()[[-1, plan.times()[-1]]]
    (a, last), (spread, least) = kept.sqrt(), (kept * DEVIATION**2 + 1 - kept).sqrt()
    z = (noise(4).double() - a * MEAN) / spread
    return MEAN + last * DEVIATION**2 / least * z


def error(made, **plan):
    asked = Plan(guidance=1, **plan)
    return float((drawn(made, asked).double() - exact(made, asked)).abs().max())


# --- exact answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("solver", "low", "high"), [("ddim", 0.9, 1.05), ("unipc", 1.5, 2.2), ("heun", 1.85, 2.15)])
def test_order_of_convergence(kind, solver, low, high):
    """Half the step, a half or a quarter of the error. `linspace` has its last time at 0, so that its last step, which is of
    first order whatever the solver, is as short for any number of steps; UniPC nears its order from below."""
    made = schedule(*kind)
    coarse, fine = (error(made, solver=solver, steps=steps, spacing="linspace") for steps in (40, 80))
    assert low < math.log2(coarse / fine) < high


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_more_order_is_less_error_at_equal_evaluations(kind):
    made = schedule(*kind)
    first = error(made, solver="ddim", steps=19)
    assert error(made, solver="heun", steps=10) < first / 10  # 19 evaluations too
    assert error(made, solver="unipc", steps=19) < first / 4 and error(made, solver="dpm++", steps=19) < first / 4


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_many_steps_of_any_solver_are_a_thousand_of_ddim(spacing):
    made = schedule()
    plan = Plan(steps=1000, guidance=1, spacing=spacing)
    expected = drawn(made, plan)
    torch.testing.assert_close(expected.double(), exact(made, plan), atol=0.005, rtol=0)
    for solver, steps in (("dpm++", 300), ("unipc", 300), ("heun", 150)):
        found = drawn(made, Plan(solver=solver, steps=steps, guidance=1, spacing=spacing))
        torch.testing.assert_close(found, expected, atol=0.015, rtol=0)  # the last time asked about is another


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("solver", "spacing"), [*product(["unipc", "heun"], SPACINGS)])
def test_a_point_is_hit_in_few_steps(kind, solver, spacing):
    made, plan = schedule(*kind), Plan(solver=solver, steps=3, guidance=1, spacing=spacing)
    found = sample(Gaussian(made, 0.0), plan, made.config, noise(2), captions(-1.0, 2.0), NULL)
    expected = torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand_as(found)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("solver", ["unipc", "heun"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_step_is_the_clean_latents(kind, solver):
    made, start, text = schedule(*kind), noise(2), captions(0.5, -0.5)
    one = sample(Linear(), Plan(solver="one_step"), made.config, start, text, NULL)
    found = sample(Linear(), Plan(solver=solver, steps=1, guidance=1), made.config, start, text, NULL)
    torch.testing.assert_close(found, one, atol=2e-3 if kind[1] else 1e-4, rtol=1e-4)


# --- second implementations ------------------------------------------------------------------------------------------


def clean_and_levels(made, text):
    """x^_0 of `Linear` in float64, and a, s, lambda = log(a / s) at every time."""
    kept = made.alphas_cumprod.double()
    a, s = kept.sqrt(), (1 - kept).sqrt()

    def clean(x, time):
        output = Linear()(x, torch.tensor([time]), text)
        v = made.config["prediction_type"] == "v_prediction"
        return a[time] * x - s[time] * output if v else (x - s[time] * output) / a[time]

    return clean, a, s, a.log() - s.log()


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
@pytest.mark.parametrize(("steps", "spacing"), [(2, "trailing"), (7, "trailing"), (6, "leading"), (9, "linspace")])
def test_unipc_is_the_papers_algorithm(kind, steps, spacing):
    """UniPC-2 with B(h) = e^h - 1 (arXiv 2302.04867, algorithms 5 to 8 for data prediction), from its equations.

    Each x is corrected by the clean latents that were predicted from it before it was, which cost nothing more.
    """
    made, text = schedule(*kind), captions(0.2)
    clean, a, s, level = clean_and_levels(made, text)
    plan = Plan(solver="unipc", steps=steps, guidance=1, spacing=spacing)
    x = noise(1).double()
    seen = [(plan.times()[0], clean(x, plan.times()[0]))]
    for now, after in pairwise(plan.times()):
        h, kept = level[after] - level[now], seen[-1][1]
        growth = -torch.expm1(-h)  # 1 - e^-h
        still = s[after] / s[now] * x + a[after] * growth * kept
        before = [((level[time] - level[now]) / h, one - kept) for time, one in seen[:-1][-1:]]
        predicted = still + a[after] * growth * sum(0.5 * change / r for r, change in before)
        corrected = clean(predicted, after)
        ratios = [r for r, _ in before] + [torch.tensor(1.0).double()]
        phi = [growth / h, (h - growth) / h**2, (h**2 / 2 - h + growth) / h**3]  # of data prediction, at -h
        wanted = [math.factorial(k) * h * phi[k] / growth for k in range(1, len(ratios) + 1)]
        powers = torch.stack([torch.stack([r**k for r in ratios]) for k in range(len(ratios))])
        rho = torch.linalg.solve(powers, torch.stack(wanted)) if before else torch.tensor([0.5]).double()
        change = [change / r for r, change in before] + [corrected - kept]
        x = still + a[after] * growth * sum(weight * one for weight, one in zip(rho, change, strict=True))
        seen.append((after, corrected))
    found = sample(Linear(), plan, made.config, noise(1), text, NULL)
    torch.testing.assert_close(found.double(), seen[-1][1], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_heun_is_the_trapezoidal_rule_of_small_angles(kind):
    """dx/dphi = v by Heun's own two lines, without the fit: alike to third order in the step."""
    made, text = schedule(*kind), captions(0.2)
    kept = made.alphas_cumprod.double()
    plan = Plan(solver="heun", steps=250, guidance=1, spacing="linspace")

    def slope(x, time):
        a, s, output = kept[time].sqrt(), (1 - kept[time]).sqrt(), Linear()(x, torch.tensor([time]), text)
        return output if kind[0] == "v" else (output - s * x) / a

    x = noise(1).double()
    for now, after in pairwise(plan.times()):
        turn, first = torch.acos(kept[after].sqrt()) - torch.acos(kept[now].sqrt()), slope(x, now)
        x = x + turn / 2 * (first + slope(x + turn * first, after))
    x = kept[0].sqrt() * x - (1 - kept[0]).sqrt() * slope(x, 0)
    found = sample(Linear(), plan, made.config, noise(1), text, NULL)
    torch.testing.assert_close(found.double(), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++", 2)])
@pytest.mark.parametrize("steps", [1, 9, 25, 61])
def test_plans_of_before_draw_bit_for_bit_what_they_drew(solver, order, steps):
    made, text, x = schedule(), captions(0.2, -0.3), noise(2)
    config = {key: value for key, value in made.config.items() if not key.startswith("_")}
    theirs = DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=order, lower_order_final=True
    )
    asked = np.arange(1000, 0, -1000 / steps).round()[:steps]
    theirs.set_timesteps(timesteps=[int(time) - 1 for time in asked])
    found = sample(Linear(), Plan(solver=solver, steps=steps, guidance=2.0), made.config, x, text, NULL)
    for time in theirs.timesteps:
        without, given_ = Linear()(x, time.expand(2), NULL), Linear()(x, time.expand(2), text)
        x = theirs.step(without + 2.0 * (given_ - without), time, x).prev_sample
    assert torch.equal(found, x)


# --- times -----------------------------------------------------------------------------------------------------------


def test_spacings_are_those_of_the_papers_table():
    """Lin et al. 2024, table 2, T = 1000 and S = 10, which counts from 1."""
    table = {
        "leading": [1, 101, 201, 301, 401, 501, 601, 701, 801, 901],
        "linspace": [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000],
        "trailing": [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
    }
    for spacing, times in table.items():
        assert Plan(steps=10, spacing=spacing).times() == [time - 1 for time in reversed(times)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings_are_those_of_diffusers(spacing):
    theirs = DDIMScheduler(timestep_spacing=spacing)
    for steps in (2, 4, 10, 30, 250, 1000):  # where no time of linspace lies half way between two, as 500.5 of 3 steps
        theirs.set_timesteps(steps)
        assert Plan(steps=steps, spacing=spacing).times() == theirs.timesteps.tolist()[:steps]


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_times_are_as_many_as_steps_and_fall(spacing):
    for steps in range(2, 1001):
        asked = Plan(steps=steps, spacing=spacing).times()
        assert len(asked) == steps and asked[-1] == 0 and asked[0] <= 999
        assert all(one > other for one, other in pairwise(asked))


# --- the guidance interval -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [*SOLVERS, "renoise"])
def test_the_whole_interval_is_plain_guidance_and_none_is_no_guidance(solver):
    made, text = schedule(), captions(0.5, -0.5)

    def told(**fields):
        return sample(Linear(), Plan(solver=solver, steps=5, **fields), made.config, noise(2), text, NULL)

    plain = told(guidance=3.0)
    assert torch.equal(told(guidance=3.0, guidance_interval=[0, 999]), plain)
    asked_not = [0, 99]  # below the last time of any solver
    assert torch.equal(told(guidance=3.0, guidance_interval=asked_not), told(guidance=1.0))
    assert not torch.equal(told(guidance=3.0, guidance_interval=[300, 700]), plain)


def test_inside_the_interval_is_guided_by_hand():
    """DDIM's three lines with guidance 3 at the two times of five that lie in [399, 599], both ends among them."""
    made, text, x = schedule(), captions(0.3), noise(1)
    plan = Plan(steps=5, guidance=3.0, guidance_interval=(399, 599))
    found, kept = sample(Linear(), plan, made.config, x, text, NULL), made.alphas_cumprod
    for time, after in pairwise([999, 799, 599, 399, 199, None]):
        shown = torch.tensor([time])
        v, without = Linear()(x, shown, text), Linear()(x, shown, NULL)
        v = without + 3.0 * (v - without) if time in (599, 399) else v
        a, s = kept[time].sqrt(), (1 - kept[time]).sqrt()
        left = torch.tensor(1.0) if after is None else kept[after]
        x = left.sqrt() * (a * x - s * v) + (1 - left).sqrt() * (s * x + a * v)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "spacing", "interval"), [*product(SOLVERS, SPACINGS, [(0, 999), (200, 799), (0, 0), (999, 999)])]
)
def test_what_is_called_is_what_the_plan_says(solver, spacing, interval):
    made = schedule()
    for steps, guidance in product((2, 5, 8), (1.0, 3.0)):
        plan = Plan(solver=solver, steps=steps, guidance=guidance, spacing=spacing, guidance_interval=interval)
        network = Gaussian(made, 0.5)
        sample(network, plan, made.config, noise(1), captions(1.0), NULL)
        assert [times[0] for _, times in network.calls] == plan.asked
        assert sum(rows for rows, _ in network.calls) == plan.calls


def test_calls_by_hand():
    assert Plan(solver="heun", steps=10, guidance=1).calls == 19 and Plan(solver="heun", steps=10).calls == 38
    assert Plan(solver="heun", steps=1, guidance=1).calls == 1 and Plan(solver="unipc", steps=10).calls == 20
    within = {"steps": 10, "guidance": 3.0, "guidance_interval": (200, 799)}  # 299, 399, .. 799: six of ten
    assert Plan(**within).calls == 16 and Plan(solver="renoise", **within).calls == 16
    assert Plan(solver="heun", **within).calls == 19 + 12  # each of the six is asked about twice, 999 is not among them


plans_ = st.builds(
    dict,
    solver=st.sampled_from([*SOLVERS, "one_step", "renoise"]),
    steps=st.integers(1, 12),
    guidance=st.sampled_from([0.0, 1.0, 2.5]),
    spacing=st.sampled_from(SPACINGS),
    guidance_interval=st.tuples(st.integers(0, 999), st.integers(0, 999)).map(list),
)


@settings(max_examples=60, deadline=None)
@given(plans_)
def test_a_plan_is_refused_or_costs_what_it_says_and_is_read_as_it_was_written(fields):
    low, high = fields["guidance_interval"]
    one_step = fields["solver"] in ("one_step", "renoise")
    refused = low > high or (fields["solver"] == "one_step" and fields["steps"] > 1)
    refused |= fields["spacing"] != "trailing" and (one_step or fields["steps"] == 1)
    if refused:
        with pytest.raises(ValidationError):
            Plan(**fields)
        return
    plan, made = Plan(**fields), schedule()
    network = Gaussian(made, 0.5)
    found = sample(network, plan, made.config, noise(1), captions(1.0), NULL)
    assert found.isfinite().all() and sum(rows for rows, _ in network.calls) == plan.calls
    written = plan.model_dump()
    assert Plan(**json.loads(json.dumps(written))) == plan and json.loads(json.dumps(written)) == written
    assert plan.changed() == plan and hash(plan.changed()) == hash(plan)


# --- what is written and refused -------------------------------------------------------------------------------------


def test_later_fields_are_written_only_where_they_say_something():
    assert Plan(guidance_interval=[0, 999], spacing="trailing").model_dump() == Plan().model_dump()
    assert Plan().model_dump() == {"solver": "ddim", "steps": 25, "guidance": 3.0}
    told = Plan(guidance_interval=(100, 800), spacing="leading")
    assert told.model_dump() == Plan().model_dump() | {"spacing": "leading", "guidance_interval": [100, 800]}
    assert told.model_dump(mode="json") == told.model_dump()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"solver": "unip"}, "solver: expected 'ddim', 'dpm\\+\\+', 'unipc', 'heun', .*got 'unip'"),
        ({"spacing": "even"}, "spacing: expected 'trailing', 'leading' or 'linspace', got 'even'"),
        ({"spacing": "leading", "steps": 1}, "spacing: leading asks about pure noise as if it were time 0"),
        (
            {"spacing": "linspace", "solver": "renoise"},
            "spacing: solver renoise has times of its own, expected trailing",
        ),
        ({"guidance_interval": [800, 200]}, r"guidance_interval: expected the lower time first, got \[800, 200\]"),
        ({"guidance_interval": [0, 1000]}, "guidance_interval.1: expected less than 1000, got 1000"),
        ({"guidance_interval": [-1, 3]}, "guidance_interval.0: expected greater than or equal to 0, got -1"),
        ({"guidance_interval": [0, 0.5]}, "guidance_interval.1: expected a valid integer"),
        ({"guidance_interval": [1, 2, 3]}, "guidance_interval: expected two training times"),
        ({"guidance_interval": [1]}, "guidance_interval: expected two training times"),
        ({"guidance_interval": 200}, "guidance_interval: expected two training times"),
    ],
)
def test_impossible_plans_are_one_line_of_a_study_file_and_of_a_command(given, words):
    with pytest.raises(InputError, match=words) as caught:
        Document("study.yaml", given).validate(Plan, given)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=words) as caught:
        Plan().changed(**given)
    assert "\n" not in str(caught.value)


def test_a_plan_is_changed_in_any_field():
    one, many = Plan(solver="one_step"), Plan(solver="dpm++", steps=10)
    assert many.changed(solver="one_step") == Plan(solver="one_step", guidance=3.0)
    assert one.changed(solver="heun", steps=4) == Plan(solver="heun", steps=4, guidance=1)
    assert one.changed(steps=4) == Plan(solver="renoise", steps=4)
    with pytest.raises(InputError, match="solver one_step has 1 step, got 4"):
        many.changed(solver="one_step", steps=4)
    with pytest.raises(InputError, match="spacing: leading asks about pure noise"):
        Plan(spacing="leading").changed(steps=1)
