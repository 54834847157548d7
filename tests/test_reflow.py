"""Reflow and InstaFlow against formulas, second implementations, and the 2-D bench of `plane`."""

import copy
from dataclasses import replace
from functools import partial

import plane
import pytest
import torch
from test_critics import Last
from test_flow import Answers, column
from test_objectives import SHAPE, Denoiser, batch_of
from test_training import (
    QUICK,
    assert_identical,
    encoded,
    module_of,
    on_the_cpu,  # noqa: F401 (fixtures)
)

from nas.diffusion import flow
from nas.diffusion.pairs import Pairs
from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, noise_schedule
from nas.diffusion.solvers import sample
from nas.errors import InputError
from nas.objectives import LatentBatch, instaflow, reflow
from nas.training.loop import train


def denoiser(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser()


def made(module=reflow, **options):
    return module.Objective(denoiser(), denoiser(1).requires_grad_(False), module.Settings(**options))


# --- reflow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_loss_by_hand(prediction):
    """From the network's x^ and e^ at the time that has the path's signal, found by search over a fine grid."""
    objective, batch = made(prediction=prediction), batch_of(64)
    tau = 0.999 * torch.rand(64, generator=batch_of(64).generator)
    loss = objective.generator_loss(batch)
    where = column(tau) * batch.latents + column(1 - tau) * batch.start
    c = (tau.square() + (1 - tau).square()).sqrt()
    signal = objective.schedule.alphas_cumprod.sqrt()
    fine = torch.linspace(0, 999, 999 * 64 + 1)
    a_fine = signal[fine.long()] + (fine % 1) * (signal[(fine.long() + 1).clamp(max=999)] - signal[fine.long()])
    time = fine[(a_fine[None] - (tau / c)[:, None]).abs().argmin(1)]
    a, s = (tau / c).clamp(min=signal[-1]), ((1 - tau) / c).clamp(max=(1 - signal[-1] ** 2).sqrt())
    a, s = column(a), column(s)
    x, output = where / column(c), objective.generator(where / column(c), time, batch.text)
    clean = a * x - s * output if prediction == "v" else (x - s * output) / a
    noise = (where - column(tau) * clean) / column(1 - tau)
    expected = (clean - noise - (batch.latents - batch.start)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)


def test_who_knows_the_data_has_no_loss(monkeypatch):
    monkeypatch.setattr(reflow, "LAST_TAU", 0.97)  # then this one inverts the noising with the first time's a
    objective, batch = made(zero_terminal_snr=True), batch_of(64)
    objective.generator = Answers(objective.schedule, batch.latents)
    assert objective.generator_loss(batch) < 1e-5


def test_the_loss_of_a_split_batch_takes_its_own_noise():
    batch, objective = batch_of(8), made()
    for piece, rows in zip(batch.split(2), (slice(4), slice(4, 8)), strict=True):
        assert torch.equal(piece.start, batch.start[rows])
        assert objective.generator_loss(piece).isfinite()


@pytest.mark.parametrize("module", [reflow, instaflow])
def test_what_can_be_missing_is_one_line(module):
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(InputError, match=f"{name} needs a teacher"):
        module.Objective(denoiser(), None, module.Settings())
    with pytest.raises(InputError, match=f"^objective: {name} learns from pairs .* and got no noise$"):
        made(module).generator_loss(replace(batch_of(), start=None))


def test_what_it_costs():
    sampling = Plan(solver="dpm++", steps=7, guidance=5)
    assert made(pairs=Pairs(count=100, sampling=sampling)).offline_passes == 1400
    assert made().passes == 3 and made().offline_passes == 2048 * 20
    assert made(instaflow).passes == 11 and made(instaflow, rectified_steps=25).passes == 28
    assert made(instaflow, reflow_updates=0).passes == 3


@pytest.mark.parametrize(
    "options", [{"pairs": {"count": 0}}, {"reflow_updates": -1}, {"rectified_steps": 0}, {"rectified": 1}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        instaflow.Settings(**options)


# --- InstaFlow -------------------------------------------------------------------------------------------------------


def at(update, size=6, seed=0):
    return replace(batch_of(size, seed), update=update)


def shaken(objective):
    """Its generator moved, as if trained."""
    with torch.no_grad():
        for parameter in objective.generator.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return objective


def test_at_first_it_is_reflow():
    objective = made(instaflow, reflow_updates=5)
    for update in (0, 4):
        assert torch.equal(objective.generator_loss(at(update)), made().generator_loss(at(update)))


def test_the_flow_is_the_first_tasks_average_and_then_stays():
    """With a decay of its own; a split batch has several losses, but one step."""
    objective = made(instaflow, reflow_updates=3, rectified_decay=0.25)
    average = copy.deepcopy(objective.generator.state_dict())
    for update in range(6):
        for piece in at(update).split(3):
            objective.generator_loss(piece).backward()
        assert_identical_but_for_rounding(objective.rectified.weights, average)
        decay = min(0.25, (1 + update) / (10 + update))
        shaken(objective).after_step()
        if update < 3:
            mine = objective.generator.state_dict()
            average = {name: decay * value + (1 - decay) * mine[name] for name, value in average.items()}


def assert_identical_but_for_rounding(one, other):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])


def test_without_decay_the_flow_is_the_last_weights_bit_for_bit():
    objective = made(instaflow, reflow_updates=1, rectified_decay=0)
    objective.generator_loss(at(0))
    shaken(objective).after_step()
    assert_identical(objective.rectified.weights, dict(objective.generator.state_dict()))


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_then_it_reaches_in_one_step_what_the_flow_reaches_in_several(prediction):
    """With a copy of the network, and a plain loop for Euler."""
    objective = made(instaflow, reflow_updates=2, rectified_steps=3, prediction=prediction)
    before = copy.deepcopy(objective.generator)
    shaken(objective)
    noise = torch.randn(6, *SHAPE, generator=batch_of().generator)
    batch, target = at(3), noise
    with torch.no_grad():
        for third in range(3):
            tau = torch.full((6,), third / 3)
            c = (tau.square() + (1 - tau).square()).sqrt()
            time = flow.time_of(objective.schedule, tau)
            a, s = column(tau / c), column((1 - tau) / c)
            if third == 0:
                a, s = (
                    f.sqrt() for f in (objective.schedule.alphas_cumprod[-1], 1 - objective.schedule.alphas_cumprod[-1])
                )
            x = target / column(c)
            output = before(x, time, batch.text)
            clean = a * x - s * output if prediction == "v" else (x - s * output) / a
            target = target + (clean - target) / (3 - third)
        drawn = sample(
            objective.generator, Plan(solver="one_step"), objective.schedule_config, noise, batch.text, batch.null
        )
    expected = (drawn - target).square().mean()
    torch.testing.assert_close(objective.generator_loss(batch), expected, rtol=1e-4, atol=1e-6)


def test_without_reflow_it_distils_the_teachers_pairs():
    objective, batch = made(instaflow, reflow_updates=0), batch_of()
    assert objective.rectified is None
    with torch.no_grad():
        plan = Plan(solver="one_step")
        drawn = sample(objective.generator, plan, objective.schedule_config, batch.start, batch.text, batch.null)
    expected = (drawn - batch.latents).square().mean()
    torch.testing.assert_close(objective.generator_loss(batch), expected)


def test_the_frozen_flow_takes_no_gradient_and_the_generator_does():
    objective = made(instaflow, reflow_updates=1)
    loss = objective.generator_loss(at(1))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.generator.parameters())
    assert {id(p) for p in objective.parameters()} == {id(p) for p in objective.generator.parameters()}


