import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from pydantic import ValidationError
from torch import nn

from nas.diffusion import solvers
from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, noise_schedule
from nas.diffusion.solvers import sample
from nas.errors import InputError
from nas.networks.conditioning import Text

SHAPE = (2, 4, 4)
KINDS = [("v", False), ("epsilon", False), ("v", True)]


def schedule(prediction="v", zero_terminal_snr=False):
    return noise_schedule(Settings(prediction=prediction, zero_terminal_snr=zero_terminal_snr))


class Gaussian(nn.Module):
    """The exact denoiser of data that is Gaussian around each caption's first token: it knows the posterior mean.

    With x_t = a x_0 + s e and x_0 ~ N(m, d^2), E[x_0 | x_t] = m + a d^2 / (a^2 d^2 + s^2) (x_t - a m).
    """

    def __init__(self, made, deviation):
        super().__init__()
        self.prediction = made.config["prediction_type"]
        self.alphas, self.deviation, self.calls = made.alphas_cumprod, deviation, []

    def forward(self, latents, time, text):
        self.calls.append((len(latents), time.tolist()))
        a = self.alphas[time].sqrt().view(-1, 1, 1, 1)
        s = (1 - self.alphas[time]).sqrt().view(-1, 1, 1, 1)
        mean, variance = text.tokens[:, 0, 0].view(-1, 1, 1, 1), self.deviation**2
        clean = mean + a * variance / (a**2 * variance + s**2) * (latents - a * mean)
        noise = (latents - a * clean) / s
        return a * noise - s * clean if self.prediction == "v_prediction" else noise


def captions(*means):
    """One caption for each mean; nothing but the first number of the first token is read."""
    tokens = torch.zeros(len(means), 3, 5)
    tokens[:, 0, 0] = torch.tensor(means)
    return Text(tokens, torch.zeros(len(means), 5))


def noise(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


NULL = captions(0.0)


# --- exact answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "renoise"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_point_is_hit_in_any_number_of_steps(solver, kind, steps):
    made = schedule(*kind)
    plan = Plan(solver=solver, steps=steps, guidance=1)
    drawn = sample(Gaussian(made, 0.0), plan, made.config, noise(3), captions(-1.0, 0.5, 2.0), NULL)
    expected = torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1, 1).expand(3, *SHAPE)
    tolerance = 2e-3 if kind[1] else 2e-4  # a signal of zero is replaced by 2^-12, so that logarithms exist
    torch.testing.assert_close(drawn, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 500), ("dpm++", 150)])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_gaussian_data_follow_the_probability_flow(solver, steps, kind):
    """For N(m, d^2) the flow keeps the number of standard deviations: x_0 = m + d (x_T - a m) / sqrt(a^2 d^2 + s^2)."""
    made, deviation, mean = schedule(*kind), 0.7, 1.5
    plan, start = Plan(solver=solver, steps=steps, guidance=1), noise(4)
    drawn = sample(Gaussian(made, deviation), plan, made.config, start, captions(*[mean] * 4), NULL)
    a, s = made.alphas_cumprod[-1].sqrt(), (1 - made.alphas_cumprod[-1]).sqrt()
    expected = mean + deviation * (start - a * mean) / (a**2 * deviation**2 + s**2).sqrt()
    torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)


class Linear(nn.Module):
    """Predicts something arbitrary that depends on everything."""

    def forward(self, latents, time, text):
        return 0.3 * latents.flip(-1) + 1e-3 * time.view(-1, 1, 1, 1) + text.tokens.sum((1, 2)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "one_step", "renoise"])
def test_one_step_is_one_line_of_algebra(solver):
    """x_0 from v at the last training step: a x - s v; from epsilon: (x - s e) / a."""
    start, text = noise(2), captions(0.5, -0.5)
    output = Linear()(start, torch.tensor([999, 999]), text)
    for prediction in ("v", "epsilon"):
        made = schedule(prediction)
        a, s = made.alphas_cumprod[999].sqrt(), (1 - made.alphas_cumprod[999]).sqrt()
        expected = a * start - s * output if prediction == "v" else (start - s * output) / a
        drawn = sample(Linear(), Plan(solver=solver, steps=1, guidance=1), made.config, start, text, NULL)
        torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("times", [(999, 499), (999, 666, 332), (999, 856, 713, 570, 428, 285, 142)])
