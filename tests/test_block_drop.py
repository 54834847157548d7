"""Leaving blocks out of an update: against networks that were built without them, closed forms, and trainings that were cut."""

from dataclasses import replace

import pytest
import torch
from test_training import Denoiser, assert_identical, on_the_cpu, weights  # noqa: F401 (fixtures)

from nas.diffusion import schedule
from nas.errors import InputError
from nas.networks import backbones
from nas.networks.backbones import Proxy
from nas.networks.conditioning import Text
from nas.objectives import denoising
from nas.settings.training import BlockDrop, Training
from nas.training import block_drop
from nas.training.encoded import EncodedSet
from nas.training.loop import DenoiserTraining, train
from nas.weights.checkpoints import copy_agreeing

SIDE, TOKENS = 8, 5
PROXIES = {
    "mobilediffusion": Proxy(16, 4, 16, 12),
    "sd15": Proxy(40, 4, 16, 12),
    "pixart": Proxy(24, 4, 16, 12),
    "u-vit-h": Proxy(24, 4, 16, 12),
}


def small(name, **changes):
    config = backbones.presets()[name].scaled(PROXIES[name])
    return replace(config, **({"depth": 5} if hasattr(config, "depth") else {}) | changes)


def built(config, noise=0.1):
    """A network whose zero layers are zero no more."""
    torch.manual_seed(0)
    network = config.build().eval()
    for parameter in network.parameters():
        parameter.data += noise * torch.randn(parameter.shape)
    return network


def inputs():
    generator = torch.Generator().manual_seed(1)
    text = Text(torch.randn(2, TOKENS, 16, generator=generator), torch.randn(2, 12, generator=generator))
    return torch.randn(2, 4, SIDE, SIDE, generator=generator), torch.tensor([3.0, 700.0]), text


@torch.no_grad()
def without(network, dropped):
    """What the network predicts without its members whose names start with one of these, and their number."""
    blocks = block_drop.blocks_of(network)
    names = {module: name for name, module in network.named_modules()}
    mask = torch.tensor([names[block].startswith(dropped) for block in blocks.members])
    with block_drop.dropping(blocks, mask):
        return network(*inputs()), int(mask.sum())


@pytest.mark.parametrize("name", PROXIES)
def test_with_all_blocks_it_is_the_plain_network_to_the_bit_and_is_so_again(name):
    network = built(small(name))
    blocks = block_drop.blocks_of(network)
    plain = network(*inputs())
    assert torch.equal(without(network, ("no such block",))[0], plain)
    with block_drop.dropping(blocks, torch.ones(len(blocks.members), dtype=torch.bool)):
        assert not torch.equal(network(*inputs()), plain)
    assert torch.equal(network(*inputs()), plain)
    assert not any("forward" in vars(module) for module in network.modules())


def test_a_block_whose_branch_is_zero_is_not_missed():
    """A fresh UNet of full convolutions: its last layers in every block and stack are zero."""
    network = built(small("sd15"), noise=0.0)
    torch.nn.init.normal_(network.output.weight)
    plain, generator = network(*inputs()), torch.Generator().manual_seed(0)
    blocks = block_drop.blocks_of(network)
    for _ in range(3):
        with block_drop.dropping(blocks, block_drop.drawn(len(blocks.members), 0.5, generator)):
            assert torch.equal(network(*inputs()), plain)


# --- against networks that were built without the blocks --------------------------------------------------------------


@pytest.mark.parametrize("projections", ["stack", "block"])
def test_without_transformer_blocks_it_is_the_unet_that_was_built_without_them(projections):
    """The last of two in a stack; and both, with which the projections around them go."""
    config = replace(small("sd15"), projections=projections, mid=(2, 0))
    network = built(config)
    second = "mid.0.stacks.0.blocks.1" if projections == "stack" else "mid.0.stacks.1."
    for dropped, mid in (((second,), (1, 0)), (("mid.0.stacks",), (0, 0)), (("mid.1.",), (2,))):
        smaller = replace(config, mid=mid).build().eval()
        copy_agreeing(network, smaller)
        found, count = without(network, dropped)
        assert torch.equal(found, smaller(*inputs())) and count == (2 if mid == (0, 0) else 1)


@pytest.mark.parametrize("name", ["pixart", "u-vit-h"])
def test_without_its_last_blocks_a_transformer_is_the_shallower_one(name):
    config = small(name, depth=4, skips=False)
    network, shallow = built(config), replace(config, depth=3).build().eval()
    copy_agreeing(network, shallow)
    assert torch.equal(without(network, ("blocks.3",))[0], shallow(*inputs()))


