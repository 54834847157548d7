"""The diffusion transformer against diffusers' classes, published counts, tracing, and what a fresh one must be."""

import random

import diffusers
import pytest
import torch
from test_backbones import traced
from torch import nn

from nas.deploy import graphs
from nas.networks.backbones import Proxy, from_dict
from nas.networks.backbones.dit import Config, build_block, presets
from nas.networks.backbones.dit.cost import COMPONENTS
from nas.networks.conditioning import Text
from nas.space import references
from nas.space.search_space import SearchSpace
from nas.weights.supernet import Supernet, skeleton

PROXY = Proxy(width_divisor=16, latent_channels=8, text_width=24, pooled_width=20)


def member(rng, **given):
    """A random small network."""
    heads = rng.choice([1, 2, 4])
    fields = {
        "depth": rng.randint(1, 4),
        "width": 4 * heads * rng.randint(1, 3),
        "heads": heads,
        "mlp_ratio": rng.randint(1, 4),
        "patch": rng.choice([1, 2, 4]),
        "text": rng.choice(["cross", "sequence", "none"]),
        "modulation": rng.choice(["block", "shared", "token"]),
        "norm": rng.choice(["layer", "rms"]),
        "latent_channels": rng.choice([3, 4]),
        "text_width": rng.choice([6, 10]),
        "pooled_width": rng.choice([None, 5]),
        **{name: rng.random() < 0.5 for name in ("shared_kv", "qk_norm", "skips")},
    }
    return Config(**{**fields, **given})


def inputs(config, size, batch=2, tokens=5):
    text = Text(torch.randn(batch, tokens, config.text_width), torch.randn(batch, config.pooled_width or 1))
    return torch.randn(batch, config.latent_channels, size, size), torch.randint(0, 1000, (batch,)), text


