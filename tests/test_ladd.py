"""LADD against closed forms, finite differences, a second computation of its losses, and on a UNet and a transformer."""

import copy
import math
from functools import partial

import pytest
import torch
from test_critics import QUICK, assert_identical, encoded, module_of, on_the_cpu, train, weights  # noqa: F401 (a fixture)
from test_objectives import SHAPE, Denoiser, batch_of
from test_ufogen import SMALL, column, denoiser, noised
from torch import nn

from nas import menu
from nas.errors import InputError
from nas.networks.adversary import Head, features
from nas.networks.conditioning import Text
from nas.objectives import ladd


def made(decided=False, **options):
    """LADD whose student is not its teacher any more; `decided`: nor is its head undecided."""
    objective = ladd.Objective(denoiser(1), denoiser(0).requires_grad_(False), ladd.Settings(**options))
    if decided:
        last = objective.discriminator.last
        last.weight.data.normal_(generator=torch.Generator().manual_seed(5))
        last.bias.data.fill_(0.1)
    return objective


# --- the game --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"student_sample_steps": 1}, {"prediction": "epsilon"}])
def test_an_undecided_head_costs_the_margins_and_moves_nothing(options):
    objective = made(distillation="none", **options)
    assert objective.critic_loss(batch_of()).item() == 2
    loss = objective.generator_loss(batch_of())
    assert loss.item() == 0
    loss.backward()
    assert all((parameter.grad == 0).all() for parameter in objective.generator.parameters())


class Says(nn.Module):
    """A head whose logits of fake and then of real features are its parameters."""

    def __init__(self, fake, real):
        super().__init__()
        self.fake, self.real = nn.Parameter(torch.tensor(fake)), nn.Parameter(torch.tensor(real))
        self.next = iter((self.fake, self.real))

    def forward(self, found):
        return next(self.next).expand(len(found), -1)


def test_the_hinge_saturates():
    """A logit beyond the margin on its own side has no gradient, any other its share of 1."""
    objective = made(gradient_penalty=0)
    objective.discriminator = Says([-1.5, -0.5, 3.0, -1.1], [0.5, 1.5, -2.0, 1.1])
    loss = objective.critic_loss(batch_of())
    assert loss.item() == pytest.approx((0 + 0.5 + 4 + 0) / 4 + (0.5 + 0 + 3 + 0) / 4)
    loss.backward()
    torch.testing.assert_close(objective.discriminator.fake.grad, torch.tensor([0, 0.25, 0.25, 0]))
    torch.testing.assert_close(objective.discriminator.real.grad, torch.tensor([-0.25, 0, -0.25, 0]))


def middle_of(network, latents, time, text):
    """The features of test_objectives' network, again."""
    given = network.text(text.tokens.mean(1) + text.pooled) + network.time(time[:, None] / 1000)
    return torch.tanh(network.convolution(latents) + given[:, :, None, None]).flatten(2)


def students(objective, batch):
    """x' again, from the random numbers in the order they are drawn: times, whether at the last time, and noise."""
    time = torch.tensor([999, 749, 499, 249])[torch.randint(4, (len(batch.latents),), generator=batch.generator)]
    last = torch.rand(len(time), generator=batch.generator) < objective.settings.last_time_share
    time = torch.where(last, 999, time)
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    x_s = noised(objective, batch.latents, noise, time)
    alpha, output = column(objective.schedule.alphas_cumprod[time]), objective.generator(x_s, time, batch.text)
    if objective.settings.prediction == "v":
        return alpha.sqrt() * x_s - (1 - alpha).sqrt() * output
    return (x_s - (1 - alpha).sqrt() * output) / alpha.sqrt()


