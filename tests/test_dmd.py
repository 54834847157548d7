"""DMD, DMD2 and SwiftBrush against formulas, a second implementation, closed forms, and on the 2-D bench of `plane`."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from plane import NOBODY, points, quality, teacher, trained
from test_objectives import SHAPE, Denoiser, batch_of
from test_training import QUICK, assert_identical, encoded, module_of, on_the_cpu, weights  # noqa: F401 (fixtures)

from nas.diffusion import schedule, score_distillation
from nas.diffusion.plan import Plan
from nas.diffusion.schedule import noise_schedule, signal_and_noise
from nas.diffusion.solvers import sample
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, dmd, dmd2, swiftbrush

OBJECTIVES = {"dmd": dmd, "dmd2": dmd2, "swiftbrush": swiftbrush}


def denoiser(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser()


def made(module, **options):
    return module.Objective(denoiser(), denoiser().requires_grad_(False), module.Settings(**options))


def moved(network, seed=5):
    """As if it had learnt something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


# --- identities ------------------------------------------------------------------------------------------------------


def test_an_injected_gradient_is_the_gradient():
    x, g = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    score_distillation.injected(x, g).backward()
    torch.testing.assert_close(x.grad, g / g.numel())


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_weighed_difference_of_clean_latents_is_that_of_the_noises(prediction):
    """SwiftBrush writes s^2 (eps_teacher - eps_fake); DMD's is s / a (eps_real - eps_fake) over the teacher's error."""
    objective = made(swiftbrush, prediction=prediction)
    moved(objective.fake_score)
    batch = batch_of()
    time = torch.tensor([20, 100, 400, 700, 900, 980])
    a, s = signal_and_noise(objective.schedule, time)
    x = objective.noised(batch.latents, batch.noise(), time)
    real, fake = (
        objective.clean(network, x, time, batch.text) for network in (objective.teacher, objective.fake_score.denoiser)
    )
    eps_real, eps_fake = ((x - a * clean) / s for clean in (real, fake))
    ours = score_distillation.gradient(batch.latents, real, fake, a, s, "variance")
    torch.testing.assert_close(ours, s.square() * (eps_real - eps_fake), atol=1e-5, rtol=1e-4)
    ours = score_distillation.gradient(batch.latents, real, fake, a, s, "teacher_error")
    error = (batch.latents - real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(ours, s / a * (eps_real - eps_fake) / error, atol=1e-4, rtol=1e-3)


def exact(time, mean, variance, schedule):
    """E[x0 | x_t] of a normal with this mean and variance, as a function of x_t."""
    a, s = (value.flatten().double() for value in signal_and_noise(schedule, time))
    gain = a * variance / (a**2 * variance + s**2)
    return lambda x: mean + gain * (x - a * mean)


@pytest.mark.parametrize("level", [100, 500, 900])
def test_on_normal_distributions_it_is_the_gradient_of_the_divergence(level):
    """p_real = N(m, v), p_made = N(m', v'): a_t / s_t^2 (fake - real) averages to the difference of the scores, and a_t times
    that to d KL(made_t || real_t) / d m', here by finite differences of its closed form."""
    objective, time = made(dmd2), torch.tensor([level])
    a, s = (float(value) for value in signal_and_noise(objective.schedule, time))
    (m, v), (m2, v2) = (0.3, 0.5), (1.1, 0.8)
    generator = torch.Generator().manual_seed(level)
    x = a * (m2 + math.sqrt(v2) * torch.randn(400_000, generator=generator, dtype=torch.float64))
    x = x + s * torch.randn(400_000, generator=generator, dtype=torch.float64)
    fake, real = (exact(time, *normal, objective.schedule)(x) for normal in ((m2, v2), (m, v)))
    found = (a / s**2 * (fake - real)).mean().item()

    def divergence(mean):
        made_v, real_v = a**2 * v2 + s**2, a**2 * v + s**2
        return 0.5 * (math.log(real_v / made_v) + (made_v + a**2 * (mean - m) ** 2) / real_v - 1)

    slope = (divergence(m2 + 1e-4) - divergence(m2 - 1e-4)) / 2e-4
    assert a * found == pytest.approx(slope, rel=0.02)


# --- a second implementation -----------------------------------------------------------------------------------------


def test_the_losses_of_dmd2_by_hand():
    objective = made(dmd2, guidance_scale=2.0)
    moved(objective.fake_score)
    given, mine = batch_of(), batch_of()
    loss = objective.generator_loss(given)
    generator, schedule = mine.generator, objective.schedule
    z = torch.randn(6, *SHAPE, generator=generator)
    a999, s999 = (float(value) for value in signal_and_noise(schedule, torch.tensor([999])))
    x = a999 * z - s999 * objective.generator(z, torch.full((6,), 999), mine.text)
    t = torch.randint(20, 981, (6,), generator=generator)
    e = torch.randn(6, *SHAPE, generator=generator)
    a, s = signal_and_noise(schedule, t)
    x_t = a * x.detach() + s * e
    null = Text(mine.null.tokens.expand(6, -1, -1), mine.null.pooled.expand(6, -1))
    with torch.no_grad():
        cond, uncond = objective.teacher(x_t, t, mine.text), objective.teacher(x_t, t, null)
        real = a * x_t - s * (2.0 * cond - 1.0 * uncond)
        fake = a * x_t - s * objective.fake_score.denoiser(x_t, t, mine.text)
    g = (fake - real) / (x.detach() - real).abs().mean((1, 2, 3), keepdim=True)
    tau = torch.randint(1000, (6,), generator=generator)
    e2 = torch.randn(6, *SHAPE, generator=generator)
    a, s = signal_and_noise(schedule, tau)
    h = {}
    hook = objective.fake_score.denoiser.middle.register_forward_hook(lambda layer, i, o: h.update(out=o))
    objective.fake_score.denoiser(a * x + s * e2, tau, mine.text)
    hook.remove()
    logits = objective.fake_score.head(h["out"].flatten(2))
    expected = 0.5 * g.square().mean() + 1e-3 * torch.log1p(torch.exp(-logits)).mean()
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad((x * g).sum() / g.numel() + 1e-3 * torch.log1p(torch.exp(-logits)).mean(), x)[0]
    found = []
    objective.made = lambda batch: found.append(x.detach().requires_grad_(True)) or found[0]
    again = batch_of()
    again.noise()
    objective.generator_loss(again).backward()
    torch.testing.assert_close(found[0].grad, wanted)


def test_without_a_head_dmd2_is_swiftbrush_without_adapters():
    common = {"guidance_scale": 3.0, "fake_guidance_scale": 3.0, "student_update_freq": 1}
    one = made(dmd2, gan_loss_weight=0.0, weighting="variance", **common)
    other = made(swiftbrush, fake_lora=None, **common)
    for objective in (one, other):
        moved(objective.fake_score)
    torch.testing.assert_close(one.generator_loss(batch_of()), other.generator_loss(batch_of()), atol=0, rtol=1e-6)
    slopes = [[p.grad for p in objective.generator.parameters()] for objective in (one, other)]
    for mine, its in zip(*slopes, strict=True):
        assert mine is its or torch.equal(mine, its)


def test_the_adapters_error_is_weighed_by_the_signal():
    one, other = made(dmd2, gan_loss_weight=0.0), made(swiftbrush, fake_lora=None, fake_caption_dropout=0.0)
    batch, latents = batch_of(seed=3), one.made(batch_of()).detach()
    time, noise = batch.draw(1000)
    a, s = signal_and_noise(one.schedule, time)
    error = one.fake_score.denoiser(a * latents + s * noise, time, batch.text) - (a * noise - s * latents)
    torch.testing.assert_close(one._denoising(latents, batch_of(seed=3)), error.square().mean())
    torch.testing.assert_close(other._denoising(latents, batch_of(seed=3)), (a * error).square().mean())


def test_the_regression_of_dmd_is_on_what_the_teacher_drew():
    with_it, without = made(dmd), made(dmd, regression_weight=0.0)
    for objective in (with_it, without):
        moved(objective.fake_score)
    batch = batch_of()
    a, s = (float(value) for value in signal_and_noise(with_it.schedule, torch.tensor([999])))
    rebuilt = a * batch.start - s * with_it.generator(batch.start, torch.full((6,), 999), batch.text)
    difference = with_it.generator_loss(batch_of()) - without.generator_loss(batch_of())
    torch.testing.assert_close(difference, 0.25 * (rebuilt - batch.latents).square().mean(), atol=1e-5, rtol=1e-4)


# --- the first update, and what flows where --------------------------------------------------------------------------


def test_a_fake_score_that_agrees_with_the_teacher_moves_nothing():
    for objective in (made(swiftbrush), made(dmd2, guidance_scale=1.0, gan_loss_weight=0.0)):
        objective.generator_loss(batch_of()).backward()
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in objective.generator.parameters())


