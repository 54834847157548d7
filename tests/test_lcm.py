"""Latent consistency distillation against closed forms, diffusers' constants, the loss by hand, and on the 2-D bench."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from plane import quality, teacher, trained
from test_objectives import SHAPE, Denoiser, batch_of
from test_training import (
    on_the_cpu,  # noqa: F401 (fixtures)
)
from torch import nn

from nas.diffusion import schedule
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, lcm

NOBODY = Text(torch.zeros(1), torch.zeros(1))
DEVIATION = 0.5  # of the Gaussian data
PREDICTIONS = ["v", "epsilon"]


def denoiser(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser()


def made(generator=0, **options):
    return lcm.Objective(denoiser(generator), denoiser(0).requires_grad_(False), lcm.Settings(**options))


def column(values):
    return values.view(-1, 1, 1, 1)


def signal(objective, time):
    alpha = column(objective.schedule.alphas_cumprod[time])
    return alpha.sqrt(), (1 - alpha).sqrt()


def drawn(batch, steps=50):
    """The random numbers of a loss, in the order it draws them: times, their neighbours, noise."""
    index = torch.randint(1, steps + 1, (len(batch.latents),), generator=batch.generator)
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    step = 1000 // steps
    return step * index - 1, (step * (index - 1) - 1).clamp(min=0), noise


# --- the boundary ----------------------------------------------------------------------------------------------------


def test_at_time_zero_the_function_is_the_identity():
    objective, batch = made(), batch_of()
    time = torch.zeros(6, dtype=torch.long)
    assert torch.equal(objective._consistency(objective.generator, batch.latents, time, batch.text), batch.latents)


def test_the_boundarys_weights_are_diffusers():
    scheduler = LCMScheduler()
    time = torch.arange(1000)
    skip, out = lcm.boundary(time)
    expected = [scheduler.get_scalings_for_boundary_condition_discrete(int(t)) for t in time]
    torch.testing.assert_close(skip.flatten(), torch.tensor([pair[0] for pair in expected], dtype=torch.float32))
    torch.testing.assert_close(out.flatten(), torch.tensor([pair[1] for pair in expected], dtype=torch.float32))
    assert skip[19].item() == pytest.approx(6.9e-6, rel=0.01)  # so that only time 0 is held


# --- the teacher's step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_who_knows_the_answer_steps_along_its_own_noise(prediction):
    """The DDIM step of the true x0 and e is x_u with the same e; at the clean end it is x0."""
    plan, batch = schedule.noise_schedule(schedule.Settings(prediction=prediction)), batch_of()
    noise = torch.randn(batch.latents.shape)
    time, later = torch.tensor([999, 999, 500, 300, 19, 1]), torch.tensor([979, 0, 480, schedule.CLEAN, 0, 0])
    noisy, answer = schedule.corrupted(plan, batch.latents, time, noise)
    found = schedule.ddim_step(plan, noisy, time, answer, later)
    expected = torch.where(column(later) == schedule.CLEAN, batch.latents, plan.add_noise(batch.latents, noise, later))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.noise_in(plan, noisy, time, answer), noise)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_step_is_diffusers(prediction):
    plan = schedule.noise_schedule(schedule.Settings(prediction=prediction))
    ddim = DDIMScheduler.from_config(plan.config, timestep_spacing="trailing", set_alpha_to_one=False)
    ddim.set_timesteps(50)
    assert ddim.timesteps.tolist() == list(range(999, 0, -20))
    noisy, output = torch.randn(2, 4, *SHAPE)
    for step in ddim.timesteps:  # the scheduler steps from 19 to the first abar, as ours does to time 0
        time = step.expand(4)
        found = schedule.ddim_step(plan, noisy, time, output, (time - 20).clamp(min=0))
        torch.testing.assert_close(found, ddim.step(output, step, noisy).prev_sample, atol=1e-5, rtol=1e-5)


# --- closed forms on Gaussian data -----------------------------------------------------------------------------------


class Gaussian(nn.Module):
    """A denoiser of data from N(0, DEVIATION^2), by what it says the clean latents are at each time."""

    def __init__(self, plan):
        super().__init__()
        self.alphas = plan.alphas_cumprod.double()

    def deviation(self, time):
        """Of x_t; on the probability flow x_t / deviation(t) stays what it is."""
        alpha = column(self.alphas[time])
        return (alpha * DEVIATION**2 + 1 - alpha).sqrt()

    def forward(self, latents, time, text):
        alpha, noisy = column(self.alphas[time]), latents.double()
        return (alpha.sqrt() * noisy - self.clean(noisy, time, alpha)) / (1 - alpha).sqrt()


class Posterior(Gaussian):
    """E[x0 | x_t]: the flow's velocity is exact, a DDIM step of finite length is not."""

    def clean(self, noisy, time, alpha):
        return alpha.sqrt() * DEVIATION**2 / self.deviation(time).square() * noisy