def woken(network):
    """The network with no parameter left at zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("members", [4, pytest.param(300, marks=pytest.mark.slow)])
def test_the_closed_form_is_what_tracing_counts(members, size):
    rng = random.Random(size)
    for _ in range(members):
        config = member(rng)
        modules, whole = traced(config, size, 5)
        assert config.cost(size, 5) == modules[""], config
        assert config.cost(size, 5).macs == whole, config


def test_parts_add_up_and_blocks_are_the_network():
    for seed in range(20):
        config = member(random.Random(seed))
        pieces, whole = config.parts(8, 5), config.cost(8, 5)
        assert [part.component for part in pieces] == [
            name for name in COMPONENTS if name in {p.component for p in pieces}
        ]
        for name in vars(whole):
            assert sum(getattr(part.cost, name) for part in pieces) == getattr(whole, name)
        found = config.blocks(8, 5)
        modules = {block: build_block(block) for block in found}
        assert sum(found.values()) == config.depth + 1
        assert (
            sum(times * sum(p.numel() for p in modules[b][0].parameters()) for b, times in found.items())
            == whole.params
        )
        for module, given in modules.values():
            assert module(*given).isfinite().all()


def test_counts_of_the_published_networks():
    count = {name: config.cost(32, 120).params for name, config in presets().items()}
    positions, variance = 256 * 1152, 16 * (1152 + 1)  # a fixed table of positions, and the channels of a variance
    assert count["dit-xl"] + positions + variance + 1001 * 1152 == 675_129_632
    with torch.device("meta"):
        theirs = diffusers.PixArtTransformer2DModel(caption_channels=4096, sample_size=32)
    assert count["pixart"] + variance == sum(p.numel() for p in theirs.parameters()) == 610_856_096
    # DiT's paper prints 118.6 "Gflops", which are multiply-adds with attention; ECAD 142.84 for PixArt without it
    assert presets()["dit-xl"].cost(32, 1).macs / 1e9 == pytest.approx(118.6, abs=0.1)
    assert presets()["pixart"].cost(32, 120).macs_without_attention / 1e9 == pytest.approx(142.84, abs=0.05)
    with_text = presets()["u-vit-h"].cost(32, 77).params
    assert with_text + (1 + 77 + 256) * 1152 == references.count("uvit-h-2", 32, 77).params  # its table of positions


# --- the same function as diffusers' ---------------------------------------------------------------------------------


def copied(layer, source):
    """Weights of layers, one beside another where there are several."""
    sources = source if isinstance(source, list) else [source]
    with torch.no_grad():
        layer.weight.copy_(torch.cat([s.weight.reshape(s.weight.shape[0], -1) for s in sources]).view_as(layer.weight))
        layer.bias.copy_(torch.cat([s.bias for s in sources]))


def copy_attention(ours, theirs):
    for name, their in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v")):
        copied(getattr(ours, name), getattr(theirs, their))
    copied(ours.to_out, theirs.to_out[0])


def copy_ends(ours, theirs, channels):
    copied(ours.patches["2"], theirs.pos_embed.proj)
    kept = (
        torch.arange(ours.unpatch["2"].out_features * 2).view(-1, 2 * channels)[:, :channels].flatten()
    )  # no variance
    return kept


def test_it_is_pixart():
    config = Config(2, 48, 4, text="cross", modulation="shared", text_width=20)
    theirs = woken(
        diffusers.PixArtTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=12,
            num_layers=2,
            cross_attention_dim=48,
            caption_channels=20,
            sample_size=8,
        )
    )
    ours = config.build().eval()
    embedder = theirs.adaln_single.emb.timestep_embedder
    copied(ours.time[0], embedder.linear_1)
    copied(ours.time[2], embedder.linear_2)
    copied(ours.modulation, theirs.adaln_single.linear)
    copied(ours.text[0], theirs.caption_projection.linear_1)
    copied(ours.text[2], theirs.caption_projection.linear_2)
    with torch.no_grad():
        for block, their in zip(ours.blocks, theirs.transformer_blocks, strict=True):
            copy_attention(block.attend_self, their.attn1)
            copy_attention(block.attend_cross, their.attn2)
            copied(block.mlp[0], their.ff.net[0].proj)
            copied(block.mlp[2], their.ff.net[2])
            block.table.copy_(their.scale_shift_table)
        ours.table_out.copy_(theirs.scale_shift_table)
        kept = copy_ends(ours, theirs, 4)
        ours.unpatch["2"].weight.copy_(theirs.proj_out.weight[kept])
        ours.unpatch["2"].bias.copy_(theirs.proj_out.bias[kept])
        latents, time, text = inputs(config, 8)
        added = {"resolution": None, "aspect_ratio": None}
        wanted = theirs(latents, encoder_hidden_states=text.tokens, timestep=time, added_cond_kwargs=added).sample[
            :, :4
        ]
        assert torch.allclose(ours(latents, time, text), wanted, atol=1e-5)


def test_it_is_dit():
    config = Config(2, 48, 4, text="none", modulation="block")
    theirs = woken(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=12, num_layers=2, in_channels=4, out_channels=8, sample_size=8,
            num_embeds_ada_norm=10,
        )
    )  # fmt: skip
    ours = config.build().eval()
    with torch.no_grad():
        for block, their in zip(ours.blocks, theirs.transformer_blocks, strict=True):
            their.norm1.emb.class_embedder.embedding_table.weight.zero_()
            their.norm1.emb.time_proj.downscale_freq_shift = 0  # as in the paper's code
            their.norm1.emb.load_state_dict(
                theirs.transformer_blocks[0].norm1.emb.state_dict()
            )  # one for all, as in the paper
            copy_attention(block.attend_self, their.attn1)
            copied(block.mlp[0], their.ff.net[0].proj)
            copied(block.mlp[2], their.ff.net[2])
            copied(block.modulation, their.norm1.linear)
        embedder = theirs.transformer_blocks[0].norm1.emb.timestep_embedder
        copied(ours.time[0], embedder.linear_1)
        copied(ours.time[2], embedder.linear_2)
        copied(ours.modulation_out, theirs.proj_out_1)
        kept = copy_ends(ours, theirs, 4)
        ours.unpatch["2"].weight.copy_(theirs.proj_out_2.weight[kept])
        ours.unpatch["2"].bias.copy_(theirs.proj_out_2.bias[kept])
        latents, time, text = inputs(config, 8)
        classes = torch.zeros(2, dtype=torch.long)
        wanted = theirs(latents, timestep=time, class_labels=classes).sample[:, :4]
        assert torch.allclose(ours(latents, time, text), wanted, atol=1e-5)


def test_long_skips_are_u_vits():
    """A second, short form of U-ViT's row of blocks (Bao et al. 2209.12152, figure 1) on the network's own layers."""
    config = Config(5, 24, 2, text="sequence", modulation="token", skips=True, text_width=6)
    ours = woken(config.build())
    latents, time, text = inputs(config, 8)
    seen = []
    handle = ours.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    wanted_image = ours(latents, time, text)
    handle.remove()
    (x,) = seen
    assert x.shape[1] == 1 + 5 + 16  # time, text, patches
    kept = []
    for index, block in enumerate(ours.blocks):
        if index > 2:
            x = block.skip(torch.cat([x, kept.pop()], dim=-1))
        normed = block.norm_self(x)
        heads = block.attend_self
        q, k, v = (layer(normed).view(2, -1, 2, 12) for layer in (heads.to_q, heads.to_k, heads.to_v))
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(12**0.5).softmax(-1)
        x = x + block.attend_self.to_out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
        x = x + block.mlp(block.norm_mlp(x))
        kept += [x] if index < 2 else []
    patches = ours.unpatch["2"](ours.norm_out(x[:, 6:])).view(2, 4, 4, 2, 2, 4)
    image = torch.zeros(2, 4, 8, 8)
    for row in range(8):
        for column in range(8):
            image[:, :, row, column] = patches[:, row // 2, column // 2, row % 2, column % 2]
    assert torch.allclose(ours.smooth(image), wanted_image, atol=1e-5)


# --- what holds for every member -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_new_network_predicts_zero_and_patches_find_their_places(seed):
    config = member(random.Random(seed))
    network = config.build()
    latents, time, text = inputs(config, 8)
    assert torch.equal(network(latents, time, text), torch.zeros_like(latents))
    assert network.output is list(network.children())[-1] or network.output in network.unpatch.values()
    woken(network)
    assert network(latents, time, text).shape == latents.shape


def test_a_new_dit_block_is_the_identity_and_new_cross_attention_adds_nothing():
    config = Config(1, 24, 2, text="cross", modulation="block", text_width=6)
    block = config.build().blocks[0]
    x, text, time = torch.randn(2, 16, 24), torch.randn(2, 5, 24), torch.randn(2, 24)
    assert torch.equal(block(x, text, time), x)
    assert torch.equal(block.attend_cross(x, text), torch.zeros_like(x))


@pytest.mark.parametrize(("text", "modulation"), [("cross", "block"), ("sequence", "shared"), ("sequence", "token")])
def test_every_branch_leaves_pytorch_with_any_batch(text, modulation):
    config = Config(2, 24, 2, text=text, modulation=modulation, skips=True, text_width=6)
    graph = graphs.denoiser(woken(config.build()), (4, 8, 8), (5, 6), 1)
    batch = tuple({0: torch.export.Dim("batch")} for _ in range(4))
    exported = torch.export.export(graph.module, graph.random_inputs(2), dynamic_shapes=batch, strict=False)
    given = graph.random_inputs(3)
    assert torch.allclose(exported.module()(*given), graph.module(*given), atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_a_description_is_read_again_by_its_family(seed):
    config = member(random.Random(seed))
    assert from_dict(config.to_dict()) == config and config.to_dict()["backbone"] == "dit"
    assert config.canonical().key == config.key


def test_members_of_its_space_are_slices_of_one_supernet():
    space = SearchSpace.load("dit")
    shared = woken(Supernet.covering(space, PROXY))
    rng = random.Random(0)
    largest = space.architecture(space.largest()).scaled(PROXY).build()
    shared.assign(largest)
    held = shared.weights_of(largest)
    assert all(torch.equal(held[name], own) for name, own in largest.named_parameters())
    for _ in range(2):
        config = space.architecture(space.sample(rng)).scaled(PROXY)
        latents, time, text = inputs(config, 8)
        prediction = shared.call(skeleton(config), latents, time, text)
        assert prediction.shape == latents.shape and prediction.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 30}, "width=30 must be a multiple of 4 and of heads=4"),
        ({"heads": 5}, "multiple of 4 and of heads=5"),
        ({"depth": 0}, "depth=0 must be from 1"),
        ({"depth": 1001}, "at most 1,000"),
        ({"mlp_ratio": 2**18}, "mlp_ratio=262144 must be from 1 to 131,072"),
    ],
)
def test_what_cannot_be_is_refused_with_its_values(fields, words):
    with pytest.raises(ValueError, match=words):
        Config(**{"depth": 2, "width": 48, "heads": 4, **fields})
    with pytest.raises(ValueError, match="text: Input should be 'cross', 'sequence' or 'none'"):
        from_dict({"backbone": "dit", "depth": 2, "width": 48, "heads": 4, "text": "prefix"})
    with pytest.raises(ValueError, match="not filled by patches of side 2"):
        Config(2, 48, 4).cost(7, 5)
    with pytest.raises(ValueError, match="width=36 is not divisible by 4 times"):
        Config(2, 36, 4).scaled(PROXY)
