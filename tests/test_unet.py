"""The UNet: counts of the published layouts, the same numbers as diffusers' class, and the algebra of its description."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.networks.backbones import Proxy, unet
from nas.networks.backbones.unet import Config, Level
from nas.networks.conditioning import Text

PRESETS = unet.presets()
GOLDEN = {
    "mobilediffusion": 386_028_616,
    "mobilediffusion-lite": 277_975_880,
    "sd15": 859_520_964,
    "bk-sdm-base": 579_384_964,
    "bk-sdm-small": 482_346_884,
    "bk-sdm-tiny": 323_384_964,
    "snapfusion": 759_327_364,
}
TINY = Proxy(width_divisor=8, latent_channels=4, text_width=16, pooled_width=12)


def inputs(config, size=8, batch=1, tokens=7):
    return (
        torch.randn(batch, config.latent_channels, size, size),
        torch.randint(0, 1000, (batch,)),
        Text(torch.randn(batch, tokens, config.text_width), torch.randn(batch, config.pooled_width or 1)),
    )


def randomised(network):
    """With every parameter away from zero, so that every layer shows in the output."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_of_published_layouts(name):
    with torch.device("meta"):
        network = PRESETS[name].build()
    assert sum(p.numel() for p in network.parameters()) == GOLDEN[name]


def test_every_preset_has_a_golden_count():
    assert set(GOLDEN) == set(PRESETS)


# One change at a time from layout L-A, counted by two independent implementations: parameters and MACs in millions.
def _changed(index, **fields):
    config = PRESETS["mobilediffusion"]
    levels = list(config.levels)
    levels[index] = replace(levels[index], **fields)
    return replace(config, levels=tuple(levels))


SENSITIVITY = [
    (replace(PRESETS["mobilediffusion"], pooled_width=None), 383.40, 184.43),
    (replace(PRESETS["mobilediffusion"], skips="all"), 402.97, 188.77),
    (replace(PRESETS["mobilediffusion"], expansion=2), 365.83, 179.27),
    (replace(PRESETS["mobilediffusion"], time_width=1024), 382.52, 184.43),
    (replace(PRESETS["mobilediffusion"], shared_kv=False), 401.76, None),
    (replace(PRESETS["mobilediffusion"], latent_channels=4), 386.01, 184.34),
    (_changed(2, channels=896), 315.86, 164.56),
    (_changed(2, channels=1280), 552.41, 231.53),
    (_changed(2, conv="full"), 436.44, 197.34),
    (_changed(1, conv="separable"), 370.50, 168.52),
    (_changed(1, self_attention=True), 389.72, 192.24),
]


@pytest.mark.parametrize(("config", "params", "macs"), SENSITIVITY)
def test_one_change_from_the_published_layout(config, params, macs):
    cost = config.cost(64, 77)
    assert round(cost.params / 1e6, 2) == params
    assert macs is None or round(cost.macs / 1e9, 2) == macs


# -- against diffusers -----------------------------------------------------------------------------------------------


def diffusers_unet(config, **kwargs):
    from diffusers import UNet2DConditionModel

    cross = [level.attends and any(level.down) for level in config.levels]
    return UNet2DConditionModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=tuple(level.channels for level in config.levels),
        layers_per_block=len(config.levels[0].down),
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in cross),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(cross)),
        mid_block_type="UNetMidBlock2DCrossAttn" if config.mid else None,
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,
        norm_num_groups=config.groups,
        **kwargs,
    )


