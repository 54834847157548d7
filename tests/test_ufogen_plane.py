"""UFOGen on a 2-D bench: 8 Gaussians on a circle, small enough to be trained here."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, noise_schedule
from nas.diffusion.solvers import sample
from nas.networks import averages
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, ufogen

ANGLES = torch.arange(8) * math.pi / 4
MEANS, DEVIATION = torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.08
NOBODY = Text(torch.zeros(1, 1, 1), torch.zeros(1, 1))


class Plane(nn.Module):
    """Three residual layers of width 64 over points (B, 2, 1, 1) and sines of the time."""

    def __init__(self):
        super().__init__()
        self.frequencies = torch.exp(torch.linspace(0, math.log(1000), 32)) / 1000
        self.first = nn.Linear(2, 64)
        self.time = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.hidden = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.output = nn.Linear(64, 2)

    def forward(self, latents, time, text):
        angles = time.float()[:, None] * self.frequencies
        embedded = F.silu(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.first(latents.flatten(1))
        for given, hidden in zip(self.time, self.hidden, strict=True):
            h = h + hidden(F.silu(h + given(embedded)))
        return self.output(h).view(latents.shape)


def points(seed, update=0, count=256):
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(8, (count,), generator=generator)
    latents = MEANS[mode] + DEVIATION * torch.randn(count, 2, generator=generator)
    return LatentBatch(latents.view(count, 2, 1, 1), NOBODY, generator, update)


def exact_noise(schedule, noisy, time):
    """E[e | x_t] of the mixture, in closed form."""
    alpha = schedule.alphas_cumprod[time][:, None]
    x, variance = noisy.flatten(1), alpha * DEVIATION**2 + 1 - alpha
    away = x[:, None] - alpha.sqrt()[:, :, None] * MEANS  # (B, 8, 2)
    weight = (-away.square().sum(2) / (2 * variance)).softmax(1)
    clean = (weight[:, :, None] * (MEANS + (alpha.sqrt() * DEVIATION**2 / variance)[:, :, None] * away)).sum(1)
    return ((x - alpha.sqrt() * clean) / (1 - alpha).sqrt()).view(noisy.shape)


@pytest.fixture(scope="module")
def plane_teacher():
    """A denoiser of the mixture, regressed on the exact answer; its average over the last third."""
    schedule = noise_schedule(Settings(prediction="epsilon"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Plane()
    adam = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
    updates = 2000
    for update in range(updates):
        adam.param_groups[0]["lr"] = 2e-3 * min(1, 2 * (1 - update / updates))
        batch = points(update)
        time, noise = batch.draw(1000)
        noisy = schedule.add_noise(batch.latents, noise, time)
        loss = F.mse_loss(network(noisy, time, NOBODY), exact_noise(schedule, noisy, time))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.requires_grad_(False)


def distilled(teacher, updates, **options):
    """The generator's moving average after so many updates of UFOGen."""
    settings = ufogen.Settings(prediction="epsilon", critic_every=1, logit_clamp=None, **options)
    objective = ufogen.Objective(copy.deepcopy(teacher).requires_grad_(True), teacher, settings)
    generator, critic = (
        torch.optim.Adam(network.parameters(), lr=5e-4, betas=betas, fused=True)
        for network, betas in ((objective.generator, (0.9, 0.999)), (objective.critic, settings.critic_betas))
    )
    average = averages.Average(objective.generator, 0.99)
    for update in range(updates):
        batch = points(10**6 + update, update)
        for adam, loss_of in ((critic, objective.critic_loss), (generator, objective.generator_loss)):
            loss = loss_of(batch)
            adam.zero_grad()
            loss.backward()
            adam.step()
        objective.after_step()
        average.update(objective.generator)
    objective.generator.load_state_dict(average.weights)
    return objective.generator


def quality(network, steps, solver="renoise"):
    """Share of 4,000 draws within 4 deviations of a mode, and the modes that get over a quarter of their share of those."""
    schedule = noise_schedule(Settings(prediction="epsilon"))
    noise = torch.randn(4000, 2, 1, 1, generator=torch.Generator().manual_seed(99))
    made_points = sample(network, Plan(solver=solver, steps=steps, guidance=1), schedule.config, noise, NOBODY, NOBODY)
    distance, mode = torch.cdist(made_points.flatten(1), MEANS).min(1)
    good = distance < 4 * DEVIATION
    counts = torch.bincount(mode[good], minlength=8)
    return good.float().mean().item(), int((counts > good.sum() / 32).sum())


def test_in_2d_the_teacher_needs_many_steps(plane_teacher):
    assert quality(plane_teacher, 2, "ddim")[0] < 0.05 and quality(plane_teacher, 2)[0] < 0.05
    many, modes = quality(plane_teacher, 16, "ddim")
    assert many > 0.7 and modes == 8


def test_in_2d_two_steps_recover_the_modes(plane_teacher):
    """Measured: 0.67 after 500 updates; 0.007 before."""
    good, modes = quality(distilled(plane_teacher, 500, delta=500), 2)
    assert good > 0.5 and modes == 8


def test_in_2d_the_reconstruction_alone_does_not(plane_teacher, monkeypatch):
    monkeypatch.setattr(ufogen.F, "softplus", lambda logits: 0 * logits)  # no game
    assert quality(distilled(plane_teacher, 200, delta=500), 2)[0] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("reconstruction", ["diffusion", "distill", "ema_distill"])
def test_in_2d_two_steps_are_as_good_as_many(plane_teacher, reconstruction):
    """Measured: 0.89 (diffusion)."""
    good, modes = quality(distilled(plane_teacher, 6000, delta=500, reconstruction=reconstruction), 2)
    assert good >= 0.85 and modes == 8


@pytest.mark.slow
def test_in_2d_one_step_is_enough_for_the_game_on_clean_points(plane_teacher):
    """Delta = T. The penalty keeps modes that are lost without it."""
    options = {"delta": 1000, "gradient_penalty": 0.1, "gradient_penalty_every": 1}
    good, modes = quality(distilled(plane_teacher, 3000, **options), 1)
    assert good >= 0.6 and modes >= 6


@pytest.mark.slow
def test_in_2d_a_smaller_delta_takes_four_steps(plane_teacher):
    """Measured: 0.88."""
    good, modes = quality(distilled(plane_teacher, 6000, delta=250), 4)
    assert good >= 0.85 and modes == 8
