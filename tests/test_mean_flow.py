"""MeanFlow against closed forms of a Gaussian and a point, formulas, and the 2-D bench of `plane`."""

from dataclasses import replace

import plane
import pytest
import torch
from test_flow import Normal, column, levels
from test_objectives import SHAPE, Denoiser, batch_of
from test_training import (
    on_the_cpu,  # noqa: F401 (fixtures)
)
from test_ufogen import OF_KNOWN, SMALL, finite
from torch import nn

from nas import menu
from nas.diffusion.plan import Plan
from nas.diffusion.solvers import sample
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, mean_flow

BOTH = pytest.mark.parametrize("derivative", ["difference", "jvp"])
NOBODY = Text(torch.zeros(1, 1, 1), torch.zeros(1, 1))


def made(generator=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = generator or Denoiser()
    return mean_flow.Objective(network, None, mean_flow.Settings(**options))


class Flow(nn.Module):
    """Both velocities of data from N(m, d^2): on a path the standardised z stays the same, and E[x_0 | z] is linear."""

    def __init__(self, schedule, mean=0.3, deviation=0.5):
        super().__init__()
        self.schedule, self.mean, self.deviation = schedule, mean, deviation
        self.off = nn.Parameter(torch.zeros(()))  # by how much s_t the end of a path is wrong
        self.now = Normal(schedule, mean, deviation)

    def forward(self, latents, time, text):
        instantaneous = time >= 1000
        time = torch.where(instantaneous, time - 1000, time)
        a, s = levels(self.schedule, time)
        standard = (latents - a * self.mean) / ((a * self.deviation).square() + s.square()).sqrt()
        end = self.mean + self.deviation * standard + self.off * s
        whole = (latents - a * end) / s if self.epsilon else (a * latents - end) / s
        return torch.where(column(instantaneous), self.now(latents, time, text), whole)

    @property
    def epsilon(self):
        return self.schedule.config["prediction_type"] == "epsilon"


def knowing(**options):
    """An objective whose network knows the flow, its m and its d."""
    objective = made(**options)
    objective.generator = Flow(objective.schedule)
    return objective


def gaussian(count, seed=0, mean=0.3, deviation=0.5):
    generator = torch.Generator().manual_seed(seed)
    latents = mean + deviation * torch.randn(count, *SHAPE, generator=generator)
    text = Text(torch.zeros(count, 1, 1), torch.zeros(count, 1))
    return LatentBatch(latents, text, NOBODY, generator)


def marginal(z, t, m=0.3, d=0.5):
    """E[e - x_0 | z_t], from the covariances of three normal variables."""
    variance = ((1 - t) * d).square() + t.square()
    return -m + (t - (1 - t) * d**2) / variance * (z - (1 - t) * m)


# --- two ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_noise_less_its_average_velocity_is_what_one_step_draws(prediction):
    """e - u(e, 0, 1) = x^ at the last time."""
    objective, batch = made(prediction=prediction), batch_of(16)
    with torch.no_grad():
        one = torch.ones(16)
        found = batch.start - objective._velocity(batch.start, one, one.bool(), batch.text)
    plan = Plan(solver="one_step")
    drawn = sample(objective.generator, plan, objective.schedule_config, batch.start, batch.text, batch.null)
    torch.testing.assert_close(found, drawn, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_network_that_knows_knows_both_velocities(prediction):
    objective = knowing(prediction=prediction)
    t, z = 0.04 + 0.88 * torch.rand(200), torch.randn(200, *SHAPE)
    m, d, wide = 0.3, 0.5, column(t)
    end = m + d * (z - (1 - wide) * m) / (((1 - wide) * d).square() + wide.square()).sqrt()
    whole = torch.rand(200) < 0.5
    expected = torch.where(column(whole), (z - end) / wide, marginal(z, wide))
    torch.testing.assert_close(objective._velocity(z, t, whole, None), expected, atol=5e-3, rtol=5e-3)


def test_two_half_ways_make_the_whole():
    """t u(z, 0, t) = (t - r) u(z, r, t) + r u(z_r, 0, r), z_r being the exact point of the path at r."""
    objective = knowing()
    t, z = torch.full((50,), 0.9), torch.randn(50, *SHAPE)
    m, d, r = 0.3, 0.5, t / 2
    radius = [((1 - time) ** 2 * d**2 + time**2) ** 0.5 for time in (0.9, 0.45)]
    later = (1 - 0.45) * m + radius[1] / radius[0] * (z - (1 - 0.9) * m)
    whole = torch.ones(50, dtype=torch.bool)
    ways = (z - later) + 0.45 * objective._velocity(later, r, whole, None)
    torch.testing.assert_close(0.9 * objective._velocity(z, t, whole, None), ways, atol=1e-4, rtol=1e-4)


# --- the identity ----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_exact_average_satisfies_the_identity(derivative, prediction):
    """u = v - t du/dt on a Gaussian's flow, v being the marginal velocity; a wrong u does not."""
    objective, batch = knowing(derivative=derivative, step=0.002, prediction=prediction), gaussian(300)
    t = 0.1 + 0.8 * torch.rand(300, generator=batch.generator)
    z = torch.randn(300, *SHAPE, generator=batch.generator)
    whole = torch.ones(300, dtype=torch.bool)
    target = objective._target(z, t, marginal(z, column(t)), whole, batch)
    found = objective._velocity(z, t, whole, batch.text).detach()
    assert (found - target).abs().mean() < (5e-3 if derivative == "difference" else 1e-3)
    assert (found - marginal(z, column(t))).abs().mean() > 0.1


@BOTH
def test_both_velocities_of_a_single_point_have_no_loss(derivative):
    """Where all data are one point a path is straight, and e - x_0 is the velocity itself."""
    objective = made(derivative=derivative, weight_power=0, instantaneous_share=0.5, time_deviation=0.5)
    objective.generator = Flow(objective.schedule, deviation=0)
    objective.generator_loss(gaussian(200, deviation=0))
    assert objective.logged["velocity_error"] < 1e-4
    objective.generator.off.data += 0.1
    objective.generator_loss(gaussian(200, deviation=0))
    assert objective.logged["velocity_error"] > 1e-2


@BOTH
def test_in_the_mean_the_exact_average_has_no_gradient(derivative):
    """Though v is e - x_0 of one sample. Where the end of the paths is wrong, it has one, back to the right one."""
    gradients = {}
    for off in (0.0, 0.3):
        objective = knowing(derivative=derivative, weight_power=0, instantaneous_share=0, time_deviation=0.7)
        objective.generator.off.data += off
        gradients[off] = []
        for seed in range(20):
            loss = objective.generator_loss(gaussian(250, seed))
            gradients[off].append(torch.autograd.grad(loss, objective.generator.off)[0])
    exact, wrong = (torch.stack(gradients[off]) for off in (0.0, 0.3))
    assert exact.mean().abs() < 4 * exact.std() / 20**0.5
    assert wrong.mean() > 10 * exact.std() / 20**0.5


def test_forward_differentiation_agrees_with_the_difference():
    batch, t = batch_of(100), 0.1 + 0.8 * torch.rand(100)
    z, v = torch.randn(2, 100, *SHAPE)
    slopes = [
        made(derivative=derivative, step=0.001)._derivative(z, t, v, batch.text).detach()
        for derivative in ("difference", "jvp")
    ]
    assert slopes[1].abs().mean() > 0.1
    assert (slopes[0] - slopes[1]).abs().mean() < 0.02 * slopes[1].abs().mean()


# --- the loss --------------------------------------------------------------------------------------------------------


def test_with_r_as_t_it_is_flow_matching():
    """By hand: u = (z - x^) / t, asked 1,000 later."""
    objective, batch = made(instantaneous_share=1, weight_power=0), batch_of(64)
    loss = objective.generator_loss(batch)
    draws = batch_of(64).generator
    t = (torch.randn(64, generator=draws) - 0.4).sigmoid()
    torch.rand(64, generator=draws), torch.rand(64, generator=draws)
    noise = torch.randn(batch.latents.shape, generator=draws)
    wide = column(t)
    z, c = (1 - wide) * batch.latents + wide * noise, (wide.square() + (1 - wide).square()).sqrt()
    a, s = (1 - wide) / c, wide / c
    assert (a > 0.069).all()  # every t has its training time
    signal = objective.schedule.alphas_cumprod.sqrt()
    fine = torch.linspace(0, 999, 999 * 64 + 1)
    a_fine = signal[fine.long()] + (fine % 1) * (signal[(fine.long() + 1).clamp(max=999)] - signal[fine.long()])
    time = fine[(a_fine[None] - a.flatten()[:, None]).abs().argmin(1)]
    clean = a * (z / c) - s * objective.generator(z / c, time + 1000, batch.text)
    expected = ((z - clean) / wide - (noise - batch.latents)).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_adaptive_weight(power):
    """Of one sample: e / (e + c)^p, whose gradient is that of e over the same."""
    plain, weighed = (made(weight_power=p) for p in (0.0, power))
    error, loss = plain.generator_loss(batch_of(1)), weighed.generator_loss(batch_of(1))
    weight = 1 / (error.detach() + 1e-3) ** power
    torch.testing.assert_close(loss, error * weight)
    for objective, value in ((plain, error), (weighed, loss)):
        objective.slope = torch.autograd.grad(value, objective.generator.output.bias)[0]
    torch.testing.assert_close(weighed.slope, plain.slope * weight)
    size = batch_of(1).latents.numel()
    assert weighed.logged["velocity_error"].item() == pytest.approx(error.item() / size, rel=1e-5)


@pytest.mark.parametrize(("w", "k"), [(1.0, 0.0), (3.0, 0.0), (1.0, 0.5), (0.4, 0.6)])
def test_guidance_in_the_target(w, k):
    objective, batch = made(guidance_scale=w, guidance_mixing=k), batch_of(30)
    t, (z, v) = 0.1 + 0.8 * torch.rand(30), torch.randn(2, 30, *SHAPE)
    now = torch.zeros(30, dtype=torch.bool)
    null = Text(batch.null.tokens.repeat(30, 1, 1), batch.null.pooled.repeat(30, 1))
    told, untold = (objective._velocity(z, t, now, text) for text in (batch.text, null))
    found = objective._target(z, t, v, now, batch)
    torch.testing.assert_close(found, w * v + k * told + (1 - w - k) * untold)
    assert not found.requires_grad
    whole = torch.ones(30, dtype=torch.bool)
    slope = objective._derivative(z, t, found, batch.text)  # along the guided v
    torch.testing.assert_close(objective._target(z, t, v, whole, batch), found - column(t) * slope)


def test_only_samples_that_go_the_whole_way_are_differentiated():
    objective, batch = made(), batch_of(8)
    t, (z, v) = 0.1 + 0.8 * torch.rand(8), torch.randn(2, 8, *SHAPE)
    whole = torch.arange(8) % 3 == 0
    target = objective._target(z, t, v, whole, batch)
    assert torch.equal(target[~whole], v[~whole])
    everyone = objective._target(z, t, v, torch.ones(8, dtype=torch.bool), batch)
    torch.testing.assert_close(target[whole], everyone[whole], atol=1e-3, rtol=1e-3)


class Counting(nn.Module):
    """Rows it was asked about, and the times."""

    def __init__(self):
        super().__init__()
        self.inner, self.rows, self.times = Denoiser(), 0, []

    def forward(self, latents, time, text):
        self.rows += len(latents)
        self.times.append(time)
        return self.inner(latents, time, text)


@pytest.mark.parametrize(
    "options", [{}, {"instantaneous_share": 0.25}, {"guidance_scale": 2.0}, {"guidance_mixing": 0.5}]
)
def test_it_costs_what_it_says(options):
    objective, count = made(Counting(), **options), 4000
    objective.generator_loss(batch_of(count))
    assert objective.generator.rows / count + 2 == pytest.approx(objective.passes, abs=0.05)  # and a backward pass, 2
    times = objective.generator.times[-1]
    later = times >= 1000
    assert later.float().mean().item() == pytest.approx(objective.settings.instantaneous_share, abs=0.03)
    assert times.min() >= 0 and times[~later].max() <= 999 and times[later].max() <= 1999


def test_times_are_logit_normal_and_reach_the_last():
    t, whole = made(time_mean=0.5, time_deviation=1.5)._times(batch_of(40_000))
    logit = (t / (1 - t)).log()
    assert logit.mean().item() == pytest.approx(0.5, abs=0.04) and logit.std().item() == pytest.approx(1.5, abs=0.04)
    assert t.min() >= 0.01 and whole.float().mean().item() == pytest.approx(0.25, abs=0.01)
    t, whole = made(last_time_share=0.3)._times(batch_of(40_000))
    assert (t[whole] == 1).float().mean().item() == pytest.approx(0.3, abs=0.02) and (t[~whole] < 1).all()


def test_the_derivative_is_in_float32_whatever_the_training():
    for derivative in ("difference", "jvp"):
        objective, batch = made(derivative=derivative), batch_of(20)
        t, (z, v) = 0.1 + 0.8 * torch.rand(20), torch.randn(2, 20, *SHAPE)
        plain = objective._derivative(z, t, v, batch.text)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(objective._derivative(z, t, v, batch.text), plain)


@pytest.mark.parametrize("family", menu.names("backbones"))
def test_every_backbone_learns_it(family):
    """Attention must differentiate forward. The fastest sines of the time turn within a thousandth of t."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SMALL[family].build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    objective = made(network, derivative="jvp", instantaneous_share=0.5)
    generator = torch.Generator().manual_seed(0)
    text = Text(torch.randn(4, 4, 5, generator=generator), torch.randn(4, 5, generator=generator))
    batch = LatentBatch(
        torch.randn(4, 3, 8, 8, generator=generator), text, Text(text.tokens[:1], text.pooled[:1]), generator
    )
    objective.generator_loss(batch).backward()
    assert all(finite(p.grad) for name, p in network.named_parameters() if not name.startswith(OF_KNOWN))
    t, (z, v) = 0.3 + 0.4 * torch.rand(4, generator=generator), torch.randn(2, 4, 3, 8, 8, generator=generator)
    slopes = [
        made(network, derivative=kind, step=5e-5)._derivative(z, t, v, text).detach() for kind in ("difference", "jvp")
    ]
    assert (slopes[0] - slopes[1]).abs().mean() < 0.1 * slopes[1].abs().mean()


@pytest.mark.parametrize(
    "options",
    [{"derivative": "exact"}, {"step": 0}, {"instantaneous_share": 1.1}, {"weight_floor": 0}, {"guidance_mixing": 1}],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        mean_flow.Settings(**options)


# --- in 2-D ----------------------------------------------------------------------------------------------------------


def rows_of_text(seed, update):
    """The bench's batches with a row of text for each point."""
    batch = plane.points(seed, update)
    return replace(batch, text=Text(torch.zeros(256, 1, 1), torch.zeros(256, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"last_time_share": 0.25, "instantaneous_share": 0.5, "weight_power": 0}],
    ids=["default", "unweighted"],
)
def test_in_2d_it_finds_the_modes_in_one_step_without_a_teacher(options):
    """From nothing. Measured in 1, 2, 4 steps: 0.23, 0.40, 0.63 (default); 0.34, 0.47, 0.46 (unweighted). The bench's denoiser
    has 0.04 in one."""
    torch.manual_seed(0)
    objective = mean_flow.Objective(plane.Plane(), None, mean_flow.Settings(**options))
    network = plane.trained(objective, 2500, rate=1e-3, batches=rows_of_text)
    good, modes = plane.quality(network, 1, prediction="v")
    assert good > 0.15 and modes == 8