@pytest.mark.parametrize("name", ["sd15", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"])
def test_same_parameter_count_as_diffusers(name):
    with torch.device("meta"):
        theirs = diffusers_unet(PRESETS[name])
    assert sum(p.numel() for p in theirs.parameters()) == PRESETS[name].cost(64, 77).params


RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


def copy_from_diffusers(ours, theirs):
    """Load diffusers' weights layer by layer, along both networks' structure."""
    pairs = [
        (ours.embedding.time[0], theirs.time_embedding.linear_1),
        (ours.embedding.time[2], theirs.time_embedding.linear_2),
        (ours.conv_in, theirs.conv_in),
        (ours.norm_out, theirs.conv_norm_out),
        (ours.conv_out, theirs.conv_out),
    ]
    for index, level in enumerate(ours.levels):
        down, up = theirs.down_blocks[index], theirs.up_blocks[-1 - index]
        pairs += blocks(level.down, down) + blocks(level.up, up)
        if level.downsample is not None:
            pairs.append((level.downsample, down.downsamplers[0].conv))
        if level.upsample is not None:
            pairs.append((level.upsample, up.upsamplers[0].conv))
    if len(ours.mid):
        pairs += blocks(ours.mid, theirs.mid_block)
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    return ours


def blocks(mine, theirs):
    attentions = iter(getattr(theirs, "attentions", None) or [])
    pairs = []
    for block, resnet in zip(mine, theirs.resnets, strict=True):
        conv = block.conv["full"]
        pairs += [
            (getattr(conv, a), getattr(resnet, b)) for a, b in RESNET.items() if getattr(resnet, b, None) is not None
        ]
        for stack in block.stacks:
            pairs += transformer(stack, next(attentions))
    return pairs


def transformer(stack, other):
    pairs = [(stack.norm, other.norm), (stack.proj_in, other.proj_in), (stack.proj_out, other.proj_out)]
    for block, theirs in zip(stack.blocks, other.transformer_blocks, strict=True):
        pairs += [(block.norm_self, theirs.norm1), (block.norm_cross, theirs.norm2), (block.norm_ffn, theirs.norm3)]
        for attention, reference in ((block.attend_self, theirs.attn1), (block.attend_cross, theirs.attn2)):
            pairs += [(attention.get_submodule(a), reference.get_submodule(b)) for a, b in ATTENTION.items()]
        pairs += [(block.ffn.expand, theirs.ff.net[0].proj), (block.ffn.project, theirs.ff.net[2])]
    return pairs


@pytest.mark.parametrize("name", ["sd15", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"])
def test_same_output_as_diffusers(name):
    torch.manual_seed(0)
    config = PRESETS[name].scaled(TINY)
    theirs = randomised(diffusers_unet(config)).eval()
    ours = copy_from_diffusers(config.build(), theirs)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    latents, time, text = inputs(config, size=16, batch=2)
    with torch.no_grad():
        expected = theirs(latents, time, text.tokens).sample
        got = ours(latents, time, text)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_proxy_of_every_preset_runs(name):
    torch.manual_seed(0)
    config = PRESETS[name].scaled(TINY)
    network = randomised(config.build())
    latents, time, text = inputs(config, batch=2)
    prediction = network(latents, time, text)
    assert prediction.shape == latents.shape
    prediction.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_new_network_predicts_zero():
    network = PRESETS["mobilediffusion"].scaled(TINY).build()
    prediction = network(*inputs(network.config))
    assert prediction.abs().max() == 0


def test_padded_tokens_are_not_attended_to_by_relu_and_carry_no_value_in_softmax():
    config = replace(PRESETS["mobilediffusion"], attention="relu").scaled(TINY)
    torch.manual_seed(0)
    network = randomised(config.build())
    latents, time, text = inputs(config, tokens=6)
    attention = network.levels[2].down[0].stacks[0].blocks[0].attend_cross
    context = torch.cat([text.tokens, torch.zeros(1, 4, config.text_width)], dim=1)
    x = torch.randn(1, 4, config.levels[2].channels)
    bias = attention.to_out.bias
    shorter, longer = attention(x, text.tokens) - bias, attention(x, context) - bias
    torch.testing.assert_close(longer * 10, shorter * 6)


def test_parts_add_up_and_mark_every_concatenation():
    config = PRESETS["mobilediffusion"].scaled(TINY)
    network = config.build()
    first = network.levels[1].up[0].conv["full"]
    assert first.norm1.in_parts == first.conv1.in_parts == first.shortcut.in_parts == (128, 80)
    assert network.levels[2].down[0].stacks[0].blocks[0].ffn.expand.out_parts == (384, 384)
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "in_parts"):
            axis = 0 if weight.dim() == 1 or getattr(module, "groups", 1) > 1 else 1
            assert sum(module.in_parts) == weight.shape[axis]
        if hasattr(module, "out_parts"):
            assert sum(module.out_parts) == weight.shape[0]


def test_members_of_a_space_share_the_names_of_what_they_share():
    small = PRESETS["mobilediffusion-lite"].scaled(TINY).build()
    large = PRESETS["mobilediffusion"].scaled(TINY).build()
    assert set(small.state_dict()) < set(large.state_dict())


# -- the description -------------------------------------------------------------------------------------------------


def outer(**fields):
    return Level(64, (1,), (1, 1), **fields)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (outer(), outer(ffn_ratio=2)),
        (outer(), Level(64, (0,), (0, 0), self_attention=True)),
        (outer(), Level(64, (3,), (2, 1))),
    ],
)
def test_equal_networks_have_one_spelling(a, b):
    first, second = (
        Config(levels=(a, outer())),
        Config(levels=(b, outer(ffn_ratio=4)), shared_kv=False, attention="relu"),
    )
    assert first.canonical() == second.canonical()
    assert first.key == second.key


def test_heads_and_head_dim_are_one_spelling_where_they_agree():
    attending = replace(outer(), self_attention=True)
    assert Config(levels=(attending,), head_dim=16).key == Config(levels=(attending,), head_dim=None, heads=4).key


def test_key_is_pinned():
    """Journals hold keys: a new field with a default must not change them."""
    assert PRESETS["mobilediffusion"].key == "f239c4468a62"
    assert PRESETS["sd15"].key == "44b528641d45"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": ()}, "levels is empty"),
        ({"levels": (replace(outer(), channels=100),)}, "levels.0.channels=100 is not divisible by groups=32"),
        ({"levels": (replace(outer(self_attention=True), channels=96),)}, "levels.0.channels=96 .* head_dim=64"),
        ({"heads": 4}, "one of head_dim=64 and heads=4"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"groups": 0}, "groups=0"),
        ({"mid": (-1,)}, "mid="),
    ],
)
def test_impossible_values_are_refused_with_the_values(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**({"levels": (outer(),)} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": 4}, "kernel=4 must be odd"),
        ({"down": ()}, "at least one conv block"),
        ({"up": (-1,)}, "cannot be negative"),
        ({"conv": "dense"}, "conv='dense'"),
        ({"channels": 0}, "channels=0"),
    ],
)
def test_impossible_levels_are_refused_with_the_values(fields, message):
    with pytest.raises(ValueError, match=message):
        Level(**({"channels": 64, "down": (1,), "up": (1,)} | fields))


