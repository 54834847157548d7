"""UFOGen against formulas, golden values, finite differences, and on a UNet."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_objectives import SHAPE, Denoiser, batch_of
from torch import nn

from nas import menu
from nas.errors import InputError
from nas.networks.backbones import Proxy, dit, mar, unet
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, ufogen

LN2 = math.log(2)
NOBODY = Text(torch.zeros(1), torch.zeros(1))


def denoiser(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser()


def made(decided=False, **options):
    """UFOGen whose generator starts as its teacher; `decided`: the discriminator's last layer is not zero any more."""
    teacher = denoiser(0).requires_grad_(False)
    objective = ufogen.Objective(denoiser(0), teacher, ufogen.Settings(**options))
    if decided:
        objective.critic.output.load_state_dict(denoiser(3).output.state_dict())
    return objective


def at(batch, update):
    return replace(batch, update=update)


def drawn(objective, batch):
    """The random numbers of a loss, in the order it draws them: times, their noise, whether at the last time, and more."""
    time = torch.randint(999, (len(batch.latents),), generator=batch.generator) + 1
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    last = torch.rand(len(time), generator=batch.generator) < objective.settings.last_time_share
    return torch.where(last, 999, time), noise, lambda: torch.randn(batch.latents.shape, generator=batch.generator)


def column(values):
    return values.view(-1, 1, 1, 1)


def noised(objective, clean, noise, time):
    alpha = column(objective.schedule.alphas_cumprod[time])
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


# --- golden values ---------------------------------------------------------------------------------------------------


def test_golden_values_of_the_schedule():
    alphas = ufogen.noise_schedule(ufogen.Settings()).alphas_cumprod.double()
    golden = {0: 0.99915, 249: 0.6754, 399: 0.4261, 499: 0.2777, 749: 0.05662, 979: 0.005913, 999: 0.0046601}
    for time, value in golden.items():
        assert alphas[time] == pytest.approx(value, rel=2e-4)
    for time, value in {249: 2.081, 499: 0.384, 749: 0.0600, 999: 0.00468}.items():
        assert alphas[time] / (1 - alphas[time]) == pytest.approx(value, rel=2e-3)
    assert 1 / alphas[999].sqrt() == pytest.approx(14.649, rel=1e-4)


@pytest.mark.parametrize(
    ("gamma", "values"), [("snr", (2.066, 0.382, 0.0595, 0.00468)), ("posterior", (1.035, 0.234, 0.0353, 0.00254))]
)
def test_golden_values_of_gamma(gamma, values):
    found = made(gamma=gamma)._gamma(torch.tensor([250, 500, 750, 999])).flatten()
    torch.testing.assert_close(found, torch.tensor(values), rtol=3e-3, atol=0)


@pytest.mark.parametrize("options", [{}, {"logit_clamp": None}, {"delta": 1000, "prediction": "epsilon"}])
def test_an_undecided_discriminator_costs_ln_2_and_moves_nothing(options):
    objective = made(reconstruction_weight=0, **options)
    assert objective.critic_loss(batch_of()).item() == pytest.approx(2 * LN2, abs=1e-6)
    loss = objective.generator_loss(batch_of())
    assert loss.item() == pytest.approx(LN2, abs=1e-6)
    loss.backward()
    assert all((parameter.grad == 0).all() for parameter in objective.generator.parameters())


def test_the_discriminator_is_the_teacher_but_for_its_last_layer():
    objective = made()
    teacher, critic = denoiser(0).state_dict(), objective.critic.state_dict()
    assert all((critic[name] == 0).all() for name in ("output.weight", "output.bias"))
    for name in teacher.keys() - {"output.weight", "output.bias"}:
        assert torch.equal(critic[name], teacher[name])
    assert all(parameter.requires_grad for parameter in objective.critic.parameters())


# --- both losses by hand ---------------------------------------------------------------------------------------------


class Sees(nn.Module):
    """A discriminator that keeps what it was shown; its logits are its input."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, latents, time, text):
        self.calls.append((latents, time, text))
        return latents


@pytest.mark.parametrize("clamp", [None, 0.5])
@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@pytest.mark.parametrize("delta", [250, 1000])
def test_losses_by_hand(clamp, prediction, delta):
    """With the textbook's binary cross entropy, and algebra on the noise that was drawn."""
    objective = made(logit_clamp=clamp, prediction=prediction, delta=delta, last_time_share=0.3)
    objective.critic, batch = Sees(), batch_of(40)
    time, noise, more = drawn(objective, batch_of(40))
    u = (time - delta).clamp(min=0)
    x_t = noised(objective, batch.latents, noise, time)
    output = objective.generator(x_t, time, batch.text)
    a, s = (column(f(objective.schedule.alphas_cumprod[time]).sqrt()) for f in (lambda x: x, lambda x: 1 - x))
    x0 = a * x_t - s * output if prediction == "v" else (x_t - s * output) / a

    def entropy(logits, label):  # beyond the margin on its own side a logit counts as the margin
        if clamp is not None:
            logits = logits.clamp(max=clamp) if label else logits.clamp(min=-clamp)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    fake, real = noised(objective, x0, more(), u), noised(objective, batch.latents, more(), u)
    torch.testing.assert_close(objective.critic_loss(batch), entropy(fake, 0.0) + entropy(real, 1.0))
    _, _, more = drawn(objective, batch_of(40))
    fake = noised(objective, x0, more(), u)
    eps = s * x_t + a * output if prediction == "v" else output
    expected = entropy(fake, 1.0) + (eps - noise).square().mean()
    torch.testing.assert_close(objective.generator_loss(batch_of(40)), expected, rtol=1e-4, atol=1e-5)
    for _, told, text in objective.critic.calls:  # the time of its input, and the caption, for real and fake alike
        assert torch.equal(told, u) and torch.equal(text.tokens, batch.text.tokens)


