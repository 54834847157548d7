"""Slices: a member read off the supernet is the stand-alone network with the sliced weights."""

import copy
import json
import random
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from nas.errors import InputError
from nas.networks.backbones import Proxy
from nas.networks.conditioning import Text
from nas.settings import training
from nas.space.search_space import SearchSpace
from nas.training import loop
from nas.training.batches import Batches
from nas.training.encoded import EncodedSet
from nas.trial import supernet_training
from nas.weights import supernet

PROXY = Proxy(width_divisor=16, latent_channels=4, text_width=24, pooled_width=16)


@pytest.fixture(scope="module")
def space():
    return SearchSpace.load("mobilediffusion")


@pytest.fixture(scope="module")
def whole(space):
    net = supernet.Supernet.covering(space, PROXY)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.05, generator=generator)
    return net


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = Text(torch.randn(2, 5, 24, generator=generator), torch.randn(2, 16, generator=generator))
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3, 700]), text


def test_a_member_gives_the_outputs_of_the_network_with_its_sliced_weights(space, whole):
    """To rounding: slices lie otherwise in memory, and a processor's libraries may add in another order."""
    rng = random.Random(0)
    for _ in range(10):
        config = space.architecture(space.sample(rng)).scaled(PROXY)
        member = supernet.skeleton(config)
        alone = config.build().eval()
        alone.load_state_dict(whole.weights_of(member))
        with torch.no_grad():
            expected = alone(*inputs())
            largest = float(expected.abs().max())
            torch.testing.assert_close(whole.call(member, *inputs()), expected, rtol=0, atol=1e-5 * largest)


def test_a_members_parameters_are_the_closed_forms(space, whole):
    rng = random.Random(1)
    for _ in range(10):
        config = space.architecture(space.sample(rng)).scaled(PROXY)
        sliced = whole.weights_of(supernet.skeleton(config))
        assert sum(weight.numel() for weight in sliced.values()) == config.cost(8, 5).params


OUTER = """
backbone: unet
base: mobilediffusion
axes:
  outer_conv: {fields: [levels.0.conv, levels.1.conv], choices: [full, separable]}
  kernel: {fields: levels.1.kernel, choices: [3, 5, 7], when: {outer_conv: separable}}
  expansion: {fields: expansion, choices: [2, 4, 6], when: {kernel: [5, 7]}}
"""


TOKENS = """
backbone: unet
base: mobilediffusion
axes:
  tokens: {fields: pooled_tokens, choices: [0, 4, 10]}
"""


def test_a_member_makes_the_first_of_the_tokens_of_the_pooled_vector(tmp_path):
    (tmp_path / "tokens.yaml").write_text(TOKENS)
    space = SearchSpace.load(tmp_path / "tokens.yaml")
    whole = supernet.Supernet.of(space, PROXY, seed=0)
    weight = whole.weights_of(supernet.skeleton(space.architecture({"tokens": 10}).scaled(PROXY)))[LAYER]
    for tokens in (4, 10):
        config = space.architecture({"tokens": tokens}).scaled(PROXY)
        sliced = whole.weights_of(supernet.skeleton(config))
        assert sum(tensor.numel() for tensor in sliced.values()) == config.cost(8, 5).params
        assert torch.equal(sliced[LAYER], weight[: tokens * PROXY.text_width])
    assert LAYER not in whole.weights_of(supernet.skeleton(space.architecture({"tokens": 0}).scaled(PROXY)))


LAYER = "pooled_tokens.weight"


@pytest.mark.parametrize("name", ["mobilediffusion_full", "outer"])
def test_every_member_is_covered_where_axes_depend_on_others(name, tmp_path):
    (tmp_path / "outer.yaml").write_text(OUTER)
    space = SearchSpace.load(name if name != "outer" else tmp_path / "outer.yaml")
    space = replace(space, axes=tuple(axis for axis in space.axes if axis.when or axis in space.deciding))
    whole, rng = supernet.Supernet.covering(space, PROXY), random.Random(1)
    for _ in range(12):
        config = space.architecture(space.sample(rng)).scaled(PROXY)
        sliced = whole.weights_of(supernet.skeleton(config))
        assert sum(weight.numel() for weight in sliced.values()) == config.cost(8, 5).params


