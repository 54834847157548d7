"""What the rest relies on in every backbone; a new file in nas/networks/backbones is tested without being asked."""

from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nas import menu
from nas.cost.traced import second_opinion, traced_by_module
from nas.deploy import graphs
from nas.networks import backbones
from nas.networks.backbones import Proxy
from nas.networks.conditioning import Text

PROXY = Proxy(width_divisor=8, latent_channels=4, text_width=16, pooled_width=12)
CASES = [
    pytest.param(menu.pick("backbones", backbone), name, id=f"{backbone}-{name}")
    for backbone in menu.names("backbones")
    for name in menu.pick("backbones", backbone).presets()
]

SIDE, TOKENS = 16, 7


def inputs(config, size, batch, tokens=TOKENS):
    text = Text(torch.randn(batch, tokens, config.text_width), torch.randn(batch, config.pooled_width or 1))
    return torch.randn(batch, config.latent_channels, size, size), torch.randint(0, 1000, (batch,)), text


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_description_is_plain_canonical_and_hashable(backbone, name):
    config = backbone.presets()[name]
    assert backbone.Config.from_dict(config.to_dict()) == config
    assert config.canonical().canonical() == config.canonical()
    assert config.key == config.canonical().key
    assert len({config, config.canonical(), config}) <= 2


@cache
def traced(config, size=SIDE, tokens=TOKENS):
    """What two counters find: one by module, the other in all, of attention too, which a fused kernel would hide from it."""
    network, given = config.build(), inputs(config, size, 1, tokens)
    with sdpa_kernel(SDPBackend.MATH):
        whole = second_opinion(network, *given)
    return traced_by_module(network, *given), whole


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_cost_is_what_tracing_counts(backbone, name):
    config = backbone.presets()[name].scaled(PROXY)
    total, (modules, whole) = config.cost(SIDE, TOKENS), traced(config)
    assert total == modules[""]
    assert total.macs == whole


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_what_units_cost_is_what_tracing_counts(backbone, name):
    config = backbone.presets()[name].scaled(PROXY)
    found, (modules, _) = config.units(SIDE, TOKENS), traced(config)
    assert found.network.macs == modules[""].macs
    for unit in found.members:
        inside = [unit, *(one for one in found.members if one.inside == unit.name)]
        if unit.method == "forward":  # what a hook on the module can count
            assert sum(one.own.macs for one in inside) == modules[unit.name].macs, unit.name
        else:
            module = modules[unit.name].macs
            own = found.members[found.names.index(unit.inside)].own.macs
            assert module - own <= unit.own.macs <= module, unit.name  # its holder has the shortcut of its convolution


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_prediction_has_the_shape_of_latents_and_the_same_seed_builds_the_same_network(backbone, name):
    config = backbone.presets()[name].scaled(PROXY)
    torch.manual_seed(0)
    first = config.build()
    torch.manual_seed(0)
    second = config.build()
    latents, time, text = inputs(config, 8, batch=2)
    prediction = first(latents, time, text)
    assert prediction.shape == latents.shape
    assert torch.equal(prediction, second(latents, time, text))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def shallow(config):
    """The network with two blocks in every row whose length is a field, and at two resolutions."""
    depths = {field.name: getattr(config, field.name) for field in fields(config) if field.name.endswith("depth")}
    levels = {"levels": config.levels[:2]} if hasattr(config, "levels") else {}
    return replace(config, **levels, **{name: min(depth, 2) for name, depth in depths.items()})


@pytest.mark.parametrize("family", menu.names("backbones"))
def test_it_leaves_pytorch_with_any_batch(family):
    presets = menu.pick("backbones", family).presets().values()
    config = shallow(min(presets, key=lambda config: config.cost(64, 77).params).scaled(PROXY))
    graph = graphs.denoiser(config.build(), (4, 8, 8), (7, config.text_width), config.pooled_width or 1)
    batch = [{0: torch.export.Dim("batch")}] * 4
    traced = torch.export.export(graph.module, graph.random_inputs(2), dynamic_shapes=tuple(batch), strict=False)
    inputs = graph.random_inputs(3)
    assert torch.allclose(traced.module()(*inputs), graph.module(*inputs), atol=1e-5)


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_its_blocks_are_the_whole_network(backbone, name):
    config = backbone.presets()[name].scaled(PROXY)
    found = config.blocks(8, 7)
    built = {block: backbone.build_block(block) for block in found}
    assert (
        sum(times * sum(p.numel() for p in built[b][0].parameters()) for b, times in found.items())
        == config.cost(8, 7).params
    )
    for module, given in built.values():
        assert module(*given).isfinite().all()


@pytest.mark.parametrize(("backbone", "name"), CASES)
def test_parts_add_up(backbone, name):
    config = backbone.presets()[name]
    for column, total in vars(config.cost(64, 77)).items():
        assert sum(getattr(part.cost, column) for part in config.parts(64, 77)) == total


def test_an_architecture_is_read_by_its_family():
    every = backbones.presets()
    assert {type(config).__module__ for config in every.values()} == {module.values[0].__name__ for module in CASES}
    for config in every.values():
        assert backbones.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="backbone: backbones: unknown name 'dti'; did you mean 'dit'"):
        backbones.from_dict({"backbone": "dti"})


def test_proxy_refuses_sizes_below_one():
    with pytest.raises(ValueError, match="width_divisor=0"):
        Proxy(0, 4, 16, 16)
