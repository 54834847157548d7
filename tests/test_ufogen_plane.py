"""UFOGen on the 2-D bench of `plane`."""

import copy

import pytest
from plane import quality, teacher, trained

from nas.objectives import ufogen


@pytest.fixture(scope="module")
def plane_teacher():
    return teacher()


def distilled(teacher, updates, **options):
    """The generator's moving average after so many updates of UFOGen."""
    settings = ufogen.Settings(prediction="epsilon", critic_every=1, logit_clamp=None, **options)
    return trained(ufogen.Objective(copy.deepcopy(teacher).requires_grad_(True), teacher, settings), updates)


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