def test_a_missing_choice_of_an_axis_that_depends_on_others_is_named(tmp_path):
    narrow = tmp_path / "narrow" / "outer.yaml"
    narrow.parent.mkdir()
    narrow.write_text(OUTER.replace("[3, 5, 7], when", "[3, 5], when").replace("[5, 7]", "[5]"))
    (tmp_path / "outer.yaml").write_text(OUTER)
    weights = tmp_path / "weights.safetensors"
    made = supernet.Supernet.of(SearchSpace.load(narrow), PROXY)
    made.save(weights, dict(made.named_parameters()), {"space": "outer", "proxy": json.dumps(asdict(PROXY))})
    supernet.require_covers(weights, SearchSpace.load(narrow), PROXY)
    with pytest.raises(InputError, match="does not cover axis 'kernel' of space 'outer' at 7"):
        supernet.require_covers(weights, SearchSpace.load(tmp_path / "outer.yaml"), PROXY)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as supernet weights"):
        supernet.Supernet.load(weights)


DEEP = "[" * 100_000
SHAPES = {
    "[]": "shapes: Input should be an object",
    "null": "shapes: Input should be an object",
    '{"w": [4]}': "shapes: w.0: Input should be a valid array",
    '{"w": [["4"], [8]]}': "shapes: w.0.0: Input should be a valid integer",
    '{"w": [[-4], [8]]}': "shapes: w is (4, 8), not (-4, 8)",
    '{"w": [[1000000000000], [8]]}': "shapes: w is (4, 8), not (1000000000000, 8)",
    '{"v": [[4], [8]]}': "shapes: v is (0,), not (4, 8)",
    "{}": "Unexpected key(s)",
    DEEP: "shapes: maximum recursion depth",
}


@pytest.mark.parametrize("shapes", SHAPES, ids=lambda text: text[:30])
def test_shapes_that_are_none_of_the_tensors_are_refused_before_anything_is_made(shapes, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weights.w": torch.zeros(4, 8)}, path, {"shapes": shapes})
    with pytest.raises(InputError) as error:
        supernet.Supernet.load(path)
    assert str(error.value).startswith(f"{path}: cannot be read as supernet weights: ")
    assert SHAPES[shapes] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("[]", "proxy: Input should be an object"),
        ("{}", "proxy: width_divisor: Field required"),
        (json.dumps({**asdict(PROXY), "width_divisor": 0}), "proxy: proxy: width_divisor=0 must be at least 1"),
        (json.dumps({**asdict(PROXY), "text_width": "24"}), "proxy: text_width: Input should be a valid integer"),
        ("{", "proxy: Expecting property name"),
        (DEEP, "proxy: maximum recursion depth"),
    ],
    ids=lambda text: text[:30],
)
def test_a_proxy_that_is_none_is_one_line(proxy, words, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weights.w": torch.zeros(4, 8)}, path, {"shapes": '{"w": [[4], [8]]}', "space": "s", "proxy": proxy})
    for use in (
        lambda: supernet.initialise(torch.nn.Identity(), path, "s", PROXY),
        lambda: supernet.check_covers(SearchSpace.load("mobilediffusion").base, path, "s", 16),
    ):
        with pytest.raises(InputError) as error:
            use()
        assert str(path) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_narrower_members_take_the_leading_channels_of_each_part():
    whole = supernet.Supernet({"w": ((4,), (3, 5))})
    with torch.no_grad():
        whole.weights["w"].copy_(torch.arange(32.0).view(4, 8))
    got = supernet._slice(whole.weights["w"], whole.shapes["w"], ((2,), (2, 1)))
    assert got.tolist() == [[0, 1, 3], [8, 9, 11]]


def test_smaller_kernels_are_the_middle_of_larger_ones():
    kernel = torch.arange(25.0).view(1, 1, 5, 5)
    got = supernet._slice(kernel, ((1,), (1,), (5,), (5,)), ((1,), (1,), (3,), (3,)))
    assert got.tolist() == kernel[:, :, 1:4, 1:4].tolist()


def test_assigning_a_member_and_reading_it_back_is_the_identity(space, whole):
    whole = copy.deepcopy(whole)
    config = space.architecture(space.sample(random.Random(5))).scaled(PROXY)
    torch.manual_seed(9)
    network = config.build()
    whole.assign(network)
    back = whole.weights_of(supernet.skeleton(config))
    assert all(torch.equal(back[name], weight) for name, weight in network.state_dict().items())


def test_gradients_reach_the_slices_of_the_member_and_nothing_else(space, whole):
    config = space.architecture(space.smallest()).scaled(PROXY)
    member = supernet.skeleton(config)
    whole.zero_grad()
    whole.call(member, *inputs()).square().mean().backward()
    own = {supernet._flat(name) for name in supernet.shapes_of(member)}
    touched = {name for name, weight in whole.weights.items() if weight.grad is not None}
    assert touched == own
    width = whole.weights["levels/2/down/1/conv/separable/depthwise/weight"]
    if width.grad is not None:
        assert width.grad[48:].abs().sum() == 0  # 768 / 16 leading channels of 80


def test_saved_weights_come_back_in_half_precision(space, whole, tmp_path):
    path = tmp_path / "weights.safetensors"
    whole.save(path, whole.state_dict(), {"space": "mobilediffusion"})
    loaded, metadata = supernet.Supernet.load(path)
    assert metadata == {"space": "mobilediffusion"}
    for name, weight in whole.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float())


