"""The masked autoregressor: published counts, tracing, a second form of its function, and what of its tokens it may see."""

import random

import pytest
import torch
from test_backbones import traced
from torch import nn

from nas.networks.backbones import Autoregressor, Proxy, from_dict
from nas.networks.backbones.mar import Config, build_block, presets
from nas.networks.backbones.mar.cost import COMPONENTS
from nas.networks.conditioning import Text
from nas.space.search_space import SearchSpace
from nas.weights.supernet import Supernet, skeleton

PROXY = Proxy(width_divisor=16, latent_channels=4, text_width=24, pooled_width=20)


def member(rng, **given):
    """A random small network."""
    heads = rng.choice([1, 2, 4])
    chosen = {
        **{name: rng.randint(1, 3) for name in ("encoder_depth", "decoder_depth", "head_depth", "mlp_ratio")},
        "width": 4 * heads * rng.randint(1, 3),
        "heads": heads,
        "head_width": rng.choice([12, 20]),
        "text": rng.choice(["prefix", "cross", "late_cross"]),
        "aligner": rng.choice([0, 2]),
        "buffer": rng.choice([1, 6]),
        "patch": rng.choice([1, 2, 4]),
        "grid": rng.choice([2, 4, 8]),
        "latent_channels": rng.choice([3, 4]),
        "text_width": rng.choice([6, 10]),
        "pooled_width": rng.choice([None, 5]),
    }
    return Config(**{**chosen, **given})


def inputs(config, size, batch=2, tokens=5):
    text = Text(torch.randn(batch, tokens, config.text_width), torch.randn(batch, config.pooled_width or 1))
    return torch.randn(batch, config.latent_channels, size, size), torch.randint(0, 1000, (batch,)), text


