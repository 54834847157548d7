"""Straight-line flows against closed forms, the drawings of `nas.diffusion.solvers`, and the algebra of errors."""

import numpy as np
import pytest
import torch
from test_objectives import SHAPE, Denoiser, batch_of
from torch import nn

from nas.diffusion import flow
from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, noise_schedule
from nas.diffusion.solvers import sample, times

SCHEDULES = [{"prediction": "v"}, {"prediction": "epsilon"}, {"prediction": "v", "zero_terminal_snr": True}]


def schedule_of(options):
    return noise_schedule(Settings(**options))


def column(values):
    return values.view(-1, 1, 1, 1)


def levels(schedule, time):
    """a and s, (B, 1, 1, 1), of any times between the first and the last, a being linear between two."""
    signal = schedule.alphas_cumprod.sqrt()
    lower = time.detach().long().clamp(0, len(signal) - 2)
    a = signal[lower] + (time - lower) * (signal[lower + 1] - signal[lower])
    return column(a), column((1 - a.square()).sqrt())


class Normal(nn.Module):
    """E[prediction | x_t] of data from N(mean, deviation^2)."""

    def __init__(self, schedule, mean=0.3, deviation=0.5):
        super().__init__()
        self.schedule, self.mean, self.deviation = schedule, mean, deviation

    def forward(self, latents, time, text):
        a, s = levels(self.schedule, time)
        variance = (a * self.deviation).square() + s.square()
        clean = self.mean + a * self.deviation**2 / variance * (latents - a * self.mean)
        if self.schedule.config["prediction_type"] == "epsilon":
            return (latents - a * clean) / s
        return (a * latents - clean) / s


class Answers(nn.Module):
    """Predicts these clean latents whatever it sees; it must invert the noising by itself."""

    def __init__(self, schedule, clean):
        super().__init__()
        self.schedule, self.clean = schedule, clean

    def forward(self, latents, time, text):
        a, s = levels(self.schedule, time)
        if self.schedule.config["prediction_type"] == "epsilon":
            return (latents - a * self.clean) / s
        return (a * latents - self.clean) / s


# --- coordinates -----------------------------------------------------------------------------------------------------


def test_the_ends_of_a_path_are_the_ends_bit_for_bit():
    noise, data = torch.randn(2, 8, *SHAPE)
    assert torch.equal(flow.position(data, noise, torch.zeros(8)), noise)
    assert torch.equal(flow.position(data, noise, torch.ones(8)), data)


@pytest.mark.parametrize("options", SCHEDULES)
def test_the_time_is_the_one_whose_signal_it_is(options):
    """Against numpy's interpolation; at a training time itself, that time."""
    schedule = schedule_of(options)
    signal = schedule.alphas_cumprod.double().sqrt().numpy()
    tau = torch.linspace(0, 1, 2001)
    ratio = tau.double() / (tau.double().square() + (1 - tau.double()).square()).sqrt()
    expected = np.interp(ratio.numpy(), signal[::-1], np.arange(999, -1, -1))
    found = flow.time_of(schedule, tau)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)
    assert (found.diff() <= 0).all() and found[0] == 999 and found[-1] == 0
    at = torch.tensor([0, 1, 250, 500, 998, 999])
    a = torch.from_numpy(signal)[at]
    tau = (a / (a + (1 - a.square()).sqrt())).float()
    torch.testing.assert_close(flow.time_of(schedule, tau), at.float(), atol=0.02, rtol=0)


