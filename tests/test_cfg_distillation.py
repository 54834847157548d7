"""Step distillation with guidance against algebra, the solvers that draw, the loss by hand, and on the 2-D bench."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from plane import NOBODY, quality, teacher, trained
from test_objectives import SHAPE, Denoiser, Knows, batch_of
from test_training import (
    on_the_cpu,  # noqa: F401 (fixtures)
)
from torch import nn

from nas.diffusion import schedule, solvers
from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.objectives import cfg_distillation

PREDICTIONS = ["v", "epsilon"]


def denoiser(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser()


def made(generator=0, **options):
    settings = cfg_distillation.Settings(**options)
    return cfg_distillation.Objective(denoiser(generator), denoiser(0).requires_grad_(False), settings)


def column(values):
    return values.view(-1, 1, 1, 1)


def levels(objective, time):
    """a and s, of which those of the clean end are 1 and 0."""
    clean = column(time) < 0
    alpha = column(objective.schedule.alphas_cumprod[time.clamp(min=0)])
    return torch.where(clean, 1.0, alpha.sqrt()), torch.where(clean, 0.0, (1 - alpha).sqrt())


def clean_and_noise(objective, noisy, time, output):
    a, s = levels(objective, time)
    if objective.settings.prediction == "epsilon":
        return (noisy - s * output) / a, output
    return a * noisy - s * output, s * noisy + a * output


def guided(network, noisy, time, batch, scale):
    """w cond - (w - 1) null, one after the other."""
    null = Text(*(part.expand(len(noisy), *part.shape[1:]) for part in batch.null))
    return scale * network(noisy, time, batch.text) - (scale - 1) * network(noisy, time, null)


def aimed(objective, noisy, times, batch, scale):
    """x* of two steps of the teacher."""
    landed = noisy
    for here, there in zip(times[:-1], times[1:], strict=True):
        output = guided(objective.teacher, landed, here, batch, scale)
        clean, noise = clean_and_noise(objective, landed, here, output)
        a, s = levels(objective, there)
        landed = a * clean + s * noise
    (a, s), (a_end, s_end) = levels(objective, times[0]), levels(objective, times[-1])
    return (landed - s_end / s * noisy) / (a_end - s_end / s * a)


GRID = torch.tensor([999, 937, 874, 811, 749, 687, 624, 561, 499, 437, 374, 311, 249, 187, 124, 61, -1])  # 16 steps


def drawn(batch):
    """The random numbers of a loss, in the order it draws them: times of 8 steps, noise, and w's two."""
    index = torch.randint(8, (len(batch.latents),), generator=batch.generator)
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    chance, where = torch.rand(2, generator=batch.generator).tolist()
    return (GRID[2 * index], GRID[2 * index + 1], GRID[2 * index + 2]), noise, chance, where


# --- the target ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 48, 500])
def test_the_target_takes_the_student_where_the_teacher_went(steps):
    """In float64: v* = (a z - x*) / s, and z'' = a'' x* + s'' (s z + a v*), to the last digits."""
    alphas = torch.cat([schedule.noise_schedule(schedule.Settings()).alphas_cumprod.double(), torch.ones(1).double()])
    here, _, there = cfg_distillation.grid(steps, 1000).unbind(1)
    noisy, landed = torch.randn(2, steps, *SHAPE, dtype=torch.float64)
    (a, s), (a_end, s_end) = ((column(f).sqrt(), column(1 - f).sqrt()) for f in (alphas[here], alphas[there]))
    target = cfg_distillation.aim(noisy, landed, (a, s), (a_end, s_end))
    v = (a * noisy - target) / s
    arrived = a_end * (a * noisy - s * v) + s_end * (s * noisy + a * v)
    torch.testing.assert_close(arrived, landed, atol=1e-12, rtol=1e-12)
    assert torch.equal(target[-1], landed[-1])  # the clean end: x* = z''


