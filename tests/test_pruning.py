"""Pruned decoders, and decoders trained on frozen latents."""

from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas.errors import InputError
from nas.networks.decoders.kl import Config, Level, pruning
from nas.training import decoders, fitting


def decoder(widths, blocks=2, groups=4, attention=True, seed=0):
    torch.manual_seed(seed)
    levels = tuple(Level(width, blocks) for width in widths)
    made = Config(levels, latent_channels=3, mid_blocks=2, attention=attention, groups=groups).build().eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=0.5)
    return made


@torch.no_grad()
def hidden_inside(small, widths, groups):
    """A larger decoder that computes what `small` does: its channels lie in groups chosen at random, the rest is zero."""
    large = decoder(widths, small.config.levels[0].blocks, groups, small.config.attention is True)
    places = {}
    for name, tensor in large.state_dict().items():
        source = small.state_dict()[name]
        indices = [torch.arange(size) for size in source.shape]
        for dimension, channels in enumerate(pruning.labels_of(large)[name]):
            if channels is not None:
                key = (channels, tensor.shape[dimension])
                if key not in places:
                    chosen = torch.randperm(groups)[: small.config.groups].sort().values
                    places[key] = torch.arange(tensor.shape[dimension]).view(groups, -1)[chosen].flatten()
                indices[dimension] = places[key]
        tensor.zero_()
        tensor[torch.meshgrid(*indices, indexing="ij")] = source
    if small.attention is not None:  # its scale is one over the root of the width
        for tensor in large.attention.to_q.parameters():
            tensor *= (widths[-1] / small.config.levels[-1].channels) ** 0.5
    return large


@given(
    st.sampled_from([((8, 8), (16, 16)), ((4, 8, 8), (8, 16, 16)), ((4, 8, 12), (8, 16, 24))]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_channels_that_do_nothing_are_the_ones_that_go(widths, blocks, attention, seed):
    small = decoder(widths[0], blocks, 2, attention, seed)
    large = hidden_inside(small, widths[1], 4)
    latents = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(large(latents), small(latents), rtol=1e-4, atol=1e-5)
    found = pruning.pruned(large, groups=2)
    assert found.config == small.config
    for name, tensor in found.state_dict().items():
        if not name.startswith("attention.to_q"):
            torch.testing.assert_close(tensor, small.state_dict()[name])


def test_pruning_nothing_changes_nothing():
    whole = decoder((8, 16))
    same = pruning.pruned(whole, 4)
    latents = torch.randn(1, 3, 4, 4)
    assert torch.equal(whole(latents), same(latents)) and same.config == whole.config


def test_blocks_go_from_the_end():
    whole = decoder((8, 16), blocks=3)
    short = pruning.pruned(whole, 4, blocks=1)
    assert [level.blocks for level in short.config.levels] == [1, 1]
    assert torch.equal(short.levels[0][0].conv1.weight, whole.levels[0][0].conv1.weight)


@pytest.mark.parametrize(("groups", "blocks"), [(0, None), (5, None), (2, 0)])
def test_what_cannot_stay_is_refused(groups, blocks):
    with pytest.raises(InputError, match="pruning: "):
        pruning.pruned(decoder((8, 16)), groups, blocks)


def test_a_diffusers_decoder_is_the_same_network():
    torch.manual_seed(1)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    model = AutoencoderKL(
        block_out_channels=(8, 8, 16), latent_channels=3, norm_num_groups=4, layers_per_block=1, **kinds
    )
    ours = pruning.of_autoencoder(model.eval())
    latents = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = model.decode(latents).sample
        torch.testing.assert_close(ours(model.post_quant_conv(latents)), expected, rtol=1e-4, atol=1e-5)


def test_training_brings_the_pictures_nearer_and_depends_on_its_seed():
    torch.manual_seed(0)
    latents = torch.randn(8, 3, 4, 4)
    pictures = nn.functional.interpolate(latents, scale_factor=2.0).clamp(-1, 1)
    results = []
    for seed in (0, 0, 1):
        made = decoder((8, 8))
        before = decoders.psnr(decoders.decoded(made, latents), pictures)
        loss = partial(lambda decoder, rows: decoders.to_pictures(decoder, latents[rows], pictures[rows]), made)
        fitting.train(decoders.DecoderTraining(made, 8, decoders.Recipe(240, 8, 5e-3, seed), weight_decay=1e-4), loss)
        results.append(decoders.psnr(decoders.decoded(made, latents), pictures))
    assert results[0] == results[1] != results[2]
    assert min(results) > before + 2


def test_psnr_in_closed_form():
    pictures = torch.zeros(2, 3, 4, 4)
    made = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert decoders.psnr(made, pictures) == pytest.approx((20 + 40) / 2, abs=1e-4)