def test_each_step_of_ddim_is_two_lines(times):
    """To the next time that is asked, also where the number of steps does not divide 1,000; the last one to no noise."""
    made, start, text = schedule(), noise(1), captions(0.2)
    drawn = sample(Linear(), Plan(steps=len(times), guidance=1), made.config, start, text, NULL)
    x = start
    for time, following in zip(times, (*times[1:], None), strict=True):
        a, s = made.alphas_cumprod[time].sqrt(), (1 - made.alphas_cumprod[time]).sqrt()
        v = Linear()(x, torch.tensor([time]), text)
        clean, eps = a * x - s * v, s * x + a * v
        signal = torch.tensor(1.0) if following is None else made.alphas_cumprod[following]
        x = signal.sqrt() * clean + (1 - signal).sqrt() * eps
    torch.testing.assert_close(drawn, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 10, 25, 50])
def test_it_is_diffusers_ddim_where_steps_divide_the_schedule(steps):
    made, x, text = schedule(), noise(1), captions(0.2)
    theirs = DDIMScheduler.from_config(made.config, timestep_spacing="trailing", set_alpha_to_one=True)
    theirs.set_timesteps(steps)
    drawn = sample(Linear(), Plan(steps=steps, guidance=1), made.config, x, text, NULL)
    for time in theirs.timesteps:
        x = theirs.step(Linear()(x, time.expand(1), text), time, x).prev_sample
    torch.testing.assert_close(drawn, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [(999,), (999, 499), (999, 666, 333), (999, 749, 499, 249)])
def test_renoising_predicts_clean_latents_and_noises_them_again(times, kind):
    """UFOGen's times floor(i / k 999). That each fresh noise is one, is seen from what the network is shown."""
    made, seen = schedule(*kind), []

    class Shown(Linear):
        def forward(self, latents, time, text):
            seen.append((latents, time))
            return super().forward(latents, time, text)

    start, text = torch.randn(400, *SHAPE, generator=torch.Generator().manual_seed(3)), captions(*[0.1] * 400)
    drawn = sample(Shown(), Plan(solver="renoise", steps=len(times)), made.config, start, text, NULL)
    assert [time.unique().tolist() for _, time in seen] == [[time] for time in times]
    assert torch.equal(seen[0][0], start)
    fresh = [start]
    for (shown, time), following in zip(seen, [*seen[1:], None], strict=True):
        a, s = made.alphas_cumprod[time[0]].sqrt(), (1 - made.alphas_cumprod[time[0]]).sqrt()
        output = Linear()(shown, time, text)
        clean = (shown - s * output) / a if kind[0] == "epsilon" else a * shown - s * output
        if following is None:
            torch.testing.assert_close(drawn, clean, atol=1e-5, rtol=1e-4)  # no noise at the end
            break
        a, s = made.alphas_cumprod[following[1][0]].sqrt(), (1 - made.alphas_cumprod[following[1][0]]).sqrt()
        fresh.append((following[0] - a * clean) / s)
    numbers = torch.stack([noise.flatten() for noise in fresh])
    assert numbers.mean(1).abs().max() < 5 / 12_800**0.5 and (numbers.std(1) - 1).abs().max() < 5 / 25_600**0.5
    correlation = torch.corrcoef(numbers).reshape(len(fresh), len(fresh))
    assert (correlation - torch.eye(len(fresh))).abs().max() < 5 / 12_800**0.5


# --- guidance --------------------------------------------------------------------------------------------------------