class Ideal(nn.Module):
    """A student whose prediction is the one that the target x* means."""

    def __init__(self, objective, batch, scale):
        super().__init__()
        self.objective, self.batch, self.scale = objective, batch, scale

    def forward(self, latents, time, text):
        grid = cfg_distillation.grid(self.objective.settings.student_sample_steps, 1000)
        ways = tuple(one.expand(len(latents)) for one in grid[grid[:, 0] == time[0]].flatten())
        target = self.objective._target(latents, ways, self.scale, self.batch)
        a, s = levels(self.objective, time)
        return (a * latents - target) / s if self.objective.settings.prediction == "v" else (latents - a * target) / s


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 8])
def test_who_meets_the_target_draws_in_n_steps_what_the_teacher_draws_in_2n(steps, scale, prediction):
    """By the solvers that draw, in diffusers' arithmetic, from pure noise to the clean end; the guidance is in the student."""
    objective, batch = made(student_sample_steps=steps, prediction=prediction), batch_of()
    drawn = [
        solvers.sample(network, plan, objective.schedule_config, batch.start.clone(), batch.text, batch.null)
        for network, plan in (
            (Ideal(objective, batch, scale), Plan(steps=steps, guidance=1)),
            (objective.teacher, Plan(steps=2 * steps, guidance=scale)),
        )
    ]
    size = drawn[1].abs().max()
    torch.testing.assert_close(drawn[0] / size, drawn[1] / size, atol=1e-5, rtol=0)


def test_one_step_of_the_solver_lands_on_the_teachers_point():
    """To 1e-6 of the largest number, in float32, at every time of the grid."""
    objective, batch = made(), batch_of()
    solver = solvers._solver("ddim", objective.schedule_config)
    solver.set_timesteps(timesteps=solvers.times(Plan(steps=8), 1000))
    for way, step in zip(cfg_distillation.grid(8, 1000), solver.timesteps, strict=True):
        ways = tuple(one.expand(6) for one in way)
        target = objective._target(batch.latents, ways, 3.0, batch)
        a, s = levels(objective, ways[0])
        arrived = solver.step((a * batch.latents - target) / s, step, batch.latents).prev_sample
        landed = batch.latents
        for here, there in ((ways[0], ways[1]), (ways[1], ways[2])):
            output = guided(objective.teacher, landed, here, batch, 3.0)
            landed = schedule.ddim_step(objective.schedule, landed, here, output, there)
        assert (arrived - landed).abs().max() < 1e-6 * landed.abs().max()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_on_a_straight_way_the_target_is_what_the_teacher_says(prediction):
    """A teacher that knows the answer says the same everywhere on the way."""
    objective, batch = made(prediction=prediction), batch_of(8)
    objective.teacher = Knows(batch.latents, objective.schedule, prediction)
    ways = tuple(cfg_distillation.grid(8, 1000).unbind(1))
    noisy = objective.noised(batch.latents, batch.noise(), ways[0])
    torch.testing.assert_close(objective._target(noisy, ways, 1.0, batch), batch.latents, atol=3e-5, rtol=1e-5)


def test_from_a_last_time_of_pure_noise_the_target_is_finite():
    """There a = 0 and s = 1."""
    objective, batch = made(zero_terminal_snr=True), batch_of()
    ways = tuple(torch.tensor(one).expand(6) for one in (999, 937, 874))
    expected = aimed(objective, batch.latents, ways, batch, 3.0)
    torch.testing.assert_close(objective._target(batch.latents, ways, 3.0, batch), expected, rtol=1e-4, atol=1e-4)
    assert expected.isfinite().all() and (objective._weight(ways[0]) == 1).all()


# --- the grid --------------------------------------------------------------------------------------------------------


def test_the_grid_of_eight_steps():
    expected = torch.stack([GRID[0:-1:2], GRID[1::2], GRID[2::2]], 1)
    assert torch.equal(cfg_distillation.grid(8, 1000), expected)


@pytest.mark.parametrize("steps", [1, 3, 7, 48, 112, 333, 500])
def test_the_students_times_are_those_it_is_drawn_with(steps):
    """Also where those of twice as many steps are rounded otherwise: 48, 112."""
    time, middle, end = cfg_distillation.grid(steps, 1000).unbind(1)
    assert time.tolist() == solvers.times(Plan(steps=steps), 1000)
    assert torch.equal(end[:-1], time[1:]) and end[-1] == schedule.CLEAN
    assert (time > middle).all() and (middle > end).all()


def test_times_are_drawn_evenly():
    time, middle, end = made()._times(batch_of(8000))
    counts = torch.stack([(time == one).sum() for one in GRID[0:-1:2]])
    assert counts.sum() == 8000 and (counts - 1000).abs().max() < 5 * 30  # standard deviation of a count: 30
    place = torch.searchsorted(-GRID, -time)
    assert torch.equal(middle, GRID[place + 1]) and torch.equal(end, GRID[place + 2])