@pytest.mark.parametrize(("module", "update"), [(reflow, 0), (instaflow, 0), (instaflow, 9)])
def test_each_task_is_learned(module, update):
    """InstaFlow's second task starts at a loss of its own."""
    torch.manual_seed(0)
    objective = shaken(made(module, **({"reflow_updates": 9} if module is instaflow else {})))
    adam = torch.optim.Adam(objective.generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = objective.generator_loss(at(update, 16))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_data_set_without_noise_is_refused_in_training():
    module = module_of(QUICK, reflow.Objective(Last(), Last().requires_grad_(False), reflow.Settings()))
    with pytest.raises(InputError, match="got no noise"):
        train(module, encoded(), 5, 40)


# --- in 2-D ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane_teacher():
    return plane.teacher()


@pytest.fixture(scope="module")
def plane_pairs(plane_teacher):
    """20,000 points of noise and what the teacher draws from them in 50 steps; 0.88 of those are near a mode."""
    config = noise_schedule(Settings(prediction="epsilon")).config
    noise = torch.randn(20_000, 2, 1, 1, generator=torch.Generator().manual_seed(5))
    plan = Plan(solver="ddim", steps=50, guidance=1)
    return noise, sample(plane_teacher, plan, config, noise, plane.NOBODY, plane.NOBODY)


def some_of(pairs):
    """Batches of pairs, for `plane.trained`."""
    noise, drawn = pairs

    def batch(seed, update):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(noise), (256,), generator=generator)
        return LatentBatch(drawn[rows], plane.NOBODY, plane.NOBODY, generator, update, noise[rows])

    return batch