def logits_of(objective, latents, batch):
    """D of clean latents noised to fresh times, again."""
    low, high = objective.settings.feature_times
    time = torch.randint(low, high + 1, (len(latents),), generator=batch.generator)
    noise = torch.randn(latents.shape, generator=batch.generator)
    seen = noised(objective, latents, noise, time)
    return objective.discriminator(middle_of(objective.teacher, seen, time, batch.text))


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@pytest.mark.parametrize("feature_times", [(0, 999), (20, 300)])
def test_losses_by_hand(prediction, feature_times):
    options = {"prediction": prediction, "feature_times": feature_times, "last_time_share": 0.3}
    objective = made(decided=True, distillation="none", gradient_penalty=0, **options)
    batch = batch_of(40)
    x = students(objective, batch)
    fake = logits_of(objective, x, batch)
    torch.testing.assert_close(objective.generator_loss(batch_of(40)), -fake.mean())
    real = logits_of(objective, batch.latents, batch)
    expected = (1 + fake).clamp(min=0).mean() + (1 - real).clamp(min=0).mean()
    torch.testing.assert_close(objective.critic_loss(batch_of(40)), expected)
    assert objective.logged["critic_accuracy_fake"] == (fake.mean(1) < 0).float().mean()
    assert objective.logged["critic_accuracy_real"] == (real.mean(1) > 0).float().mean()


def test_the_games_gradient_comes_through_the_teacher():
    """Of one of the student's weights, against a finite difference."""
    objective = made(decided=True, distillation="none")
    objective.generator_loss(batch_of()).backward()
    weight, values = objective.generator.convolution.weight, []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0, 1, 1] += sign * 1e-2
            values.append(objective.generator_loss(batch_of()).item())
            weight[0, 0, 1, 1] -= sign * 1e-2
    assert weight.grad[0, 0, 1, 1].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2)


# --- the distillation by scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@pytest.mark.parametrize("distillation", ["exponential", "sds"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_gradient_of_the_distillation_in_closed_form(prediction, distillation, scale):
    """2 c (s / a) (eps^ - e') / numel; with `sds`, s^2 (eps^ - e') / numel."""
    objective = made(prediction=prediction, distillation=distillation, guidance_scale=scale)
    x = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(3), requires_grad=True)
    batch = batch_of(40)
    objective._distillation(x, batch).backward()
    batch = batch_of(40)
    time = torch.randint(1000, (40,), generator=batch.generator)
    noise = torch.randn(x.shape, generator=batch.generator)
    alpha = column(objective.schedule.alphas_cumprod[time])
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    x_u = noised(objective, x.detach(), noise, time)

    def predicted_noise(text):
        output = objective.teacher(x_u, time, text)
        return output if prediction == "epsilon" else s * x_u + a * output

    null = Text(*(part.expand(40, *part.shape[1:]) for part in batch.null))
    eps = predicted_noise(null) + scale * (predicted_noise(batch.text) - predicted_noise(null))
    expected = {"exponential": 2 * a * (s / a), "sds": s.square()}[distillation] * (eps - noise) / x.numel()
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-6)


class Exact(nn.Module):
    """E[v | x_t] of data that are one point."""

    def __init__(self, schedule, point):
        super().__init__()
        self.alphas, self.point = schedule.alphas_cumprod, point

    def forward(self, latents, time, text):
        alpha = column(self.alphas[time])
        return (alpha.sqrt() * latents - self.point) / (1 - alpha).sqrt()


def test_a_student_that_makes_what_its_teacher_knows_has_nothing_to_distil():
    objective, point = made(), torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(4))
    objective.teacher = Exact(objective.schedule, point)
    assert objective._distillation(point.expand(20, *SHAPE), batch_of(20)).item() < 1e-8
    away = objective._distillation(point.expand(20, *SHAPE) + 0.5, batch_of(20))
    time = torch.randint(1000, (20,), generator=batch_of(20).generator)
    assert away.item() == pytest.approx(0.25 * objective.schedule.alphas_cumprod[time].sqrt().mean().item(), rel=1e-3)


def test_the_loss_is_the_game_and_the_weighted_distillation():
    objective = made(decided=True, distillation_weight=0.7)
    loss = objective.generator_loss(batch_of()).item()
    game, distilled = objective.logged["gan_loss_gen"].item(), objective.logged["distillation_loss"].item()
    assert loss == pytest.approx(game + 0.7 * distilled) and distilled > 0 and game != 0
    none = made(decided=True, distillation="none")
    assert none.generator_loss(batch_of()).item() == pytest.approx(game)
    assert "distillation_loss" not in none.logged


