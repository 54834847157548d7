"""UFOGen's gradient penalty by finite differences."""

import pytest
import torch
from test_objectives import batch_of
from test_ufogen import at, made, noised


def penalty_of(objective, batch, update=0):
    objective.critic_loss(at(batch, update))
    return objective.logged.get("gradient_penalty")


def test_the_gradient_penalty_by_finite_differences():
    """Slope of the summed logits along every input, squared and summed for each picture."""
    objective = made(decided=True, gradient_penalty=3.0, gradient_penalty_every=4)
    batch, time, step = batch_of(2), torch.tensor([300, 999]), 1e-2
    seen = noised(
        objective, batch.latents, torch.randn(batch.latents.shape, generator=batch_of(2).generator), time - 250
    )
    _, penalty = objective._penalty(time, batch)

    @torch.no_grad()
    def total(moved):
        return objective.critic(moved, time - 250, batch.text).flatten(1).sum(1)

    slopes = []
    for index in range(seen[0].numel()):
        move = torch.zeros_like(seen)
        move.flatten(1)[:, index] = step
        slopes.append((total(seen + move) - total(seen - move)) / (2 * step))
    expected = 3.0 / 2 * 4 * torch.stack(slopes).square().sum(0).mean()
    torch.testing.assert_close(penalty, expected, rtol=1e-2, atol=0)


def test_the_penaltys_gradient_reaches_the_weights():
    """Of one weight, against a finite difference."""
    objective = made(decided=True, gradient_penalty=1.0, gradient_penalty_every=1)
    time = torch.tensor([300, 999])
    _, penalty = objective._penalty(time, batch_of(2))
    weight = objective.critic.convolution.weight
    (gradient,) = torch.autograd.grad(penalty, weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0, 1, 1] += sign * 1e-2
        values.append(objective._penalty(time, batch_of(2))[1].item())
        with torch.no_grad():
            weight[0, 0, 1, 1] -= sign * 1e-2
    assert gradient[0, 0, 1, 1].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2)


def test_the_penalty_comes_every_few_turns_of_the_discriminator():
    objective = made(decided=True, gradient_penalty=1.0, gradient_penalty_every=3, critic_every=2)
    turns = range(0, 20, 2)
    found = []
    for update in turns:
        objective.logged.clear()
        found.append(penalty_of(objective, batch_of(), update) is not None)
    assert found == [update % 6 == 0 for update in turns]
    assert penalty_of(made(decided=True), batch_of()) is None