def straightness(network, prediction):
    noise = torch.randn(2000, 2, 1, 1, generator=torch.Generator().manual_seed(98))
    return flow.straightness(network, noise_schedule(Settings(prediction=prediction)), noise, plane.NOBODY, 50).item()


@pytest.mark.slow
def test_in_2d_reflow_straightens_the_teacher(plane_teacher, plane_pairs):
    """Measured: straightness 0.70, then 0.027; one step 0.04, then 0.70."""
    settings = reflow.Settings(prediction="epsilon")
    objective = reflow.Objective(copy.deepcopy(plane_teacher).requires_grad_(True), plane_teacher, settings)
    before = straightness(plane_teacher, "epsilon")
    assert plane.quality(plane_teacher, 1, "one_step")[0] < 0.1
    straight = plane.trained(objective, 500, batches=some_of(plane_pairs))
    assert straightness(straight, "epsilon") < before / 10
    good, modes = plane.quality(straight, 1, "one_step")
    assert good > 0.5 and modes == 8


@pytest.mark.slow
def test_in_2d_the_teachers_pairs_can_be_distilled_directly(plane_teacher, plane_pairs):
    """Measured: 0.75. That this fails at scale does not show in 2-D."""
    settings = instaflow.Settings(prediction="epsilon", reflow_updates=0)
    objective = instaflow.Objective(copy.deepcopy(plane_teacher).requires_grad_(True), plane_teacher, settings)
    good, modes = plane.quality(plane.trained(objective, 1500, batches=some_of(plane_pairs)), 1, "one_step")
    assert good > 0.5 and modes == 8


@pytest.mark.slow
def test_in_2d_instaflow(plane_teacher, plane_pairs):
    """A fresh network that predicts v, whose error one step does not multiply by 15.

    Measured: straightness 0.0047 (the teacher's: 0.70); 0.81 in one step of the rectified flow and 0.84 distilled, of the
    pairs' 0.88; squared distance from one step to the flow's 8: 0.0009.
    """
    torch.manual_seed(0)
    objective = instaflow.Objective(plane.Plane(), plane_teacher, instaflow.Settings(reflow_updates=5000))
    network = plane.trained(objective, 6500, rate=1e-3, batches=some_of(plane_pairs))
    rectified = partial(objective.rectified.call, network)
    assert straightness(rectified, "v") < straightness(plane_teacher, "epsilon") / 10
    noise = torch.randn(2000, 2, 1, 1, generator=torch.Generator().manual_seed(97))
    with torch.no_grad():
        many = flow.euler(rectified, objective.schedule, noise, plane.NOBODY, 8)
        once = flow.euler(network, objective.schedule, noise, plane.NOBODY, 1)
    found = [plane.quality(one, 1, "one_step", "v") for one in (rectified, network)]
    assert (many - once).square().mean() <= 2e-3
    assert all(good >= 0.8 and modes == 8 for good, modes in found)