def test_the_clamp_stops_gradients_of_what_is_decided():
    logits = torch.tensor([-3.0, 0.2, 0.6], requires_grad=True)
    F.softplus(-ufogen._at_most(logits, 0.5)).sum().backward()
    assert logits.grad[2] == 0 and (logits.grad[:2] < 0).all()


class Free(nn.Module):
    """A generator whose prediction is its parameter."""

    def __init__(self, count):
        super().__init__()
        self.prediction = nn.Parameter(torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(7)))

    def forward(self, latents, time, text):
        return self.prediction


def test_the_adversarial_gradient_by_the_chain_rule():
    """dL_adv/dx0' = -a_u sigmoid(-l) / numel(l) dl/dx'_u, and x0' = a x_t - s v."""
    objective = made(decided=True, reconstruction_weight=0, logit_clamp=None)
    objective.generator, batch = Free(6), batch_of()
    objective.generator_loss(batch).backward()
    time, noise, more = drawn(objective, batch_of())
    u = (time - 250).clamp(min=0)
    a, s = (column(f(objective.schedule.alphas_cumprod[time]).sqrt()) for f in (lambda x: x, lambda x: 1 - x))
    x0 = a * noised(objective, batch.latents, noise, time) - s * objective.generator.prediction.detach()
    seen = noised(objective, x0, more(), u).requires_grad_()
    logits = objective.critic(seen, u, batch.text)
    (pulled,) = torch.autograd.grad(logits, seen, -torch.sigmoid(-logits) / logits.numel())
    expected = -s * column(objective.schedule.alphas_cumprod[u].sqrt()) * pulled
    torch.testing.assert_close(objective.generator.prediction.grad, expected)
    assert all(parameter.grad is None for parameter in objective.critic.parameters())


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_snr_weight_is_the_error_of_the_noise(prediction):
    objective, batch = made(prediction=prediction), batch_of(50)
    objective.generator_loss(batch)
    time, noise, _ = drawn(objective, batch_of(50))
    x_t = noised(objective, batch.latents, noise, time)
    output = objective.generator(x_t, time, batch.text)
    alpha = column(objective.schedule.alphas_cumprod[time])
    eps = output if prediction == "epsilon" else (1 - alpha).sqrt() * x_t + alpha.sqrt() * output
    torch.testing.assert_close(
        objective.logged["reconstruction_loss"], (eps - noise).square().mean(), rtol=1e-5, atol=0
    )


def test_the_targets_of_the_reconstruction():
    """At first the teacher, its moving average and the generator agree: nothing to reconstruct but the data."""
    losses = {}
    for kind in ("diffusion", "distill", "ema_distill"):
        objective = made(reconstruction=kind)
        objective.generator_loss(batch_of())
        losses[kind] = objective.logged["reconstruction_loss"].item()
    assert losses["diffusion"] > 0.1 and losses["distill"] == losses["ema_distill"] == 0
    assert hasattr(made(reconstruction="distill"), "teacher") and not hasattr(
        made(), "teacher"
    )  # kept only where it is asked


def test_the_target_of_ema_distill_is_the_moving_average():
    objective = made(reconstruction="ema_distill", ema_decay=0.8)
    average = copy.deepcopy(objective.generator)
    for step in range(4):
        with torch.no_grad():
            for mine, theirs in zip(objective.generator.parameters(), average.parameters(), strict=True):
                mine += 0.1 * (step + 1)
                theirs.copy_(0.8 * theirs + 0.2 * mine)
        objective.after_step()
    batch = batch_of()
    objective.generator_loss(batch)
    time, noise, _ = drawn(objective, batch_of())
    x_t = noised(objective, batch.latents, noise, time)
    difference = objective.generator(x_t, time, batch.text) - average(x_t, time, batch.text)
    error = (column(objective.schedule.alphas_cumprod[time]) * difference.square()).mean()  # SNR s^2 = a^2
    torch.testing.assert_close(objective.logged["reconstruction_loss"], error)