def test_weights_of_another_space_or_proxy_are_refused(space, whole, tmp_path):
    path = tmp_path / "weights.safetensors"
    whole.save(path, whole.state_dict(), {"space": "mobilediffusion", "proxy": json.dumps(asdict(PROXY))})
    network = space.architecture(space.smallest()).scaled(PROXY).build()
    supernet.initialise(network, path, "mobilediffusion", PROXY)
    with pytest.raises(InputError, match="width_divisor 16, not 8"):
        supernet.initialise(network, path, "mobilediffusion", Proxy(8, 4, 24, 16))
    with pytest.raises(InputError, match="space 'mobilediffusion', not 'other'"):
        supernet.initialise(network, path, "other", PROXY)


def test_a_network_the_supernet_does_not_cover_is_named(whole):
    from nas.networks.backbones.unet import presets

    with pytest.raises(InputError, match="does not cover"):
        whole.weights_of(supernet.skeleton(presets()["sd15"].scaled(Proxy(8, 4, 24, 16))))


SMALL = """
backbone: unet
base:
  levels:
    - {channels: 512, down: [0], up: [0]}
    - {channels: 512, down: [1], up: [1], cross_attention: true}
axes:
  width: {fields: levels.1.channels, choices: [512, 768]}
  conv: {fields: levels.0.conv, choices: [full, separable]}
"""


@pytest.mark.parametrize("members", [1, 2])
def test_sandwich_updates_are_reproducible_and_lower_the_loss(tmp_path, members):
    (tmp_path / "small.yaml").write_text(SMALL)
    space = SearchSpace.load(tmp_path / "small.yaml")
    fresh = supernet.Supernet.of(space, PROXY, seed=0)
    data = EncodedSet(
        latents=torch.ones(8, 4, 8, 8),
        caption_of=torch.zeros(8, dtype=torch.int64),
        captions=("a", ""),
        tokens=torch.zeros(2, 5, 24).half(),
        pooled=torch.zeros(2, 16).half(),
    )
    pool = [space.architecture(choices).scaled(PROXY) for choices in space.enumerate()]
    settings = training.Training(batch=8, warmup_images=0, ema_decay=0.5)

    def loss_after(images):
        objective = supernet_training.Sandwich(copy.deepcopy(fresh), pool, members)
        module = loop.DenoiserTraining(objective, settings)
        loop.train(module, data, 0, images)
        batches = Batches(data, settings, 1, 0, 8)
        return sum(float(objective.generator_loss(batch).detach()) for batch in batches)

    untrained, trained = loss_after(0), loss_after(96)
    assert trained == loss_after(96)
    assert trained < 0.8 * untrained