def woken(network):
    """The network with no parameter left at zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [4, pytest.param(300, marks=pytest.mark.slow)])
def test_the_closed_form_is_what_tracing_counts(members):
    rng = random.Random(0)
    for _ in range(members):
        config, size = member(rng), rng.choice([8, 16])
        modules, whole = traced(config, size, 5)
        assert config.cost(size, 5) == modules[""], config
        assert config.cost(size, 5).macs == whole, config


def test_parts_add_up_and_blocks_and_units_are_the_networks():
    for seed in range(20):
        config = member(random.Random(seed))
        pieces, whole = config.parts(8, 5), config.cost(8, 5)
        assert [part.component for part in pieces] == COMPONENTS
        for name in vars(whole):
            assert sum(getattr(part.cost, name) for part in pieces) == getattr(whole, name)
        built = {block: build_block(block) for block in config.blocks(8, 5)}
        counted = sum(n * sum(p.numel() for p in built[b][0].parameters()) for b, n in config.blocks(8, 5).items())
        assert counted == whole.params
        assert all(module(*given).isfinite().all() for module, given in built.values())
        found, network = config.units(8, 5), config.build()
        assert all(hasattr(network.get_submodule(unit.name), unit.method) for unit in found.members)
        assert sum(unit.own.macs for unit in found.members) < found.network.macs == whole.macs


PUBLISHED = {"mar-b": (207.9, 35.7, 208), "mar-l": (478.3, 72.2, 479), "mar-h": (942.4, 151.2, 943)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_the_published_networks(name):
    """arXiv 2406.11838, table 3; and to the digit what its code has and a text-to-image network has not."""
    config, (whole, head, printed) = presets()[name], PUBLISHED[name]
    parts = {part.component: part.cost.params for part in config.parts(16, 64)}
    params, width = sum(parts.values()), config.width
    assert params / 1e6 == pytest.approx(whole, rel=2e-3)
    assert parts["head"] / 1e6 == pytest.approx(head, rel=2e-3)
    assert params / 1e6 == pytest.approx(printed, rel=3e-3)
    classes, places, variance = 1001 * width, 2 * 64 * width, 16 * (config.head_width + 1)
    theirs = params - (768 * width + width) + classes + places + variance
    assert theirs / 1e6 == pytest.approx(whole, abs=0.05)


# --- what it computes ------------------------------------------------------------------------------------------------


def known(batch, count, tokens, seed=0):
    """A mask (B, L) that knows as many tokens of every row, others in each."""
    order = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order < count


@pytest.mark.parametrize("seed", range(6))
def test_a_new_network_predicts_zero_and_tokens_find_their_places(seed):
    config = member(random.Random(seed))
    network = config.build()
    latents, time, text = inputs(config, 8)
    assert isinstance(network, Autoregressor)
    assert torch.equal(network(latents, time, text), torch.zeros_like(latents))
    tokens, p = network.tokens(latents), config.patch
    assert torch.equal(network.latents(tokens), latents)
    side = 8 // p
    last = latents[0, :, 8 - p :, :p].permute(1, 2, 0).flatten()
    assert torch.equal(tokens[0, side * (side - 1)], last)  # the first token of the last row


def test_the_encoder_drops_what_is_not_known():
    for text in ("prefix", "cross", "late_cross"):
        config = member(random.Random(3), text=text, patch=1, latent_channels=3)
        network = woken(config.build())
        latents, _, words = inputs(config, 4)
        tokens, mask = network.tokens(latents), known(2, 5, 16)
        wanted = network.conditions(tokens, mask, words)
        hidden = tokens + torch.randn_like(tokens) * ~mask[..., None]
        assert torch.equal(network.conditions(hidden, mask, words), wanted)
        seen = tokens + torch.randn_like(tokens) * mask[..., None]
        assert not torch.allclose(network.conditions(seen, mask, words), wanted, atol=1e-3)
        other = Text(words.tokens + 1, words.pooled)
        assert not torch.allclose(network.conditions(tokens, mask, other), wanted, atol=1e-3)
        assert torch.equal(network.conditions(tokens, None, words), network.conditions(tokens, mask & False, words))


def test_conditions_are_mars():
    """MAR's forward_mae_encoder and forward_mae_decoder in a second, short form: everything is computed by sequences with the
    hidden tokens in them, which attention is told to leave out."""
    config = Config(2, 2, 12, 2, 1, 8, text="late_cross", buffer=3, grid=4, latent_channels=3, text_width=6)
    network = woken(config.build())
    latents, _, text = inputs(config, 4)
    tokens, mask = network.tokens(latents), known(2, 5, 16)
    words = network.text(text.tokens)
    x = torch.cat([network.slots.expand(2, -1, -1), network.project["1"](tokens) + network.places], 1)
    seen = torch.cat([torch.ones(2, 3, dtype=torch.bool), mask], 1)
    x = network.norm_in(x)
    for block in network.encoder:
        x = hand_block(block, x, seen)
    x = network.between(network.norm_encoder(x))
    x = torch.where(seen[..., None], x, network.missing) + torch.cat([network.slots_decoder, network.places_decoder])
    for block in network.decoder:
        x = hand_block(block, x, torch.ones_like(seen))
    x = x[:, 3:]
    for block in network.late:
        x = x + hand_attention(block.attend_cross, block.norm_cross(x), words, torch.ones(2, 5, dtype=torch.bool))
        x = x + block.mlp(block.norm_mlp(x))
    expected = network.norm_decoder(x) + network.places_head
    assert torch.allclose(network.conditions(tokens, mask, text), expected, atol=1e-5)


def hand_block(block, x, seen):
    normed = block.norm_self(x)
    x = x + hand_attention(block.attend_self, normed, normed, seen)
    return x + block.mlp(block.norm_mlp(x))


def hand_attention(layer, x, context, seen):
    q, k, v = (
        f(y).view(2, y.shape[1], 2, 6) for f, y in ((layer.to_q, x), (layer.to_k, context), (layer.to_v, context))
    )
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 6**0.5
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return layer.to_out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


def test_the_head_sees_one_token_at_a_time_and_a_call_knows_none():
    config = member(random.Random(1), patch=2)
    network = woken(config.build())
    latents, time, text = inputs(config, 8)
    tokens, conditions = network.tokens(latents), torch.randn(2, 16, config.width)
    whole = network.denoised(tokens, time, conditions)
    each = torch.cat([network.denoised(tokens[:, i : i + 1], time, conditions[:, i : i + 1]) for i in range(16)], 1)
    assert torch.allclose(whole, each, atol=1e-5)
    assert torch.allclose(network.denoised(tokens, time[:, None].expand(-1, 16), conditions), whole, atol=1e-5)
    unknown = network.denoised(tokens, time, network.conditions(tokens, None, text))
    assert torch.equal(network.tokens(network(latents, time, text)), unknown)


def test_gradients_of_a_new_network_are_small_where_nothing_is_told():
    """An empty caption is zero vectors: rows of zeros, normed again and again, would have gradients of 10^20."""
    for text in ("prefix", "cross", "late_cross"):
        network = Config(4, 4, 32, 2, 1, 32, text=text, aligner=4, text_width=6, grid=4, latent_channels=3).build()
        with torch.no_grad():
            for parameter in network.head.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        empty = Text(torch.zeros(2, 5, 6), torch.zeros(2, 1))
        network(torch.randn(2, 3, 4, 4), torch.tensor([100, 900]), empty).square().mean().backward()
        norms = [float(p.grad.norm()) for p in network.parameters() if p.grad is not None]
        assert max(norms) < 1e3


def test_it_computes_in_half_precision_too():
    network = woken(Config(1, 1, 8, 2, 1, 8, text_width=6, grid=4, latent_channels=3).build())
    latents, time, text = inputs(network.config, 4)
    tokens, mask = network.tokens(latents), known(2, 5, 16)
    wanted = network.denoised(tokens, time, network.conditions(tokens, mask, text))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.denoised(tokens, time, network.conditions(tokens, mask, text))
    assert torch.allclose(found.float(), wanted, atol=0.1 * float(wanted.detach().abs().max()))


def test_unequal_masks_raise():
    network = Config(1, 1, 8, 2, 1, 8, text_width=6, grid=4, latent_channels=3).build()
    mask = known(2, 5, 16)
    mask[0, int(mask[0].int().argmin())] = True
    with pytest.raises(ValueError, match="rows know 5 to 6 tokens, expected equally many"):
        network.conditions(torch.randn(2, 16, 3), mask, Text(torch.randn(2, 4, 6), torch.randn(2, 1)))


def test_places_are_resampled_for_another_size():
    config = Config(1, 1, 8, 2, 1, 8, text_width=6, grid=4, latent_channels=3)
    network = config.build()
    with torch.no_grad():
        for table in (network.places, network.places_decoder, network.places_head):
            table.fill_(0.5)
    for side in (2, 4, 8):
        tokens = torch.randn(1, side**2, 3)
        found = network.conditions(tokens, None, Text(torch.randn(1, 4, 6), torch.randn(1, 1)))
        assert found.shape == (1, side**2, 8)
        assert torch.allclose(found, found[:, :1].expand_as(found), atol=1e-5)  # equal places, equal conditions


# --- the family ------------------------------------------------------------------------------------------------------


def test_a_description_is_read_again_and_what_says_nothing_is_no_difference():
    for seed in range(8):
        config = member(random.Random(seed))
        assert from_dict(config.to_dict()) == config and config.to_dict()["backbone"] == "mar"
    one, other = (Config(1, 1, 8, 2, 1, 8, text="prefix", buffer=buffer) for buffer in (3, 5))
    assert one.key == other.key and one.canonical() == other.canonical()
    assert len({Config(1, 1, 8, 2, 1, 8, text="cross", buffer=buffer).key for buffer in (3, 5)}) == 2


def test_members_are_slices_of_a_supernet():
    space, rng = SearchSpace.load("mar"), random.Random(0)
    shared = woken(Supernet.covering(space, PROXY))
    for _ in range(2):
        config = space.architecture(space.sample(rng)).scaled(PROXY)
        latents, time, text = inputs(config, 8)
        prediction = shared.call(skeleton(config), latents, time, text)
        assert prediction.shape == latents.shape and prediction.isfinite().all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"width": 30}, "width=30 must be a multiple of heads=4"),
        ({"encoder_depth": 0}, "encoder_depth=0 must be from 1"),
        ({"aligner": 1001}, "aligner=1001 must be at most 1,000"),
        ({"buffer": 0}, "buffer=0 must be from 1"),
        ({"head_width": 2**18}, "head_width=262144 must be from 1 to 131,072"),
    ],
)
def test_what_cannot_be_is_refused_with_its_values(given, words):
    plain = {"encoder_depth": 2, "decoder_depth": 2, "width": 48, "heads": 4, "head_depth": 1, "head_width": 32}
    with pytest.raises(ValueError, match=words):
        Config(**{**plain, **given})
    with pytest.raises(ValueError, match="text: Input should be 'prefix', 'cross' or 'late_cross'"):
        from_dict({"backbone": "mar", **plain, "text": "sequence"})
    with pytest.raises(ValueError, match="not filled by patches of side 2"):
        Config(**plain, patch=2).cost(7, 5)
    with pytest.raises(ValueError, match="head_width=24 is not divisible by the width_divisor=16"):
        Config(**{**plain, "head_width": 24}).scaled(PROXY)