# --- the penalty -----------------------------------------------------------------------------------------------------


def test_the_penalty_by_finite_differences():
    """Slope of the summed logits along every feature, squared and summed for each picture."""
    objective = made(decided=True, gradient_penalty=3.0).double()
    head, step = objective.discriminator, 1e-4
    found = torch.randn(2, SHAPE[0], 16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    slopes = []
    for index in range(found[0].numel()):
        move = torch.zeros_like(found)
        move.flatten(1)[:, index] = step
        slopes.append((head(found + move) - head(found - move)).sum(1).detach() / (2 * step))
    found.requires_grad_()
    penalty = objective._penalty(head(found), found)
    torch.testing.assert_close(penalty, 3.0 / 2 * torch.stack(slopes).square().sum(0).mean(), rtol=1e-6, atol=0)
    weight = head.first[1].weight
    (gradient,) = torch.autograd.grad(penalty, weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0, 0] += sign * step
        values.append(objective._penalty(head(found), found).item())
        with torch.no_grad():
            weight[0, 0, 0] -= sign * step
    assert gradient[0, 0, 0].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_the_penalty_is_that_of_the_real_features_and_in_the_loss():
    losses = {}
    for weight in (0.0, 2.0):
        objective = made(decided=True, gradient_penalty=weight)
        losses[weight] = objective.critic_loss(batch_of()).item()
    assert "gradient_penalty" not in made(gradient_penalty=0.0).logged
    batch = batch_of()
    logits_of(objective, students(objective, batch), batch)  # fake, whose draws come first
    time = torch.randint(1000, (6,), generator=batch.generator)
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    found = middle_of(objective.teacher, noised(objective, batch.latents, noise, time), time, batch.text)
    found.requires_grad_()
    expected = objective._penalty(objective.discriminator(found), found).item()
    assert expected > 0 and losses[2.0] - losses[0.0] == pytest.approx(expected, rel=1e-4)


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "times"), [(1, [999]), (2, [499, 999]), (4, [249, 499, 749, 999])])
def test_the_students_times_are_those_it_is_drawn_at(steps, times):
    time = made(student_sample_steps=steps)._student_times(batch_of(8000))
    found, counts = time.unique(return_counts=True)
    assert found.tolist() == times
    assert (counts / 8000 - 1 / steps).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 8000)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_asked_share_is_at_the_last_time(share):
    time = made(last_time_share=share)._student_times(batch_of(8000))
    assert ((time == 999).float().mean() - (share + (1 - share) / 4)).abs() < 0.03