def test_adapters_share_the_teachers_weights_and_leave_its_outputs_as_they_are():
    objective = made(swiftbrush)
    teacher, batch = objective.teacher, batch_of()
    before = teacher(batch.latents, torch.arange(6), batch.text)
    shared = {parameter.data_ptr() for parameter in teacher.parameters()}
    frozen = [p for p in objective.fake_score.parameters() if not p.requires_grad]
    assert len(frozen) == len(shared) and {p.data_ptr() for p in frozen} == shared
    moved(objective.fake_score)
    assert torch.equal(teacher(batch.latents, torch.arange(6), batch.text), before)
    assert not torch.equal(objective.fake_score.denoiser(batch.latents, torch.arange(6), batch.text), before)


@pytest.mark.parametrize("module", [swiftbrush, dmd2], ids=["swiftbrush", "dmd2"])
def test_captions_are_enough(module):
    """Without a head nothing depends on the pictures of a batch."""
    objective = made(module, gan_loss_weight=0.0)
    moved(objective.fake_score)
    blank = replace(batch_of(), latents=torch.full((6, *SHAPE), math.nan))
    for loss in (objective.generator_loss, objective.fake_score_loss):
        assert torch.equal(loss(batch_of()), loss(replace(blank, generator=batch_of().generator)))