def test_scaling_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match=r"levels.0.channels=320 is not divisible by the proxy's width_divisor=7"):
        PRESETS["mobilediffusion"].scaled(replace(TINY, width_divisor=7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [{"channels": 64, "down": [1], "up": [1], "widht": 3}]}, r"levels.0.widht"),
        ({"levels": [{"channels": "64", "down": [1], "up": [1]}]}, r"levels.0.channels"),
        ({"levels": [{"channels": True, "down": [1], "up": [1]}]}, r"levels.0.channels"),
        ({"levels": [{"channels": 64, "down": [1], "up": [1]}], "grups": 3}, "grups"),
    ],
)
def test_unknown_fields_and_wrong_types_name_their_path(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(change)


@pytest.mark.parametrize("name", PRESETS)
def test_dict_round_trip(name):
    assert Config.from_dict(PRESETS[name].to_dict()) == PRESETS[name]


LEVELS = st.builds(
    Level,
    channels=st.sampled_from([64, 128]),
    down=st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple),
    up=st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple),
    self_attention=st.booleans(),
    cross_attention=st.booleans(),
    conv=st.sampled_from(["full", "separable"]),
    kernel=st.sampled_from([1, 3, 5]),
    ffn_ratio=st.integers(1, 4),
)
CONFIGS = st.builds(
    Config,
    levels=st.lists(LEVELS, min_size=1, max_size=3).map(tuple),
    mid=st.lists(st.integers(0, 2), max_size=2).map(tuple),
    latent_channels=st.integers(1, 8),
    text_width=st.sampled_from([16, 48]),
    pooled_width=st.sampled_from([None, 24]),
    time_width=st.sampled_from([32, 64]),
    shared_kv=st.booleans(),
    activation=st.sampled_from(["gelu", "swish"]),
    attention=st.sampled_from(["softmax", "relu"]),
    projections=st.sampled_from(["stack", "block"]),
    skips=st.sampled_from(["outer", "all"]),
    expansion=st.integers(1, 4),
)


@given(CONFIGS)
@settings(max_examples=60, deadline=None)
def test_canonical_form_is_the_same_network(config):
    canonical = config.canonical()
    assert canonical.canonical() == canonical
    assert canonical.key == config.key
    assert canonical.cost(16, 5) == config.cost(16, 5)


@given(CONFIGS)
@settings(max_examples=12, deadline=None)
def test_any_network_runs(config):
    with torch.device("meta"):
        network = config.build()
        latents, time, text = inputs(config, batch=2)
        assert network(latents, time, text).shape == latents.shape
