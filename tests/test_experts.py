"""Networks that were fine-tuned apart: merged by their weights, or asked by time."""

import pytest
import torch
from safetensors.torch import save_file
from test_objectives import Denoiser, batch_of
from test_training import encoded, on_the_cpu  # noqa: F401 (fixtures)

from nas.diffusion import schedule, solvers
from nas.diffusion.caches.cache_schedules import Fora
from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.networks import experts
from nas.networks.experts import Experts
from nas.weights import checkpoints


def denoiser(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser()


# --- merging ---------------------------------------------------------------------------------------------------------


def states(count, seed=0):
    """A start and experts of mixed tensors, some of their weights far larger than their changes."""
    generator = torch.Generator().manual_seed(seed)
    start = {"weight": torch.randn(50, 7, generator=generator), "norm": 1e4 * torch.randn(9, generator=generator)}
    moved = [
        {name: tensor + 1e-4 * torch.randn(tensor.shape, generator=generator) for name, tensor in start.items()}
        for _ in range(count)
    ]
    return [one | {"steps": torch.tensor(index)} for index, one in enumerate((start, *moved))]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_without_weights_it_is_the_start_and_with_one_alone_that_expert():
    start, *moved = states(4)
    assert same(experts.merged(start, moved, [0, 0, 0, 0]), start)
    for index in range(4):
        found = experts.merged(start, moved, [float(other == index) for other in range(4)])
        assert same(found, moved[index] | {"steps": start["steps"]})


def test_merging_is_the_sum_of_task_vectors_and_linear():
    start, *moved = states(3)
    a, b = [0.3, -0.2, 1.2], [0.5, 0.1, -0.4]
    one, two, both = (experts.merged(start, moved, w) for w in (a, b, [x + y for x, y in zip(a, b, strict=True)]))
    for name in ("weight", "norm"):
        theta = start[name].double()
        expected = theta + sum(w * (expert[name].double() - theta) for w, expert in zip(a, moved, strict=True))
        torch.testing.assert_close(one[name], expected.float(), rtol=1.2e-7, atol=0)  # halves are rounded either way
        torch.testing.assert_close(one[name] + two[name] - start[name], both[name], rtol=1e-6, atol=3e-7)


def test_merging_half_precision_rounds_once():
    """fp16 differences alone would lose changes of 5e-4."""
    start = {"weight": torch.full((3,), 1.0).half()}
    moved = [{"weight": torch.full((3,), 1.0 + step).half()} for step in (2**-10, 2**-9)]
    expected = torch.tensor(1 + 0.5 * 2**-10 + 0.75 * 2**-9).half()
    assert torch.equal(experts.merged(start, moved, [0.5, 0.75])["weight"], expected.expand(3))


# --- asked by time ---------------------------------------------------------------------------------------------------


def test_each_row_is_asked_of_the_expert_of_its_time():
    parts = [denoiser(seed) for seed in (1, 2, 3)]
    together, batch = Experts(parts, (250, 600)), batch_of(6)
    time, answers = torch.tensor([599, 250, 999, 0, 249, 600]), [1, 1, 2, 0, 0, 2]
    expected = torch.stack([parts[which](batch.latents, time, batch.text)[row] for row, which in enumerate(answers)])
    torch.testing.assert_close(together(batch.latents, time, batch.text), expected)


def test_a_plan_draws_from_experts_as_from_any_network():
    one, batch = denoiser(1), batch_of(4)
    config = dict(schedule.noise_schedule(schedule.Settings()).config)
    alike = Experts([one, one], (400,))
    drawn = [
        solvers.sample(network, Plan(solver="dpm++", steps=4), config, batch.latents, batch.text, batch.null)
        for network in (one, alike, Experts([one, denoiser(2)], (400,)))
    ]
    torch.testing.assert_close(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


SCHEDULE = dict(schedule.noise_schedule(schedule.Settings()).config)


def drawing(network, plan):
    batch = batch_of(4)
    return solvers.sample(network, plan, SCHEDULE, batch.latents, batch.text, batch.null)


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "heun"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_plan_says_which_expert_draws_each_evaluation(solver, guidance):
    """Experts that are told whom their times would ask draw the same; told one alone, they draw as that one."""
    parts = [denoiser(seed) for seed in (1, 2, 3)]
    together = Experts(parts, (300, 600))
    plan = Plan(solver=solver, steps=5, guidance=guidance)
    by_time = [sum(time >= inner for inner in (300, 600)) for time in plan.asked]
    assert set(by_time) == {0, 1, 2}
    assert torch.equal(drawing(together, plan.changed(experts=by_time)), drawing(together, plan))
    for index, one in enumerate(parts):
        told = plan.changed(experts=[index] * plan.evaluations)
        assert torch.equal(drawing(together, told), drawing(one, plan))
    assert not torch.allclose(drawing(together, plan.changed(experts=by_time[::-1])), drawing(together, plan))


def test_a_plan_of_experts_is_refused_where_there_are_none_or_fewer():
    told = Plan(steps=2, experts=[1, 0])
    with pytest.raises(InputError, match=r"^sampling.experts: this is one network; expected none"):
        drawing(denoiser(1), told)
    with pytest.raises(InputError, match="expert 2, expected 0 to 1 of 2 experts"):
        drawing(Experts([denoiser(1), denoiser(2)], (500,)), told.changed(experts=[2, 0]))
    with pytest.raises(InputError, match=r"^sampling.cache: what one expert puts out"):
        drawing(Experts([denoiser(1), denoiser(2)], (500,)), Plan(steps=2, cache=Fora(name="fora")))
    with pytest.raises(ValueError, match="experts: 1 of them, and heun in 2 steps evaluates the network 3 times"):
        Plan(solver="heun", steps=2, experts=[1])
    with pytest.raises(InputError, match="cache: what one expert puts out cannot stand for another's"):
        told.changed(cache={"name": "fora"})


def test_experts_are_told_by_their_names_and_read_back(tmp_path):
    together = Experts([denoiser(seed) for seed in (1, 2, 3)], (100, 700))
    assert experts.count(together.state_dict()) == 3 and experts.count(denoiser(1).state_dict()) == 0
    path = tmp_path / "weights.safetensors"
    save_file(together.state_dict(), path)
    again = checkpoints.restored(Denoiser, path, "trial 3")
    assert isinstance(again, Experts) and same(again.state_dict(), together.state_dict())
    save_file(denoiser(5).state_dict(), path)
    assert isinstance(checkpoints.restored(Denoiser, path, "trial 3"), Denoiser)


def test_what_is_one_network_alone_refuses_experts(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(Experts([denoiser(1), denoiser(2)], (500,)).state_dict(), path)
    with pytest.raises(InputError, match=r"^trial 3: .* holds 2 experts by time .* expected one network") as error:
        checkpoints.load_weights(Denoiser(), path, "trial 3")
    assert "\n" not in str(error.value)