class Perfect(Gaussian):
    """A teacher whose DDIM step to the grid's next time ends on the flow exactly."""

    def clean(self, noisy, time, alpha):
        later = (time - 20).clamp(min=0)
        landed, alpha_later = noisy * self.deviation(later) / self.deviation(time), column(self.alphas[later])
        ratio = ((1 - alpha_later) / (1 - alpha)).sqrt()
        return (landed - ratio * noisy) / (alpha_later.sqrt() - ratio * alpha.sqrt())


class Consistent(Gaussian):
    """A student that is the flow's end at time 0, after the boundary."""

    def clean(self, noisy, time, alpha):
        end = noisy * self.deviation(torch.zeros_like(time)) / self.deviation(time)
        skip, out = lcm.boundary(time)
        return (end - skip * noisy) / out.clamp(min=1e-9)


def gaussian(teacher, student, **options):
    """The loss over a batch of 4,000 with these two networks."""
    objective = made(guidance_scale=1, target="online", **options)
    objective.teacher, objective.generator = teacher(objective.schedule), student(objective.schedule)
    generator = torch.Generator().manual_seed(0)
    batch = LatentBatch(DEVIATION * torch.randn(4000, *SHAPE, generator=generator), NOBODY, NOBODY, generator)
    return objective.generator_loss(batch).item(), objective.logged["mean_difference"].item()


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_with_a_perfect_teacher_the_flows_end_has_no_loss(distance):
    """Measured: a mean difference of 2e-8; 0.008 for the denoiser that it is distilled from."""
    loss, difference = gaussian(Perfect, Consistent, distance=distance)
    assert loss < 1e-8 and difference < 2e-6
    undistilled, apart = gaussian(Perfect, Posterior, distance=distance)
    assert undistilled > 1000 * max(loss, 1e-12) and apart > 0.005


def test_a_real_teachers_error_is_of_second_order_in_its_step():
    """Five times as many steps make the difference of the flow's ends, a DDIM step apart, 25 times smaller. Measured: 23."""
    coarse, fine = (gaussian(Posterior, Consistent, solver_steps=steps)[1] for steps in (20, 100))
    assert 15 < coarse / fine < 40


# --- the loss by hand ------------------------------------------------------------------------------------------------


def clean_and_noise(objective, noisy, time, output):
    a, s = signal(objective, time)
    if objective.settings.prediction == "epsilon":
        return (noisy - s * output) / a, output
    return a * noisy - s * output, s * noisy + a * output


def guided_step(objective, noisy, time, earlier, batch):
    """As LCM writes it: clean latents and noise are each guided, cond + w' (cond - null), w' = w - 1."""
    null = Text(*(part.expand(len(noisy), *part.shape[1:]) for part in batch.null))
    ours, theirs = (
        clean_and_noise(objective, noisy, time, objective.teacher(noisy, time, t)) for t in (batch.text, null)
    )
    beyond = objective.settings.guidance_scale - 1
    clean, noise = (cond + beyond * (cond - none) for cond, none in zip(ours, theirs, strict=True))
    a, s = signal(objective, earlier)
    return a * clean + s * noise