def test_guidance_of_one_asks_only_for_the_caption():
    made = schedule()
    network = Gaussian(made, 0.5)
    text, nonsense = captions(1.0, 2.0), captions(float("nan"))
    drawn = sample(network, Plan(steps=3, guidance=1), made.config, noise(2), text, nonsense)
    assert drawn.isfinite().all() and [rows for rows, _ in network.calls] == [2, 2, 2]
    assert [times[0] for _, times in network.calls] == [999, 666, 332]  # trailing: from the last training step


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_moves_from_the_empty_caption_through_the_caption(guidance):
    """Point data: the guided prediction is that of the point null + w (caption - null)."""
    made = schedule()
    network = Gaussian(made, 0.0)
    plan = Plan(steps=4, guidance=guidance)
    drawn = sample(network, plan, made.config, noise(2), captions(1.0, -2.0), captions(0.5))
    expected = torch.tensor([0.5 + guidance * 0.5, 0.5 - guidance * 2.5]).view(2, 1, 1, 1).expand(2, *SHAPE)
    torch.testing.assert_close(drawn, expected, atol=2e-3, rtol=0)
    assert [rows for rows, _ in network.calls] == [4] * 4  # both branches in one call


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "renoise"])
def test_noise_is_the_only_randomness_and_rows_are_independent(solver):
    made, text = schedule(), captions(1.0, 2.0, 3.0)
    plan = Plan(solver=solver, steps=4)
    first, again = (sample(Linear(), plan, made.config, noise(3), text, NULL) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sample(Linear(), plan, made.config, noise(3, seed=1), text, NULL))
    alone = sample(Linear(), plan, made.config, noise(3)[1:2], captions(2.0), NULL)
    torch.testing.assert_close(alone[0], first[1])


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_plan_counts_its_cost():
    assert Plan(steps=25, guidance=3).calls == 50
    assert Plan(steps=25, guidance=1).calls == 25
    assert Plan(steps=1, guidance=1).calls == 1


def test_one_step_plans_have_their_own_defaults():
    assert Plan(solver="one_step") == Plan(solver="one_step", steps=1, guidance=1)
    assert Plan(solver="renoise", steps=4).guidance == 1 and Plan(solver="one_step", guidance=2).calls == 2
    assert Plan(solver="one_step").calls == 1 and Plan(solver="renoise", steps=4).calls == 4
    with pytest.raises(ValueError, match="solver one_step has 1 step, got 4; several are solver renoise"):
        Plan(solver="one_step", steps=4)


def test_a_plan_is_changed_from_the_command_line():
    assert Plan(steps=10).changed(guidance=2.0) == Plan(steps=10, guidance=2)
    assert Plan(solver="one_step").changed() == Plan(solver="one_step")
    assert Plan(solver="one_step", guidance=2).changed(steps=4) == Plan(solver="renoise", steps=4, guidance=2)


def test_the_cost_is_what_is_really_called():
    made = schedule()
    for plan in (
        Plan(solver="one_step"),
        Plan(solver="renoise", steps=4, guidance=2),
        Plan(steps=5, guidance=2.5),
        Plan(solver="dpm++", steps=6, guidance=1),
        Plan(steps=3, guidance=0),
    ):
        network = Gaussian(made, 0.5)
        sample(network, plan, made.config, noise(1), captions(1.0), NULL)
        assert sum(rows for rows, _ in network.calls) == plan.calls


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1001}, {"guidance": -1}, {"solver": "euler"}, {"step": 3}])
def test_impossible_plans_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Plan(**options)


@pytest.mark.parametrize("solver", ["ddim", "renoise"])
def test_a_plan_asks_about_as_many_times_as_it_has_steps(solver):
    """Also where rounding errors would add one below zero: 61, 103 and 60 other numbers of steps."""
    for steps in range(1, 1001):
        asked = solvers.times(Plan(solver=solver, steps=steps), 1000)
        assert len(asked) == steps and asked[0] == 999 and asked[-1] >= 0
        assert all(one > other for one, other in pairwise(asked))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidance": 1e30}, "guidance: .* less than or equal to 1000, got 1e\\+30"),
        ({"guidance": math.inf}, "guidance: .*, got inf"),
        ({"guidance": math.nan}, "guidance: .*, got nan"),
        ({"guidance": -1.0}, "guidance: .* greater than or equal to 0, got -1.0"),
        ({"steps": 0}, "steps: .* greater than or equal to 1, got 0"),
        ({"steps": 10**9}, "steps: .* less than or equal to 1000"),
    ],
)
def test_what_no_plan_can_have_is_one_line(change, words):
    with pytest.raises(InputError, match=words) as caught:
        Plan().changed(**change)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError):  # nor a study file
        Plan(**change)
