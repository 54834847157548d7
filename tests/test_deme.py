"""DeMe: merging by hand and at its known points, times against their histogram, losses by hand, and a run's network."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from test_in_training import in_training
from test_objectives import SHAPE, Denoiser, batch_of
from test_pairs import BASE
from test_study_scripts import script
from test_training import encoded, on_the_cpu  # noqa: F401 (fixtures)
from test_trial import STUDY as TRIAL
from test_trial import Small, rung
from torch import nn

from nas import menu
from nas.diffusion import gradients, schedule, solvers
from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.full_training import job
from nas.full_training.recipe import Recipe
from nas.networks import backbones, experts, lora
from nas.networks.conditioning import Text
from nas.networks.experts import Experts
from nas.objectives import deme, denoising
from nas.search import coordinates
from nas.settings import design, study_file
from nas.training import batches
from nas.training.loop import Hardware, train
from nas.trial import base_model, check
from nas.trial import bench as benches
from nas.weights import checkpoints

STUDY = Path(__file__).parents[1] / "studies/deme"


def denoiser(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser()


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


# --- as a trial ------------------------------------------------------------------------------------------------------

TAUGHT = TRIAL.replace(
    "{name: ufogen, reconstruction: ema_distill}", "{name: deme, experts: 2, table: 4, evaluations: 3}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the benches of these trials keep the base that they share."""
    return tmp_path_factory.mktemp("deme")


def bench_of(folder, training="warmup_images: 0, init: base, learning_rate: 0.003", options=()):
    path = folder / "study.yaml"
    path.write_text(TAUGHT.replace("warmup_images: 0, lora: {rank: 2}", training) + BASE)
    bench = Small(study_file.load(path, list(options)), folder)
    bench.prepare()
    base_model.train(bench)
    return bench


def test_a_trials_weights_are_one_network_and_rungs_change_nothing(tmp_path, folder):
    bench = bench_of(folder)
    first = rung(bench, tmp_path / "parts", 8, last=False)["rung"]
    second = rung(bench, tmp_path / "parts", 16, number=1)["rung"]
    whole = rung(bench, tmp_path / "whole", 16)["rung"]
    parts, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("parts", "whole"))
    assert same(parts, other) and second["metrics"] == whole["metrics"] != first["metrics"]
    base = load_file(base_model.weights_path(bench))
    assert base.keys() == parts.keys() and not same(base, parts)
    logged = {"generator_loss", "expert_1_loss", "coefficient_0", "coefficient_1", "merged_loss_ratio"}
    assert (
        logged <= second["training"].keys()
        and second["training"]["merged_loss_ratio"] == whole["training"]["merged_loss_ratio"]
    )
    assert second["passes"] == 8


def test_a_trial_of_unmerged_experts_is_drawn_and_swept_but_not_exported(tmp_path, folder):
    bench = bench_of(folder, options=("objective.merge=none",))
    made = rung(bench, tmp_path / "trial", 8)
    path, build = tmp_path / "trial" / "weights.safetensors", backbones.from_dict(made["proxy"]).build
    again = checkpoints.restored(build, path, "trial 0")
    config = denoising.noise_schedule(denoising.Settings()).config
    assert (
        isinstance(again, Experts) and bench.denoising_losses(again.eval(), config) == made["rung"]["denoising_losses"]
    )
    with pytest.raises(InputError, match="2 experts by time"):
        checkpoints.load_weights(build(), path, "runs/one")


def test_a_trial_of_adapters_leaves_one_plain_network(tmp_path, folder):
    bench = bench_of(folder, "warmup_images: 0, init: base, learning_rate: 0.003, lora: {rank: 2}")
    rung(bench, tmp_path / "trial", 8)
    found = load_file(tmp_path / "trial" / "weights.safetensors")
    assert found.keys() == load_file(base_model.weights_path(bench)).keys()
    assert not (tmp_path / "trial" / "adapters.safetensors").exists()


# --- the study -------------------------------------------------------------------------------------------------------


def cells(file):
    study = study_file.load(STUDY / file)
    check.check(study, None)  # raises what is wrong
    return {cell.name: design.changed(study, cell.settings) for cell in design.cells(study.ablation)}


def passes(study):
    """All that a cell's training costs."""
    module, images = menu.pick("objectives", study.objective.name), study.training.images_seen
    one = module.Objective(denoiser(0), denoiser(0).requires_grad_(False), study.objective.settings("objectives"))
    return getattr(one, "offline_passes", 0) + one.passes_of(study.training.updates(images)) * images


@pytest.mark.parametrize(("file", "share"), [("study.yaml", 0.04), ("tuning.yaml", 0.0075)])
def test_every_cell_of_the_study_costs_the_same(file, share):
    base = checkpoints.images_seen(STUDY.parents[1] / "nas/assets/base_scenes.safetensors")
    for name, study in cells(file).items():
        assert passes(study) == pytest.approx(share * 3 * base, rel=0.02), name


def test_the_table_of_cosines_corrects_for_chance():
    """Two ranges that share a direction and one against it, each with noise of its own half."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(20_000, generator=generator).double()
    mine = [shared, shared, -shared]
    found = torch.stack(
        [torch.stack([one + torch.randn(20_000, generator=generator) for _ in range(2)]) for one in mine]
    )
    table = script("deme/gradient_cosine.py").table(found).set_index(["range_a", "range_b"])
    assert table.loc[(0, 1), "apart"] == pytest.approx(0.5, abs=0.03)  # signal and noise alike
    assert table.loc[(0, 1), "corrected"] == pytest.approx(1, abs=0.05)
    assert table.loc[(0, 2), "corrected"] == pytest.approx(-1, abs=0.05)
    assert table.loc[(0, 0), "cosine"] == 1 and len(table) == 6