def consistency(objective, network, noisy, time, text):
    scaled = column(10.0 * time)
    clean, _ = clean_and_noise(objective, noisy, time, network(noisy, time, text))
    return 0.25 / (scaled**2 + 0.25) * noisy + scaled / (scaled**2 + 0.25).sqrt() * clean


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [1.0, 0.0, 4.5])
@pytest.mark.parametrize("distance", ["huber", "l2"])
@pytest.mark.parametrize("target", ["ema", "online"])
def test_the_loss_and_its_gradient_by_hand(prediction, scale, distance, target):
    """Gradients reach the student by its own prediction alone, not by the target."""
    options = {"prediction": prediction, "guidance_scale": scale, "distance": distance, "target": target}
    objective, batch = made(generator=1, **options), batch_of(40)
    average = copy.deepcopy(objective.generator)
    objective.generator.load_state_dict(denoiser(2).state_dict())
    followed = average if target == "ema" else copy.deepcopy(objective.generator)
    time, earlier, noise = drawn(batch_of(40))
    a, s = signal(objective, time)
    noisy = a * batch.latents + s * noise
    with torch.no_grad():
        stepped = guided_step(objective, noisy, time, earlier, batch)
        expected = consistency(objective, followed, stepped, earlier, batch.text)
    student = copy.deepcopy(objective.generator)
    difference = consistency(objective, student, noisy, time, batch.text) - expected
    by_hand = difference.square() if distance == "l2" else (difference.square() + 1e-6).sqrt() - 0.001
    loss = objective.generator_loss(batch)
    torch.testing.assert_close(loss, by_hand.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.logged["mean_difference"], difference.detach().abs().mean(), rtol=1e-4, atol=0)
    loss.backward()
    by_hand.mean().backward()
    for mine, theirs in zip(objective.generator.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_a_last_time_of_pure_noise_has_a_loss():
    """There the noise is x itself, whatever v is."""
    objective, batch = made(1, zero_terminal_snr=True), batch_of()
    time = torch.full((6,), 999)
    output = objective.teacher(batch.latents, time, batch.text)
    torch.testing.assert_close(schedule.noise_in(objective.schedule, batch.latents, time, output), batch.latents)
    torch.testing.assert_close(schedule.clean(objective.schedule, batch.latents, time, output), -output)
    assert objective._target(batch.latents, time, time - 20, batch).isfinite().all()


def test_the_target_is_the_moving_average():
    objective = made(ema_decay=0.8)
    average = copy.deepcopy(objective.generator)
    for step in range(4):
        with torch.no_grad():
            for mine, theirs in zip(objective.generator.parameters(), average.parameters(), strict=True):
                mine += 0.1 * (step + 1)
                theirs.copy_(0.8 * theirs + 0.2 * mine)
        objective.after_step()
    batch, time, earlier = batch_of(), torch.full((6,), 499), torch.full((6,), 479)
    stepped = guided_step(objective, batch.latents, time, earlier, batch)
    expected = consistency(objective, average, stepped, earlier, batch.text)
    torch.testing.assert_close(objective._target(batch.latents, time, earlier, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 7, 50, 500])
def test_neighbours_are_drawn_evenly_from_the_grid(steps):
    """Rounded n / steps of the way, as diffusers' trailing spacing; the last neighbour is time 0."""
    time, earlier = made(solver_steps=steps)._neighbours(batch_of(20_000))
    grid = [0, *(round(1000 * n / steps) - 1 for n in range(1, steps + 1))]
    pairs = set(zip(time.tolist(), earlier.tolist(), strict=True))
    assert pairs == set(zip(grid[1:], grid[:-1], strict=True))
    counts = torch.bincount(torch.searchsorted(torch.tensor(grid), time), minlength=steps + 1)[1:]
    share = 1 / steps
    assert (counts / 20_000 - share).abs().max() < 5 * (share * (1 - share) / 20_000) ** 0.5


@pytest.mark.parametrize(("scale", "passes"), [(3.0, 6), (1.0, 5)])
def test_passes_are_those_that_are_made(scale, passes):
    objective, seen = made(guidance_scale=scale), {"generator": 0, "teacher": 0}
    for name in seen:
        counted = lambda module, inputs, name=name: seen.update({name: seen[name] + len(inputs[0]) // 6})  # noqa: E731
        getattr(objective, name).register_forward_pre_hook(counted)
    objective.generator_loss(batch_of())
    assert seen == {"generator": 2, "teacher": passes - 4}  # the student and the target
    assert objective.passes == passes == sum(seen.values()) + 2  # and the student's backward pass


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_no_teacher_is_one_line():
    with pytest.raises(InputError, match="lcm needs a teacher"):
        lcm.Objective(denoiser(0), None, lcm.Settings())


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": -1},
        {"guidance_scale": float("inf")},
        {"solver_steps": 1},
        {"solver_steps": 501},  # more, and two of its times are one
        {"target": "teacher"},
        {"ema_decay": 1},
        {"distance": "lpips"},
        {"huber_c": 0},
        {"guidance": 3},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lcm.Settings(**options)


# --- in 2-D ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane_teacher():
    return teacher()


def distilled(teacher, updates, **options):
    settings = lcm.Settings(prediction="epsilon", guidance_scale=1, **options)
    return trained(lcm.Objective(copy.deepcopy(teacher).requires_grad_(True), teacher, settings), updates)


def test_in_2d_four_steps_are_soon_good(plane_teacher):
    """Measured: 0.70, all modes; 0.30 before."""
    assert quality(plane_teacher, 4)[0] < 0.4
    good, modes = quality(distilled(plane_teacher, 300), 4)
    assert good > 0.55 and modes == 8


@pytest.mark.slow
def test_in_2d_one_step_is_enough_and_better_by_the_moving_average():
    """Measured, in 1, 2 and 4 steps after 4,000 updates: 0.72, 0.84, 0.88, online 0.65, 0.69, 0.69; 0.01, 0.00, 0.31 before."""
    (good, modes), (online, _) = (
        quality(distilled(teacher(6000), 4000, target=target), 1) for target in ("ema", "online")
    )
    assert good >= 0.6 and modes == 8
    assert good > online