def test_several_steps_are_simulated_as_they_are_drawn():
    """Four steps: the last pass asks about one of 999, 749, 499, 249, each as often, from what the passes before it made."""
    objective, asked = made(dmd2, student_sample_steps=4), []
    inner = objective.generator.forward
    objective.generator.forward = lambda latents, time, text: asked.append(time[0].item()) or inner(latents, time, text)
    lasts = []
    for seed in range(200):
        asked.clear()
        objective.made(batch_of(2, seed))
        assert asked == [999, 749, 499, 249][: len(asked)]
        lasts.append(asked[-1])
    counts = [lasts.count(time) for time in (999, 749, 499, 249)]
    assert min(counts) > 25 and sum(counts) == 200


def test_the_simulated_steps_pass_no_gradient():
    objective = made(dmd2, student_sample_steps=4)
    seen = []
    inner = objective.generator.forward
    objective.generator.forward = lambda latents, *rest: seen.append(latents.requires_grad) or inner(latents, *rest)
    for seed in range(8):
        objective.made(batch_of(2, seed))
    assert not any(seen)


@pytest.mark.parametrize(
    "options", [{"student_update_freq": 0}, {"weighting": "error"}, {"features": "dino"}, {"fake_lora": {"rank": 0}}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        swiftbrush.Settings(**options)


@pytest.mark.parametrize("module", OBJECTIVES.values(), ids=OBJECTIVES)
def test_no_teacher_is_one_line(module):
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(InputError, match=f"objective: {name} needs a teacher"):
        module.Objective(denoiser(), None, module.Settings())


def test_adapters_that_fit_no_layer_are_one_line():
    with pytest.raises(InputError, match=r"objective.fake_lora.targets: '.*to_q' matches none"):
        made(swiftbrush, fake_lora={"targets": ".*to_q"})


# --- in two dimensions -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane_teacher():
    return teacher(5000)


def distilled(plane_teacher, updates, module=dmd2, rate=5e-4, batches=points, **options):
    plain = {"prediction": "epsilon", "guidance_scale": 1.0, "fake_guidance_scale": 1.0, "gan_loss_weight": 0.0}
    settings = module.Settings(**(plain | options))
    generator = copy.deepcopy(plane_teacher).requires_grad_(True)
    objective = module.Objective(generator, plane_teacher, settings)
    return trained(objective, updates, rate, batches=batches, averaged=False)


@pytest.mark.slow
def test_in_2d_two_time_scales_find_the_modes(plane_teacher):
    """Five updates of the fake score for one of the generator. Measured: 0.36 and all modes; the teacher's one step has 0.04."""
    good, modes = quality(distilled(plane_teacher, 800), 1)
    assert good >= 0.3 and modes == 8


@pytest.mark.slow
def test_in_2d_one_time_scale_loses_modes(plane_teacher):
    """Measured: 0.71, in one mode."""
    assert quality(distilled(plane_teacher, 1500, student_update_freq=1), 1)[1] <= 3


@pytest.mark.slow
def test_in_2d_pairs_keep_the_modes(plane_teacher):
    good, modes = quality(
        distilled(plane_teacher, 1500, dmd, batches=pairs_of(plane_teacher), regression_weight=2.0), 1
    )
    assert good >= 0.75 and modes == 8


@pytest.mark.slow
def test_in_2d_adapters_are_a_fake_score(plane_teacher):
    """The fake score's adapters learn twenty times as fast as the generator. Measured: 0.45, in three modes."""
    options = {"fake_lora": {"rank": 8}, "fake_score_learning_rate": 20.0, "fake_caption_dropout": 0.0}
    good, modes = quality(distilled(plane_teacher, 4000, swiftbrush, rate=1e-4, **options), 1)
    assert good >= 0.35 and modes >= 3


@pytest.mark.slow
def test_in_2d_the_wrong_sign_diverges(plane_teacher, monkeypatch):
    right = score_distillation.gradient
    monkeypatch.setattr(score_distillation, "gradient", lambda *given: -right(*given))
    noise = torch.randn(512, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    made = distilled(plane_teacher, 500)
    assert sample(made, ONE, noise_schedule(EPSILON).config, noise, NOBODY, NOBODY).abs().mean() > 100


@pytest.mark.slow
def test_in_2d_without_a_fake_score_everything_collapses(plane_teacher, monkeypatch):
    """Score distillation sampling: what was made stands for what the fake score would predict."""
    right = score_distillation.gradient
    monkeypatch.setattr(score_distillation, "gradient", lambda made, real, fake, *rest: right(made, real, made, *rest))
    noise = torch.randn(512, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    made = distilled(plane_teacher, 800)
    points_made = sample(made, ONE, noise_schedule(EPSILON).config, noise, NOBODY, NOBODY).flatten(1)
    assert points_made.std(dim=0).max() < 0.25  # of the data: 0.71


EPSILON, ONE = schedule.Settings(prediction="epsilon"), Plan(solver="one_step")


def pairs_of(plane_teacher, count=2000):
    """Batches of pairs, drawn by the teacher in 50 steps."""
    noise = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(7))
    plan = Plan(solver="ddim", steps=50, guidance=1)
    drawn = sample(plane_teacher, plan, noise_schedule(EPSILON).config, noise, NOBODY, NOBODY)

    def batch(seed, update, size=256):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(count, (size,), generator=generator)
        return LatentBatch(drawn[rows], NOBODY, NOBODY, generator, update, noise[rows])

    return batch