# --- the loss by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_the_loss_and_its_gradient_by_hand(prediction, probability, gamma):
    objective = made(1, prediction=prediction, guidance_probability=probability, original_loss_weight=gamma)
    batch, student = batch_of(40), copy.deepcopy(objective.generator)
    times, noise, _, where = drawn(batch_of(40))
    scale = 2 + 12 * where if probability else 1.0
    a, s = levels(objective, times[0])
    noisy = a * batch.latents + s * noise
    with torch.no_grad():
        target = aimed(objective, noisy, times, batch, scale)
    clean, _ = clean_and_noise(objective, noisy, times[0], guided(student, noisy, times[0], batch, scale))
    distilled = (torch.maximum((a / s) ** 2, torch.ones(())) * (clean - target) ** 2).mean()
    answer = noise if prediction == "epsilon" else a * noise - s * batch.latents
    original = (student(noisy, times[0], batch.text) - answer).square().mean()
    expected = distilled + gamma * (distilled / original).detach() * original
    loss = objective.generator_loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        loss, (1 + gamma) * distilled, rtol=1e-4, atol=1e-5
    )  # both are equally large before gamma
    loss.backward()
    expected.backward()
    for mine, theirs in zip(objective.generator.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-3, atol=1e-3 * theirs.grad.abs().max().item())
    logged = {"guided_loss" if probability else "vanilla_loss", "original_loss", "original_loss_scale"}
    assert objective.logged.keys() == logged


class Free(nn.Module):
    """A student whose predictions under the caption and under the null caption are its parameters."""

    def __init__(self, null):
        super().__init__()
        self.null = null.pooled
        values = torch.randn(2, 6, *SHAPE, generator=torch.Generator().manual_seed(7))
        self.without, self.given = (nn.Parameter(value) for value in values)

    def forward(self, latents, time, text):
        repeated = len(latents) // 6
        empty = column((text.pooled == self.null).all(1))
        return torch.where(empty, self.without.repeat(repeated, 1, 1, 1), self.given.repeat(repeated, 1, 1, 1))


