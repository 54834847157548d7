"""A 2-D bench for objectives: 8 Gaussians on a circle, small enough to be trained here."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, noise_schedule
from nas.diffusion.solvers import sample
from nas.networks.averages import Average
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch

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
        self.middle, self.middle_width = nn.Identity(), 64
        self.output = nn.Linear(64, 2)

    def forward(self, latents, time, text):
        angles = time.float()[:, None] * self.frequencies
        embedded = F.silu(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.first(latents.flatten(1))
        for given, hidden in zip(self.time, self.hidden, strict=True):
            h = h + hidden(F.silu(h + given(embedded)))
        h = self.middle(h[:, :, None, None]).flatten(1)
        return self.output(h).view(latents.shape)


def points(seed, update=0, count=256):
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(8, (count,), generator=generator)
    latents = MEANS[mode] + DEVIATION * torch.randn(count, 2, generator=generator)
    return LatentBatch(latents.view(count, 2, 1, 1), NOBODY, NOBODY, generator, update)


def exact_noise(schedule, noisy, time):
    """E[e | x_t] of the mixture, in closed form."""
    alpha = schedule.alphas_cumprod[time][:, None]
    x, variance = noisy.flatten(1), alpha * DEVIATION**2 + 1 - alpha
    away = x[:, None] - alpha.sqrt()[:, :, None] * MEANS  # (B, 8, 2)
    weight = (-away.square().sum(2) / (2 * variance)).softmax(1)
    clean = (weight[:, :, None] * (MEANS + (alpha.sqrt() * DEVIATION**2 / variance)[:, :, None] * away)).sum(1)
    return ((x - alpha.sqrt() * clean) / (1 - alpha).sqrt()).view(noisy.shape)


@cache  # of one process
def teacher(updates=2000):
    """A denoiser of the mixture, regressed on the exact answer."""
    schedule = noise_schedule(Settings(prediction="epsilon"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Plane()
    adam = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
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


def trained(objective, updates, rate=5e-4, first=10**6, batches=points, averaged=True):
    """The generator after so many updates of all networks, as the training loop takes them: its moving average, or, where
    learning rates fall to zero over the second half, itself."""
    adams = {"generator": adam_of(objective.generator, rate)}
    for name, critic in objective.critics.items():
        adams[name] = adam_of(critic.network, rate * critic.learning_rate, critic.betas or (0.9, 0.999))
    average = Average(objective.generator, 0.99)
    for update in range(updates):
        for adam in () if averaged else adams.values():
            (group,) = adam.param_groups
            group["lr"] = group.setdefault("first", group["lr"]) * min(1, 2 * (1 - update / updates))
        batch = batches(first + update, update)
        for name, critic in objective.critics.items():
            for _ in range(critic.updates if update % critic.every == 0 else 0):
                take(adams[name], critic.loss(batch))
        take(adams["generator"], objective.generator_loss(batch))
        objective.after_step()
        average.update(objective.generator)
    if averaged:
        average.swap(objective.generator)
    return objective.generator


def adam_of(network, rate, betas=(0.9, 0.999)):
    """Of the parameters that are trained."""
    return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate, betas=betas, fused=True)


def take(adam, loss):
    """One step down."""
    adam.zero_grad()
    loss.backward()
    adam.step()


def quality(network, steps, solver="renoise", prediction="epsilon"):
    """Share of 4,000 draws within 4 deviations of a mode, and the modes that get over a quarter of their share of those."""
    schedule = noise_schedule(Settings(prediction=prediction))
    noise = torch.randn(4000, 2, 1, 1, generator=torch.Generator().manual_seed(99))
    made_points = sample(network, Plan(solver=solver, steps=steps, guidance=1), schedule.config, noise, NOBODY, NOBODY)
    distance, mode = torch.cdist(made_points.flatten(1), MEANS).min(1)
    good = distance < 4 * DEVIATION
    counts = torch.bincount(mode[good], minlength=8)
    return good.float().mean().item(), int((counts > good.sum() / 32).sum())
