"""DeMe: merging by hand and at its known points, times against their histogram, losses by hand, and a run's network."""

import copy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from test_experts import denoiser, same
from test_in_training import in_training
from test_objectives import SHAPE, Denoiser, batch_of
from test_training import encoded, on_the_cpu  # noqa: F401 (fixtures)
from torch import nn

from nas.diffusion import gradients, schedule
from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.full_training import job
from nas.full_training.recipe import Recipe
from nas.networks import experts, lora
from nas.networks.conditioning import Text
from nas.networks.experts import Experts
from nas.objectives import check_drawing, deme, denoising
from nas.search import coordinates
from nas.training import batches
from nas.training.loop import Hardware, train
from nas.trial import bench as benches


def made(generator=0, **options):
    return deme.Objective(denoiser(generator), denoiser(0).requires_grad_(False), deme.Settings(**options))


def apart(objective):
    """The objective with experts that have moved, each its own way."""
    with torch.no_grad():
        for index, network in enumerate(networks(objective)):
            generator = torch.Generator().manual_seed(index)
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return objective


def networks(objective):
    return [objective.generator, *(critic.network for critic in objective.critics.values())]


def losses_of(objective, batch):
    """L_0 .. L_(N-1), each of the batch as it is."""
    batch = replace(batch, generator=copy.copy(batch.generator))
    state = batch.generator.get_state()
    found = []
    for loss in (objective.generator_loss, *(critic.loss for critic in objective.critics.values())):
        batch.generator.set_state(state)
        found.append(loss(batch))
    return found


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"experts": 1}, [(0, 1000)]),
        ({"experts": 3}, [(0, 333), (333, 666), (666, 1000)]),
        ({"experts": 2, "boundaries": [100]}, [(0, 100), (100, 1000)]),
        ({"experts": 4}, [(0, 250), (250, 500), (500, 750), (750, 1000)]),
    ],
    ids=str,
)
def test_ranges_meet_and_cover_every_time(options, expected):
    assert deme.Settings(**options).ranges == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 3, "boundaries": [500]}, "boundaries: 1 of them, expected 2 between 3 experts"),
        ({"experts": 3, "boundaries": [600, 600]}, "expected ascending times between 1 and 999"),
        ({"experts": 3, "boundaries": [600, 300]}, r"boundaries: \[600, 300\]"),
        ({"experts": 2, "boundaries": [0]}, "ascending"),
        ({"experts": 2, "boundaries": [1000]}, "ascending"),
        ({"experts": 8, "table": 7}, "table: 7, expected at least one picture for each of 8 experts"),
        ({"probability": 1.5}, "probability"),
        ({"merge": "ties"}, "merge"),
        ({"experts": 0}, "experts"),
        ({"expert": 4}, "expert"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        deme.Settings(**options)


def test_it_needs_a_teacher():
    with pytest.raises(InputError, match="deme needs a teacher"):
        deme.Objective(Denoiser(), None, deme.Settings())


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_times_are_antithetic_inside_their_interval(size, probability):
    objective, batch = made(probability=probability), batch_of(size)
    low, high = (0, 1000) if probability else (250, 500)
    time = objective._times(1, batch)
    half = (size + 1) // 2
    assert time.shape == (size,) and time.min() >= low and time.max() < high
    assert torch.equal(time[:half][: size - half] + time[half:], torch.full((size - half,), low + high - 1))


def test_the_histogram_of_an_expert_has_its_mass():
    """(1 - p) + p / N inside its range, p / N in each other; by the batch, so that the error is that of 4,000 draws."""
    objective, batch, p, count = made(), batch_of(20), 0.3, 4000
    time = torch.cat([objective._times(2, batch) for _ in range(count)])
    share = torch.bincount(time // 250, minlength=4) / len(time)
    expected = torch.tensor([p / 4, p / 4, 1 - p + p / 4, p / 4])
    assert (share - expected).abs().max() < 4 * (p * (1 - p) / count) ** 0.5
    inside = time[(time >= 500) & (time < 750)].float()
    assert inside.mean() == pytest.approx(624.5, abs=1)  # antithetic: their mean hardly varies


# --- the losses ------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    objective, batch, by_hand = apart(made(probability=0.0, consistency=0.7)), batch_of(6), batch_of(6)
    torch.rand((), generator=by_hand.generator)
    half = torch.randint(500, 750, (3,), generator=by_hand.generator)
    time = torch.cat([half, 1249 - half])
    noise = torch.randn(by_hand.latents.shape, generator=by_hand.generator)
    alpha = objective.schedule.alphas_cumprod[time].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents
    said = objective.expert_2(noisy, time, batch.text)
    expected = (said - target).square().mean() + 0.7 * (said - denoiser(0)(noisy, time, batch.text)).square().mean()
    torch.testing.assert_close(objective.critics["expert_2"].loss(batch), expected)


def test_at_the_start_the_start_agrees_with_itself():
    for with_it, without in zip(losses_of(made(), batch_of()), losses_of(made(consistency=0), batch_of()), strict=True):
        assert torch.equal(with_it, without)


def test_with_p_of_one_every_expert_is_fine_tuned_as_the_plain_objective_is(monkeypatch):
    """The loss of `denoising`, given antithetic times in place of independent ones."""
    objective, batch, drawn = made(1, probability=1.0, consistency=0, experts=3), batch_of(), batch_of()
    time, noise = objective._times(0, drawn), drawn.noise()
    plain = denoising.Objective(denoiser(1), None, denoising.Settings())
    monkeypatch.setattr(type(batch), "draw", lambda self, steps: (time, noise))
    for found in losses_of(objective, batch):
        torch.testing.assert_close(found, plain.generator_loss(batch))


# --- coefficients ----------------------------------------------------------------------------------------------------


def valley(point):
    """A quadratic with its minimum at (0.7, 0.35), and axes that lie across the coordinates."""
    x, y = point[0] - 0.7, point[1] - 0.35
    return 3 + x * x + y * y + 0.8 * x * y


def test_the_search_comes_to_the_minimum_of_a_valley():
    found, score = coordinates.minimised(valley, (0.5, 0.5), -0.2, 1.2, 100)
    assert found == pytest.approx((0.7, 0.35), abs=0.05) and score == valley(found)


def test_the_search_stays_in_its_box_and_within_its_count():
    asked = []

    def downhill(point):
        asked.append(point)
        return -sum(point)

    assert coordinates.minimised(downhill, (0.25,) * 3, -0.2, 1.2, 60)[0] == (1.2,) * 3
    assert len(asked) == len(set(asked)) <= 60 and all(-0.2 <= x <= 1.2 for point in asked for x in point)
    asked.clear()
    coordinates.minimised(downhill, (0.25,) * 3, -0.2, 1.2, 5)
    assert len(asked) == 5
    assert coordinates.minimised(downhill, (0.25,) * 3, -0.2, 1.2, 1)[0] == (0.25,) * 3


def lessons(count):
    return batch_of(count, seed=9)


def test_the_search_ends_no_worse_than_the_average_and_the_same_twice():
    objective = apart(made(experts=2, evaluations=20, table=40))
    found = [objective.finished(lessons).state_dict() for _ in range(2)]
    assert same(*found)
    weights = [float(objective.logged[f"coefficient_{index}"]) for index in range(2)]
    expected = experts.merged(
        objective.teacher.state_dict(), [one.state_dict() for one in networks(objective)], weights
    )
    torch.testing.assert_close(found[0], expected)
    average = made(experts=2, evaluations=1, table=40)
    average.load_state_dict(objective.state_dict())
    average.finished(lessons)
    assert objective.logged["merged_loss_ratio"] <= average.logged["merged_loss_ratio"]
    assert [float(average.logged[f"coefficient_{index}"]) for index in range(2)] == [0.5, 0.5]


def test_the_search_sees_the_mean_over_ranges_of_the_losses_ratio():
    """By hand, one row at a time: each range has its own rows, at the middles of its equal parts."""
    objective = apart(made(experts=2, evaluations=1, table=6, boundaries=(300,)))
    network = objective.finished(lessons)
    batch = lessons(6)
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    ratios = []
    for rows, times in (((0, 1, 2), (50, 150, 250)), ((3, 4, 5), (416, 650, 883))):
        sums = [0.0, 0.0]
        for row, time in zip(rows, times, strict=True):
            text = Text(batch.text.tokens[row : row + 1], batch.text.pooled[row : row + 1])
            given = (batch.latents[row : row + 1], text, torch.tensor([time]), noise[row : row + 1])
            for which, one in enumerate((network, objective.teacher)):
                sums[which] += schedule.denoising_error(one, objective.schedule, *given).mean().item()
        ratios.append(sums[0] / sums[1])
    assert float(objective.logged["merged_loss_ratio"]) == pytest.approx(sum(ratios) / 2, rel=1e-5)


def test_an_average_is_the_mean_of_the_experts():
    objective = apart(made(experts=3, merge="average"))
    found = objective.finished(lessons).state_dict()
    for name, tensor in found.items():
        expected = torch.stack([network.state_dict()[name].double() for network in networks(objective)]).mean(0)
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-6, atol=1e-7)
    assert objective.offline_passes == 0
    assert made(table=100, evaluations=9).offline_passes == 1000


def test_unmerged_experts_are_copies():
    objective = apart(made(experts=2, merge="none"))
    found = objective.finished(lessons)
    assert isinstance(found, Experts) and not any(parameter.requires_grad for parameter in found.parameters())
    assert same(found.experts[1].state_dict(), objective.expert_1.state_dict())
    assert found.experts[1] is not objective.expert_1 and found.boundaries.tolist() == [500]


@pytest.mark.parametrize(
    ("name", "settings", "plan", "words"),
    [
        ("denoising", {}, {"experts": [0, 1]}, "sampling.experts: denoising trains one network; expected none"),
        ("deme", {"merge": "average"}, {"experts": [0, 1]}, "sampling.experts: objective.merge is average"),
        ("deme", {"merge": "none", "experts": 2}, {"experts": [0, 2]}, "expert 2, expected 0 to 1 of 2 experts"),
        ("deme", {"merge": "none"}, {"cache": {"name": "fora"}}, "sampling.cache: what one expert puts out"),
    ],
)
def test_plans_of_experts_are_refused_before_a_training(name, settings, plan, words):
    asked = Plan(steps=2, **plan)
    with pytest.raises(InputError, match=words) as caught:
        check_drawing(name, asked)
        deme.check_plan(deme.Settings(**settings), asked)
    assert "\n" not in str(caught.value)


def test_adapters_are_merged_by_their_products():
    """W + sum_i w_i s B_i A_i of each layer, where A and B merged by themselves would have cross terms."""
    network = denoiser(0)
    lora.adapt(network, lora.Lora(rank=2), seed=1)
    objective = deme.Objective(
        network, denoiser(0).requires_grad_(False), deme.Settings(experts=2, merge="average", table=8)
    )
    with torch.no_grad():
        for index, one in enumerate(networks(objective)):
            for name, parameter in one.named_parameters():
                if "lora" in name:
                    parameter += 0.1 * torch.randn(
                        parameter.shape, generator=torch.Generator().manual_seed(index + len(name))
                    )
    found = objective.finished(lessons)
    deltas = [
        one.text.lora_B["default"].weight @ one.text.lora_A["default"].weight for one in networks(objective)
    ]  # alpha is the rank
    torch.testing.assert_close(found.text.weight, objective.teacher.text.weight + sum(deltas) / 2)
    assert found.state_dict().keys() == denoiser(0).state_dict().keys()


# --- in a training ---------------------------------------------------------------------------------------------------


def test_what_is_finished_is_made_of_the_averages(tmp_path):
    """Each expert's, by the training's decay, and again after a restart."""
    data = encoded()
    module, again = (in_training("deme", {"experts": 2, "merge": "none"}) for _ in range(2))
    averages, decay = [copy.deepcopy(dict(one.named_parameters())) for one in networks(module.objective)], 0.999
    for update in range(4):
        train(module, data, 5, 8 * (update + 1))
        for mean, network in zip(averages, networks(module.objective), strict=True):
            share = min(decay, (2 + update) / (11 + update))
            for name, parameter in network.named_parameters():
                mean[name] = mean[name].detach() * share + parameter.detach() * (1 - share)
    module.save(tmp_path / "whole.safetensors", {})
    again.restore(tmp_path / "whole.safetensors")
    for one in (module, again):
        one.swap_average()
        for mean, network in zip(averages, one.objective.finished(lessons).experts, strict=True):
            torch.testing.assert_close(dict(network.named_parameters()), mean)


def test_experts_part_and_have_their_own_optimizers():
    module = in_training("deme", {"experts": 3})
    train(module, encoded(), 5, 24)
    states = [one.state_dict() for one in networks(module.objective)]
    assert not any(same(a, b) for index, a in enumerate(states) for b in states[:index])
    assert set(module.adam) == {"generator", "expert_1", "expert_2"}
    assert {rate["lr"] for adam in module.adam.values() for rate in adam.param_groups} == {
        module.adam["generator"].param_groups[0]["lr"]
    }


def test_nas_train_refuses_what_ends_with_a_search(tmp_path):
    with pytest.raises(InputError, match=r"^objective: deme makes its network at the end"):
        job._check(job.Job("one", None, Recipe(objective={"name": "deme"}), tmp_path / "out", Hardware()))


def test_every_other_objective_ends_with_its_generator():
    plain = denoising.Objective(denoiser(0), None, denoising.Settings())
    assert plain.finished(lessons) is plain.generator and not plain.finishes


# --- cosines of gradients --------------------------------------------------------------------------------------------


class Affine(nn.Module):
    """a + b x with a and b of its own before and after a time, so that gradients are known."""

    def __init__(self, split):
        super().__init__()
        self.split, self.early, self.late = (
            split,
            nn.Parameter(torch.tensor([0.5, 0.2])),
            nn.Parameter(torch.tensor([0.1, 0.3])),
        )

    def forward(self, latents, time, text):
        which = (time < self.split).float().view(-1, 1, 1, 1)
        a, b = (which * one + (1 - which) * two for one, two in zip(self.early, self.late, strict=True))
        return a + b * latents


def test_gradients_by_hand_and_their_cosines():
    plan, network, batch = schedule.noise_schedule(schedule.Settings()), Affine(500), batch_of(5)
    noise = torch.randn(5, *SHAPE)
    of = lambda t: gradients.gradient(network, plan, batch.latents, batch.text, torch.full((5,), t), noise)  # noqa: E731
    noisy, target = schedule.corrupted(plan, batch.latents, torch.full((5,), 100), noise)
    error = 0.5 + 0.2 * noisy - target
    torch.testing.assert_close(
        of(100), torch.stack([2 * error.mean(), 2 * (error * noisy).mean(), *torch.zeros(2)]).detach()
    )
    given = (network, plan, batch.latents, batch.text, noise)
    assert gradients.grad_cos(*given, 100, 900) == 0
    assert gradients.grad_cos(*given, 100, 100) == pytest.approx(1)
    one, other = of(100).double(), of(300).double()
    assert gradients.grad_cos(*given, 100, 300) == pytest.approx(float(one @ other / one.norm() / other.norm()))
    assert -1 <= gradients.grad_cos(*given, 100, 300) <= 1


def test_a_lesson_is_fixed_and_repeats_where_there_is_less(monkeypatch):
    data = encoded(10)
    fake = benches.Bench.__new__(benches.Bench)
    monkeypatch.setattr(benches.Bench, "lessons", property(lambda self: data))
    fake.study = type("Study", (), {"seed": 3})
    one, other = fake.lesson(25), fake.lesson(25)
    assert torch.equal(one.latents, other.latents) and torch.equal(one.noise(), other.noise())
    rows = [int((data.latents == latents).all((1, 2, 3)).nonzero()) for latents in one.latents]
    assert sorted(rows[:10]) == list(range(10)) and rows[10:20] == rows[:10] and len(rows) == 25
    assert not any(torch.equal(tokens, data.null.tokens[0]) for tokens in one.text.tokens)
    assert batches.drawn(data, torch.tensor(rows), 0.0, torch.Generator(), 0).text.tokens.equal(one.text.tokens)