@pytest.mark.parametrize("options", SCHEDULES)
def test_the_velocity_of_a_gaussian_in_closed_form(options):
    """E[X_1 - X_0 | X_tau] for data from N(m, d^2), from the covariances of three normal variables."""
    schedule, m, d = schedule_of(options), 0.3, 0.5
    tau, where = 0.07 + 0.9 * torch.rand(200), torch.randn(200, *SHAPE)
    share = column(tau)
    covariance = share * d**2 - (1 - share)
    variance = (share * d).square() + (1 - share).square()
    expected = m + covariance / variance * (where - share * m)
    found = flow.velocity(Normal(schedule), schedule, where, tau, None)
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=3e-3)  # of a float32 time, near tau = 1


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_velocitys_error_is_that_of_the_prediction_over_c_or_tau(prediction):
    """So that nothing blows up towards tau = 1. Two networks that differ by a known amount everywhere."""
    schedule, network, batch = schedule_of({"prediction": prediction}), Denoiser(), batch_of(300)
    tau = torch.cat([0.07 + 0.9 * torch.rand(200), 1 - torch.logspace(-1.5, -3, 100)])
    error = torch.randn(300, *SHAPE)
    where = flow.position(batch.latents, batch.start, tau)
    one = flow.velocity(network, schedule, where, tau, batch.text)
    other = flow.velocity(lambda *given: network(*given) + error, schedule, where, tau, batch.text)
    c = (tau.square() + (1 - tau).square()).sqrt()
    torch.testing.assert_close(one - other, error / column(c if prediction == "v" else tau), atol=2e-3, rtol=1e-3)


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SCHEDULES)
def test_one_euler_step_from_noise_is_what_one_step_draws(options):
    schedule, network, batch = schedule_of(options), Denoiser(), batch_of(16)
    with torch.no_grad():
        found = flow.euler(network, schedule, batch.start, batch.text, 1)
    drawn = sample(network, Plan(solver="one_step"), schedule.config, batch.start, batch.text, batch.null)
    torch.testing.assert_close(found, drawn, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("options", SCHEDULES[:2])  # for zero terminal signal the solver takes a small number
def test_ddim_is_euler_between_the_same_levels(options):
    """From the last training time, whose X_tau is c times the noise; the last step goes to tau = 1."""
    schedule, network, batch = schedule_of(options), Denoiser(), batch_of(16)
    plan = Plan(solver="ddim", steps=5, guidance=1)
    a = schedule.alphas_cumprod[times(plan, 1000)].sqrt()
    tau = [*(a / (a + (1 - a.square()).sqrt())), torch.tensor(1.0)]
    where = batch.start * (tau[0].square() + (1 - tau[0]).square()).sqrt()
    with torch.no_grad():
        for now, then in zip(tau, tau[1:], strict=False):
            where = where + (then - now) * flow.velocity(network, schedule, where, now.expand(16), batch.text)
    drawn = sample(network, plan, schedule.config, batch.start, batch.text, batch.null)
    torch.testing.assert_close(where, drawn, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("options", SCHEDULES)
def test_on_a_straight_path_one_step_is_as_good_as_many(options):
    """An exact velocity, which is data - noise everywhere on the path."""
    schedule, batch = schedule_of(options), batch_of(8)
    network = Answers(schedule, batch.latents)
    for steps in (1, 2, 7, 25):
        drawn = flow.euler(network, schedule, batch.start, batch.text, steps)
        torch.testing.assert_close(drawn, batch.latents, atol=1e-5 if steps < 16 else 1e-4, rtol=0)
    if options.get("zero_terminal_snr"):  # elsewhere x^ is formed with another a below tau = 0.064
        assert flow.straightness(network, schedule, batch.start, batch.text, 25) < 1e-6


def test_the_straightness_of_a_gaussians_flow():
    """Its velocity is linear in X_tau; a plain sum over Euler's steps, in float64."""
    schedule, d, steps = schedule_of(SCHEDULES[2]), 0.25, 30
    noise = torch.randn(3000, *SHAPE, generator=torch.Generator().manual_seed(0))
    radius, slopes = 1.0, []
    for tau in np.arange(steps) / steps:
        slopes.append(radius * (tau * d**2 - (1 - tau)) / ((tau * d) ** 2 + (1 - tau) ** 2))
        radius += slopes[-1] / steps
    expected = np.square(radius - 1 - np.array(slopes)).mean() * noise.square().flatten(1).sum(1).mean().item()
    found = flow.straightness(Normal(schedule, 0, d), schedule, noise, None, steps)
    assert expected > 1 and found.item() == pytest.approx(expected, rel=0.02)
    assert flow.straightness(Normal(schedule, 0, 0), schedule, noise, None, 20).item() < 1e-5