def test_guided_gradients_flow_through_both_passes():
    """dL/dv of cond and null: -s times w and 1 - w of the error's slope; the denoising error adds to cond alone."""
    objective, batch = made(guidance_probability=1.0), batch_of()
    objective.generator = Free(batch.null)
    objective.generator_loss(batch).backward()
    times, noise, _, where = drawn(batch_of())
    scale = 2 + 12 * where
    a, s = levels(objective, times[0])
    noisy = a * batch.latents + s * noise
    given, without = objective.generator.given.detach(), objective.generator.without.detach()
    error = a * noisy - s * (without + scale * (given - without)) - aimed(objective, noisy, times, batch, scale)
    weight = ((a / s) ** 2).clamp(min=1)
    slope = 2 * weight * error * -s / error.numel()
    wrong = given - (a * noise - s * batch.latents)
    balance = (weight * error**2).mean() / wrong.square().mean()
    denoising = 0.2 * balance * 2 * wrong / error.numel()
    torch.testing.assert_close(objective.generator.without.grad, (1 - scale) * slope, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(objective.generator.given.grad, scale * slope + denoising, rtol=1e-3, atol=1e-4)


# --- guidance --------------------------------------------------------------------------------------------------------


def test_a_scale_of_one_is_the_vanilla_loss():
    """Exactly; and nearly, through both passes, with a scale of nearly one."""
    vanilla, one, nearly = (
        made(1, **options).generator_loss(batch_of())
        for options in (
            {"guidance_probability": 0},
            {"guidance_probability": 1, "guidance_range": (1, 1)},
            {"guidance_probability": 1, "guidance_range": (1.000001, 1.000001)},
        )
    )
    assert torch.equal(vanilla, one)
    torch.testing.assert_close(nearly, vanilla, rtol=1e-4, atol=0)


def test_the_asked_share_of_updates_is_guided_by_uniform_scales():
    objective, batch = made(), batch_of()
    scales = torch.tensor([objective._scale(batch) for _ in range(10_000)])
    guided = scales[scales != 1]
    assert abs(len(guided) - 1000) < 5 * math.sqrt(900)
    assert guided.min() >= 2 and guided.max() <= 14
    assert (guided.mean() - 8).abs() < 5 * 12 / math.sqrt(12 * 1000)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"guidance_probability": 0}, 5),
        ({}, 5.5),
        ({"guidance_probability": 1}, 10),
        ({"guidance_probability": 1, "guidance_range": (1, 1)}, 5),
    ],
)
def test_passes_are_those_that_are_made(options, passes):
    objective, rows = made(**options), {"generator": 0, "teacher": 0}
    assert objective.passes == pytest.approx(passes)
    for name in rows:
        counted = lambda module, inputs, name=name: rows.update({name: rows[name] + len(inputs[0]) // 6})  # noqa: E731
        getattr(objective, name).register_forward_pre_hook(counted)
    if passes in (5, 10):
        objective.generator_loss(batch_of())
        assert 3 * rows["generator"] + rows["teacher"] == passes  # the student's backward pass costs two


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_no_teacher_is_one_line():
    with pytest.raises(InputError, match="cfg_distillation needs a teacher"):
        cfg_distillation.Objective(denoiser(0), None, cfg_distillation.Settings())


@pytest.mark.parametrize(
    "options",
    [
        {"student_sample_steps": 0},
        {"student_sample_steps": 501},  # the teacher's twice as many are more than there are times
        {"guidance_probability": 1.1},
        {"guidance_range": (2.0,)},
        {"guidance_range": (-1, 2)},
        {"guidance_range": (2, float("inf"))},
        {"original_loss_weight": -0.1},
        {"gamma": 0.2},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        cfg_distillation.Settings(**options)


def test_a_descending_range_is_refused_in_words():
    words = "guidance_range\n.*expected the lowest scale before the highest, got 14 before 2"
    with pytest.raises(ValueError, match=words):
        cfg_distillation.Settings(guidance_range=(14, 2))


# --- in 2-D ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane_teacher():
    return teacher()


PLAN = schedule.noise_schedule(schedule.Settings(prediction="epsilon"))


def halved(teacher, student, steps, updates):
    """A student of so many steps, from half as many as the teacher's. One caption is all there is: guidance does nothing."""
    settings = cfg_distillation.Settings(prediction="epsilon", student_sample_steps=steps, guidance_probability=0)
    student = copy.deepcopy(student).requires_grad_(True)
    return trained(cfg_distillation.Objective(student, teacher, settings), updates).requires_grad_(False)


def apart(one, steps, other, many):
    """Mean squared difference of what two networks draw from the same noise."""
    noise = torch.randn(4000, 2, 1, 1, generator=torch.Generator().manual_seed(99))
    drawn = (
        solvers.sample(network, Plan(steps=count, guidance=1), PLAN.config, noise, NOBODY, NOBODY)
        for network, count in ((one, steps), (other, many))
    )
    return F.mse_loss(*drawn).item()


def test_in_2d_eight_steps_are_soon_nearly_sixteen(plane_teacher):
    """Measured: from 0.0050 to 0.0010, and from 0.77 good points to 0.81; the teacher's 16 steps have 0.85."""
    student = halved(plane_teacher, plane_teacher, 8, 300)
    before = apart(plane_teacher, 8, plane_teacher, 16)
    assert apart(student, 8, plane_teacher, 16) < min(0.002, before / 2)
    good, modes = quality(student, 8, "ddim")
    assert good > quality(plane_teacher, 8, "ddim")[0] + 0.02 and modes == 8


@pytest.mark.slow
def test_in_2d_steps_are_halved_twice():
    """Measured, after 3,000 updates each: 32 to 16 steps 0.944 and 0.00021 (undistilled 0.909 and 0.0025), the teacher's 32
    have 0.953; 16 to 8 steps 0.931 and 0.00021 to its teacher, 0.00072 to the first (undistilled 0.790 and 0.0073)."""
    first = teacher(6000)
    second = halved(first, first, 16, 3000)
    assert apart(second, 16, first, 32) <= 1e-3
    assert quality(second, 16, "ddim")[0] >= quality(first, 32, "ddim")[0] - 0.02
    third = halved(second, second, 8, 3000)
    assert apart(third, 8, second, 16) <= 2e-3
    good, modes = quality(third, 8, "ddim")
    assert good >= 0.9 and modes == 8
