"""BK-SDM: weights of a smaller network from a larger one, and what it learns from it, against second implementations."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_block_drop import built, data, inputs, small
from test_pairs import BASE
from test_training import on_the_cpu  # noqa: F401 (fixtures)
from test_trial import STUDY as TRIAL
from test_trial import Small, rung

from nas.diffusion import schedule
from nas.errors import InputError
from nas.networks import backbones, stages
from nas.objectives import feature_distillation
from nas.settings import study_file
from nas.settings.training import Training
from nas.space.search_space import SearchSpace
from nas.training import block_drop
from nas.training.batches import Batches
from nas.training.loop import DenoiserTraining, train
from nas.trial import base_model
from nas.trial.checks import check
from nas.weights import inheritance, supernet

TIME = torch.tensor([3.0, 700.0])


# --- inherited weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_sources_are_those_of_the_paper_and_no_tensor_is_missing_or_taken_twice(variant):
    student, teacher = backbones.presets()[f"bk-sdm-{variant}"], backbones.presets()["sd15"]
    renamed = inheritance.sources(student, teacher)
    assert renamed == {f"levels.{level}.up.1": f"levels.{level}.up.2" for level in range(len(student.levels))}
    network, whole = supernet.skeleton(student), supernet.skeleton(teacher)
    inheritance.check(network, whole, renamed)
    taken = [inheritance.source(name, renamed) for name in network.state_dict()]
    assert len(set(taken)) == len(taken) and set(taken) <= set(whole.state_dict())


def test_a_unet_without_blocks_that_added_nothing_is_the_whole_one():
    """The second block down leaves its input, and the second up hands on what came from below: then nothing else changes."""
    whole = built(small("sd15"))
    for level in whole.levels:
        middle = level.up[1].conv["full"]
        width = middle.shortcut.out_channels
        middle.shortcut.weight.data = torch.eye(width, middle.shortcut.in_channels)[:, :, None, None]
        middle.shortcut.bias.data.zero_()
    names = {module: name for name, module in whole.named_modules()}
    blocks = block_drop.blocks_of(whole)
    gone = torch.tensor([".down.1." in names[block] or ".up.1." in names[block] for block in blocks.members])
    config = backbones.presets()["bk-sdm-base"].scaled(backbones.Proxy(40, 4, 16, 12))
    student = config.build().eval()
    inheritance.inherit(student, whole, inheritance.sources(config, whole.config))
    with torch.no_grad(), block_drop.dropping(blocks, gone):
        torch.testing.assert_close(student(*inputs()), whole(*inputs()), atol=1e-4, rtol=1e-4)


def test_a_transformer_without_its_inner_blocks_is_the_whole_one_without_them():
    config = small("pixart", depth=4)
    whole, half = built(config), replace(config, depth=2)
    student = half.build().eval()
    inheritance.inherit(student, whole, inheritance.sources(half, config))
    blocks = block_drop.blocks_of(whole)
    with torch.no_grad(), block_drop.dropping(blocks, torch.tensor([False, True, True, False])):
        assert torch.equal(student(*inputs()), whole(*inputs()))
    large = backbones.presets()["dit-xl"]
    kept = [int(name.split(".")[1]) for name in replace(large, depth=14).sources(large).values()]
    assert kept == [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27]  # the first of each pair, then the last
    assert inheritance.sources(large, large) == {}


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (small("u-vit-h"), "there, pooled.weight is not there|there, .* is not there"),
        (replace(small("pixart", depth=4), width=96), "96"),
        (small("pixart", depth=6), "not the base with blocks removed"),
    ],
)
def test_what_is_no_part_of_the_base_cannot_inherit(student, words):
    whole = small("pixart", depth=4)
    with pytest.raises(InputError, match=words):
        inheritance.inherit(student.build(), whole.build(), inheritance.sources(student, whole))


# --- the losses -------------------------------------------------------------------------------------------------------


def unet_stages(network, latents, time, text):
    """A pass level by level, and what is there after the last block of each, before the image is resampled."""
    embedded, found, kept = F.silu(network.embedding(time, text.pooled)), {}, []
    x = network.conv_in(latents)
    for index, level in enumerate(network.levels):
        x, saved = level.descend(x, embedded, text.tokens)
        found[f"levels.{index}.down"] = saved[-1]
        kept.append(list(saved))
    for block in network.mid:
        x = block(x, embedded, text.tokens)
    for index in reversed(range(len(network.levels))):
        level = network.levels[index]
        for width, block in zip(level.skips, level.up, strict=True):
            x = block(torch.cat([x, kept[index].pop()], dim=1) if width else x, embedded, text.tokens)
        found[f"levels.{index}.up"] = x
        if level.upsample is not None:
            x = level.upsample(F.interpolate(x, scale_factor=2.0))
    return network.conv_out(F.silu(network.norm_out(x))), found


def networks(name="sd15"):
    """A teacher, and a smaller student with weights of its own."""
    tiny = backbones.presets()["bk-sdm-tiny"].scaled(backbones.Proxy(40, 4, 16, 12))
    config = tiny if name == "sd15" else small(name, depth=4)
    return built(small(name)), built(config, noise=0.15)


def objective_of(student, teacher, **options):
    teacher = copy.deepcopy(teacher).requires_grad_(False)
    return feature_distillation.Objective(student, teacher, feature_distillation.Settings(**options))


def batch_of(update=0):
    return next(iter(Batches(data(), Training(batch=2), 0, update, update + 1)))


def test_the_three_terms_by_hand():
    teacher, student = networks()
    objective = objective_of(student, teacher, output_loss_weight=0.5, feature_loss_weight=2.0)
    loss = objective.generator_loss(batch_of())
    batch = batch_of()
    time, noise = torch.randint(0, 1000, (2,), generator=batch.generator), None
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    alpha = objective.schedule.alphas_cumprod[time].view(-1, 1, 1, 1)
    noisy, v = (
        alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise,
        alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents,
    )
    answer, taught = unet_stages(teacher, noisy, time, batch.text)
    prediction, own = unet_stages(student, noisy, time, batch.text)
    assert set(own) < set(taught) and len(own) == 6  # its innermost stage is gone
    terms = {
        "original_loss": F.mse_loss(prediction, v),
        "distillation_loss": F.mse_loss(prediction, answer),
        "feature_loss": sum(F.mse_loss(own[name], taught[name]) for name in own),
    }
    for name, value in terms.items():
        torch.testing.assert_close(objective.logged[name], value.detach())
    torch.testing.assert_close(
        loss, terms["original_loss"] + 0.5 * terms["distillation_loss"] + 2 * terms["feature_loss"]
    )
    assert not any(module._forward_hooks for module in (*student.modules(), *objective.teacher.modules()))


@pytest.mark.parametrize("name", ["sd15", "mobilediffusion", "u-vit-h"])
def test_a_student_that_lacks_nothing_has_nothing_to_learn_from_its_teacher(name):
    teacher = built(small(name))
    objective = objective_of(copy.deepcopy(teacher), teacher)
    loss = objective.generator_loss(batch_of())
    assert objective.logged["distillation_loss"] == objective.logged["feature_loss"] == 0
    assert loss == objective.logged["original_loss"] > 0
    assert set(stages.shapes(*described(small(name)), 8)) == set(teacher.stages)


def described(config):
    return supernet.skeleton(config), config


def test_after_a_removal_there_is_something_to_learn_and_it_is_learnt():
    config = small("pixart", depth=4)
    half = replace(config, depth=2)
    teacher, student = built(config), half.build()
    inheritance.inherit(student, teacher, inheritance.sources(half, config))
    objective = objective_of(
        student, teacher, output_loss_weight=20, feature_loss_weight=20
    )  # it knows nothing of the data
    objective.generator_loss(batch_of())
    before = dict(objective.logged)
    settings = Training(images_seen=480, batch=4, warmup_images=0, learning_rate=0.005)
    train(DenoiserTraining(objective, settings), data(), seed=0, images_seen=480)
    objective.generator_loss(batch_of())
    for name in ("distillation_loss", "feature_loss"):
        assert 0 < objective.logged[name] < 0.95 * before[name], name
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), objective.teacher.parameters(), strict=True))


def test_features_move_what_comes_before_them_and_nothing_after():
    teacher, student = networks("pixart")
    found = {}
    for weight in (0.0, 1.0):
        objective = objective_of(copy.deepcopy(student), teacher, feature_loss_weight=weight)
        objective.generator_loss(batch_of()).backward()
        found[weight] = {name: p.grad for name, p in objective.generator.named_parameters()}
        assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    moved = {name for name in found[0.0] if not torch.equal(found[0.0][name], found[1.0][name])}
    assert moved == {name for name in found[0.0] if not name.startswith(("unpatch", "norm_out", "table_out"))}
    objective = objective_of(copy.deepcopy(student), teacher, feature_loss_weight=0)
    batch = batch_of()
    time, noise = batch.draw(1000)
    noisy, target = schedule.corrupted(objective.schedule, batch.latents, time, noise)
    prediction = objective.generator(noisy, time, batch.text)
    (F.mse_loss(prediction, target) + F.mse_loss(prediction, teacher(noisy, time, batch.text).detach())).backward()
    for name, parameter in objective.generator.named_parameters():
        torch.testing.assert_close(parameter.grad, found[0.0][name])


# --- as a trial, and what is refused ----------------------------------------------------------------------------------

TAUGHT = TRIAL.replace("{name: ufogen, reconstruction: ema_distill}", "feature_distillation").replace(
    "sampling: {solver: one_step}", "sampling: {steps: 2}"
)
PART = backbones.presets()["mobilediffusion"]
WHOLE = PART.to_dict()
WHOLE["levels"][2]["down"] = [3, 3, 3]


def bench_of(folder, init):
    path = folder / "study.yaml"
    base = BASE.format(json.dumps(WHOLE))
    path.write_text(TAUGHT.replace("warmup_images: 0, lora: {rank: 2}", f"warmup_images: 0, init: {init}") + base)
    bench = Small(study_file.load(path), folder)
    bench.prepare()
    base_model.train(bench)
    return bench


def test_a_trial_starts_with_the_bases_weights_and_learns_from_it(tmp_path):
    bench = bench_of(tmp_path, "inherited")
    proxy = bench.scaled(PART.to_dict())  # one of the bottleneck's six blocks fewer
    given, whole = bench.network(proxy, 7).state_dict(), bench.teacher.state_dict()
    assert torch.equal(given["levels.2.up.2.stacks.0.proj_in.weight"], whole["levels.2.up.2.stacks.0.proj_in.weight"])
    assert torch.equal(
        given["levels.2.down.1.conv.separable.norm.weight"], whole["levels.2.down.1.conv.separable.norm.weight"]
    )
    assert len(bench.teacher.levels[2].down) == 3 and all(name in whole for name in given)
    first = rung(bench, tmp_path / "parts", 8, network=PART)["rung"]
    second = rung(bench, tmp_path / "parts", 16, number=1, network=PART)["rung"]
    once = rung(bench, tmp_path / "whole", 16, network=PART)["rung"]
    assert second["denoising_losses"] == once["denoising_losses"] != first["denoising_losses"]
    assert {"original_loss", "distillation_loss", "feature_loss"} <= first["training"].keys() and first["passes"] == 4


CELLS = """
name: cells
architecture: mobilediffusion
dataset: emoji
proxy: {width_divisor: 32}
objective: feature_distillation
training: {images_seen: 64, batch: 4, init: inherited}
base: {architecture: mobilediffusion, training: {images_seen: 8, batch: 4}}
metrics: [clip_score]
ablation:
  design: one_factor
  factors: {middle: {field: architecture.levels.2.down, levels: [[3, 3], [3]]}}
  minimise: [denoising_loss]
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["base=null", "training.init=scratch"], ["objective: ", "learns from a base", "no base section"]),
        (["base=null", "objective=denoising"], ["training.init: ", "inherited: the study has no base section"]),
        (["ablation.factors.middle={field: architecture.levels.2.channels, levels: [1024, 512]}"],
         ["training.init: ", "cell 'middle=512'", "not the base with blocks removed"]),
        (["ablation.factors.middle={field: architecture.levels.2.channels, levels: [1024, 512]}", "training.init=scratch"],
         ["cell 'middle=512'", "objective.feature_loss_weight: ", "stage levels.2.down", "16x16x16", "32x16x16"]),
        (["objective={name: feature_distillation, output_loss_weight: 0, feature_loss_weight: 0}"],
         ["objective", "both 0", "expected objective denoising"]),
        (["base.architecture=pixart", "base.training.init=scratch", "proxy.width_divisor=8", "training.init=scratch"],
         ["stage levels.0.down", "has no such stage"]),
        (["objective={name: feature_distillation, prediction: epsilon}"], ["objective.prediction", "'epsilon'", "'v'"]),
        (["base.training.init=inherited"], ["base.training.init", "cannot start from itself"]),
        (["training.init=base", "objective=denoising"], ["another architecture", "training.init: inherited"]),
        (["training.block_drop={probability: 0.6}"], ["training.block_drop.probability", "0.6"]),
        (["training.block_drop={chance: 0.6}"], ["training.block_drop.chance"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_trained(tmp_path, options, words):
    path = tmp_path / "study.yaml"
    path.write_text(CELLS)
    with pytest.raises(InputError) as caught:
        check.check(study_file.load(path, options), None)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_work_is_not_refused(tmp_path, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text(CELLS)
    narrow = "ablation.factors.middle={field: architecture.levels.2.channels, levels: [1024, 512]}"
    outputs = "objective={name: feature_distillation, feature_loss_weight: 0}"
    for options in ([], ["training.init=scratch"], ["objective=denoising", "training.block_drop={}"]):
        check.check(study_file.load(path, options), None)
    check.check(study_file.load(path, [narrow, outputs, "training.init=scratch"]), None)
    monkeypatch.setattr(check, "PROBES", 20)
    space, goals = SearchSpace.load("mobilediffusion"), "search={trials: 2, minimise: [denoising_loss, macs]}"
    searched = ["ablation=null", "space=mobilediffusion", "architecture=null", goals]
    with pytest.raises(InputError, match="training.init: inherited: the network is not the base with blocks removed"):
        check.check(study_file.load(path, searched), space)