class Exact(nn.Module):
    """E[v | x_t] of data from N(0, 0.5^2)."""

    def __init__(self, schedule):
        super().__init__()
        self.alphas = schedule.alphas_cumprod

    def forward(self, latents, time, text):
        alpha = column(self.alphas[time])
        clean = alpha.sqrt() * 0.25 / (alpha * 0.25 + 1 - alpha) * latents
        return (alpha.sqrt() * latents - clean) / (1 - alpha).sqrt()


class Scale(nn.Module):
    """A generator with one parameter, away from every optimum."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.4))

    def forward(self, latents, time, text):
        return self.factor * latents


def test_with_an_exact_teacher_distilling_has_the_gradient_of_the_diffusion_loss():
    """Tower property: E[x0 | x_t] is the teacher. Only the variance differs."""
    gradients = {}
    for kind in ("diffusion", "distill"):
        objective = made(reconstruction=kind)
        objective.generator, objective.critic = Scale(), Sees()
        if kind == "distill":
            objective.teacher = Exact(objective.schedule)
        gradients[kind] = []
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            latents = 0.5 * torch.randn(1000, *SHAPE, generator=generator)
            batch = LatentBatch(latents, NOBODY, NOBODY, generator)
            time, noisy = objective._noised(batch)
            made_clean = objective.clean(objective.generator, noisy, time, batch.text)
            loss = objective._reconstruction(made_clean, noisy, time, batch)
            (gradient,) = torch.autograd.grad(loss, objective.generator.factor)
            gradients[kind].append(gradient)
    paired = torch.stack(gradients["diffusion"]) - torch.stack(gradients["distill"])
    assert abs(paired.mean()) < 4 * paired.std() / math.sqrt(len(paired))
    assert abs(torch.stack(gradients["distill"]).mean()) > 30 * paired.std() / math.sqrt(len(paired))  # it would show


# --- times -----------------------------------------------------------------------------------------------------------


def test_times_leave_out_the_clean_end_and_reach_the_last():
    times = torch.cat([made()._noised(batch_of(4000, seed))[0] for seed in range(10)])
    assert times.min() == 1 and times.max() == 999
    assert (times.float().mean() - 500).abs() < 5 * 999 / math.sqrt(12 * 40_000)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_asked_share_is_at_the_last_time(share):
    time, _ = made(last_time_share=share)._noised(batch_of(4000))
    assert ((time == 999).float().mean() - share).abs() < 0.03


# --- on every backbone -----------------------------------------------------------------------------------------------


SMALL = {  # a network of each family
    "unet": unet.presets()["mobilediffusion"].scaled(
        Proxy(width_divisor=32, latent_channels=3, text_width=5, pooled_width=5)
    ),
    "dit": dit.Config(2, 24, 2, latent_channels=3, text_width=5, skips=True),
    "mar": mar.Config(1, 1, 16, 2, 4, 16, grid=4, latent_channels=3, text_width=5),
}


OF_KNOWN = ("places", "project.")  # layers that a masked autoregressor asks only where tokens are known


def finite(gradient):
    return gradient is not None and gradient.isfinite().all()


@pytest.mark.parametrize("family", menu.names("backbones"))
def test_every_backbone_can_be_a_discriminator_and_be_penalised(family):
    """Attention must differentiate twice."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SMALL[family].build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    settings = ufogen.Settings(gradient_penalty=1.0, gradient_penalty_every=1)
    objective = ufogen.Objective(copy.deepcopy(network), network.requires_grad_(False), settings)
    generator = torch.Generator().manual_seed(0)
    text = Text(torch.randn(2, 4, 5, generator=generator), torch.randn(2, 5, generator=generator))
    batch = LatentBatch(torch.randn(2, 3, 8, 8, generator=generator), text, text, generator)
    assert objective.critic_loss(batch).item() == pytest.approx(2 * LN2, abs=1e-5)
    nn.init.normal_(objective.critic.output.weight, std=0.1, generator=generator)
    objective.critic_loss(batch).backward()
    assert objective.logged["gradient_penalty"] > 0
    assert all(finite(p.grad) for name, p in objective.critic.named_parameters() if not name.startswith(OF_KNOWN))
    attention = [p.grad for name, p in objective.critic.named_parameters() if ".to_q." in name]
    assert attention and all(gradient.abs().sum() > 0 for gradient in attention)


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_no_teacher_is_one_line():
    with pytest.raises(InputError, match="ufogen needs a teacher"):
        ufogen.Objective(denoiser(0), None, ufogen.Settings())


def test_a_backbone_without_a_named_last_layer_is_one_line():
    with pytest.raises(InputError, match="the backbone Conv2d does not name its layer `output`"):
        ufogen.Objective(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), ufogen.Settings())


@pytest.mark.parametrize(
    "options",
    [
        {"reconstruction": "ema"},
        {"delta": 0},
        {"delta": 1001},
        {"logit_clamp": 0},
        {"critic_every": 0},
        {"gradient_penalty": -1},
        {"last_time_share": 1.5},
        {"ema_decay": 1},
        {"gamma": "flat"},
        {"lambda": 1},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ufogen.Settings(**options)