class Spy(Denoiser):
    """A network that keeps the times it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, latents, time, text):
        self.told.append(time)
        return super().forward(latents, time, text)


def test_the_adversary_sees_the_times_of_the_setting():
    objective = made(feature_times=(100, 103), distillation="none")
    objective.teacher = Spy().requires_grad_(False)
    for loss in (objective.generator_loss, objective.critic_loss):
        loss(batch_of(400))
    for time in objective.teacher.told:
        found, counts = time.unique(return_counts=True)
        assert found.tolist() == [100, 101, 102, 103] and counts.min() > 60
    assert len(objective.teacher.told) == 3


# --- the features, on every backbone ---------------------------------------------------------------------------------


def network_of(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SMALL[family].build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return network.requires_grad_(False)


def given(size=2):
    generator = torch.Generator().manual_seed(0)
    text = Text(torch.randn(size, 4, 5, generator=generator), torch.randn(size, 5, generator=generator))
    return torch.randn(size, 3, 8, 8, generator=generator), torch.tensor([3, 800]), text


@pytest.mark.parametrize("family", menu.names("backbones"))
def test_features_are_what_the_middle_puts_out_in_a_full_pass(family):
    network, (latents, time, text), kept = network_of(family), given(), []
    latents.requires_grad_()
    handle = network.middle.register_forward_hook(lambda layer, inputs, output: kept.append(output))
    network(latents, time, text)
    handle.remove()
    (output,) = kept
    expected = torch.stack([row.T if row.dim() == 2 else row.reshape(len(row), -1) for row in output])
    found = features(network, latents, time, text)
    assert torch.equal(found, expected) and found.shape[:2] == (2, network.middle_width)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    slopes = [torch.autograd.grad((one * direction).sum(), latents)[0] for one in (found, expected)]
    assert torch.equal(*slopes) and slopes[0].abs().sum() > 0
    assert not network.middle._forward_hooks


def calls_of(network, call):
    """The layers that begin during a call, in order, and the middle once more where it ends."""
    order, handles = [], []
    for name, layer in network.named_modules():
        handles.append(layer.register_forward_pre_hook(lambda layer, inputs, name=name: order.append(name)))
    handles.append(network.middle.register_forward_hook(lambda *_: order.append("end of the middle")))
    call()
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("family", menu.names("backbones"))
def test_what_comes_after_the_middle_is_not_computed(family):
    network = network_of(family)
    whole = calls_of(network, partial(network, *given()))
    upto = whole[: whole.index("end of the middle") + 1]
    assert calls_of(network, partial(features, network, *given())) == upto
    (last,) = [name for name, layer in network.named_modules() if layer is network.output]
    assert last in whole and last not in upto and len(upto) < 0.8 * len(whole)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 3 + 1 + 1 + 2),
        ({"critic_every": 2}, 3 + 1 + 1 + 1),
        ({"guidance_scale": 3.0}, 3 + 1 + 2 + 2),
        ({"distillation": "none", "guidance_scale": 3.0}, 3 + 1 + 2),
    ],
)
def test_passes_are_those_that_are_made(options, passes):
    """Counted by rows of the batch, at both ends of the networks."""
    objective, rows = made(**options), {"student": 0, "teacher": 0, "to the middle": 0}

    def count(name, layer, inputs, output):
        rows[name] += len(output) / 6

    for name, layer in {
        "student": objective.generator.output,
        "teacher": objective.teacher.output,
        "to the middle": objective.teacher.convolution,
    }.items():
        layer.register_forward_hook(partial(count, name))
    objective.generator_loss(batch_of())
    update = rows["student"] * 3 + rows["teacher"] + 0.5 * 2 * (rows["to the middle"] - rows["teacher"])
    rows |= dict.fromkeys(rows, 0)
    objective.critic_loss(batch_of())
    turn = rows["student"] + rows["teacher"] + 0.5 * (rows["to the middle"] - rows["teacher"])
    assert objective.passes == passes == update + turn / objective.settings.critic_every


# --- the head ---------------------------------------------------------------------------------------------------------


def test_the_head_is_made_the_same_whatever_was_drawn_before():
    """A resumed training builds it again."""
    torch.manual_seed(1)
    first = Head(denoiser(0))
    torch.manual_seed(2)
    second = copy.deepcopy(Head(denoiser(0)))
    assert all(torch.equal(one, second.state_dict()[name]) for name, one in first.state_dict().items())


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_no_teacher_is_one_line():
    with pytest.raises(InputError, match="ladd needs a teacher"):
        ladd.Objective(denoiser(0), None, ladd.Settings())


def test_a_backbone_without_a_named_middle_is_one_line():
    with pytest.raises(InputError, match="the backbone Conv2d does not name its layer `middle`"):
        ladd.Objective(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), ladd.Settings())


@pytest.mark.parametrize(
    "options",
    [
        {"distillation": "nfsd"},
        {"student_sample_steps": 0},
        {"student_sample_steps": 1000},
        {"feature_times": (300, 20)},
        {"feature_times": (0, 1000)},
        {"feature_times": (-1, 20)},
        {"gradient_penalty": -1},
        {"guidance_scale": -1},
        {"distillation_weight": -0.1},
        {"last_time_share": 1.5},
        {"critic_every": 0},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ladd.Settings(**options)