def test_a_block_that_changes_the_width_leaves_its_shortcut_alone():
    network = built(small("mobilediffusion"))
    first = network.levels[2].down[0].conv["separable"]  # from 40 to 64 channels
    x, time = torch.randn(2, 40, 4, 4), torch.randn(2, 80)
    torch.testing.assert_close(
        first.skipped(x, time), first(x, time) - first.branch(x) - first.time(time)[..., None, None]
    )
    kinds = {type(block).__name__ for block in block_drop.blocks_of(network).members}
    assert kinds == {"FullConv", "SeparableConv", "TransformerBlock"}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_blocks_go_alone_and_as_often_as_asked():
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([block_drop.drawn(40, 0.2, generator) for _ in range(4000)]).float()
    assert masks.mean(0) == pytest.approx(torch.full((40,), 0.2), abs=0.025)  # 4 standard deviations
    assert torch.corrcoef(masks.T).fill_diagonal_(0).abs().max() < 0.08
    assert masks.sum(1).var() == pytest.approx(40 * 0.2 * 0.8, rel=0.1)  # of a binomial


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_at_most_half_go_at_once(count):
    generator = torch.Generator().manual_seed(0)
    masks = [block_drop.drawn(count, 0.5, generator) for _ in range(300)]
    gone = [int(mask.sum()) for mask in masks]
    assert max(gone) == count // 2
    assert count < 2 or torch.stack(masks).any(0).all()


# --- in a training ----------------------------------------------------------------------------------------------------

TRAINING = {"images_seen": 64, "batch": 4, "warmup_images": 0, "learning_rate": 0.01}


def data(count=20):
    generator = torch.Generator().manual_seed(0)
    tokens, pooled = torch.randn(4, TOKENS, 16, generator=generator), torch.randn(4, 12, generator=generator)
    latents = torch.randn(count, 4, SIDE, SIDE, generator=generator)
    return EncodedSet(latents, torch.arange(count) % 3, ("a", "b", "c", ""), tokens.half(), pooled.half())


def module_of(**settings):
    objective = denoising.Objective(built(small("u-vit-h", depth=6)), None, schedule.Settings())
    return DenoiserTraining(objective, Training(**TRAINING, **settings))


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    drop = BlockDrop(probability=0.5, rise_images=32)
    whole, part, rest = (module_of(block_drop=drop) for _ in range(3))
    train(whole, data(), seed=3, images_seen=64)
    train(part, data(), seed=3, images_seen=20)
    part.save(tmp_path / "checkpoint.safetensors", {})
    rest.restore(tmp_path / "checkpoint.safetensors")
    train(rest, data(), seed=3, images_seen=64)
    assert_identical(weights(rest), weights(whole))
    assert rest.kept == whole.kept
    plain = module_of()
    train(plain, data(), seed=3, images_seen=64)
    name = "network.generator.blocks.0.norm_self.weight"
    assert not torch.equal(weights(plain)[name], weights(whole)[name])
    assert "blocks_dropped" not in plain.logged() and plain.kept == {}


def test_the_chance_rises_linearly_and_what_is_left_out_does_not_learn(monkeypatch):
    asked = []

    def drawn(count, probability, generator):
        asked.append(probability)
        return torch.arange(count) == 2

    monkeypatch.setattr(block_drop, "drawn", drawn)
    module = module_of(block_drop=BlockDrop(probability=0.4, rise_images=32))
    before = weights(module)
    train(module, data(), seed=0, images_seen=48)
    assert asked == pytest.approx([0.05 * i for i in range(1, 9)] + [0.4] * 4)
    after = weights(module)
    still = {name for name in before if name.startswith("network.") and torch.equal(before[name], after[name])}
    own = {name for name in before if name.startswith("network.generator.blocks.2.")}
    assert still == own and own
    assert module.logged()["blocks_dropped"] == 1
    names = block_drop.blocks_of(module.objective.generator).names
    assert module.kept == {name: 0 if place == 2 else 12 for place, name in enumerate(names)}


def test_what_is_recorded_without_it_is_what_was_recorded_before_it():
    assert "block_drop" not in Training().model_dump() and "block_drop" not in Training().model_dump(mode="json")
    given = Training(block_drop=BlockDrop(probability=0.1))
    assert given.model_dump(mode="json")["block_drop"] == {"probability": 0.1, "rise_images": 0}
    assert Training.model_validate(given.model_dump()) == given and Training().model_dump()["lora"] is None


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(InputError, match=r"training\.block_drop: the network has 0 blocks .* expected at least 2"):
        block_drop.check(Denoiser())
    with pytest.raises(InputError, match="has 1 blocks"):
        block_drop.check(small("pixart", depth=1).build())
    block_drop.check(small("pixart", depth=2).build())
