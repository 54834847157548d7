"""Searchable image decoders: SD's to the digit, and its numbers for copied weights."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas import menu
from nas.cost.traced import second_opinion, traced
from nas.networks.backbones import Proxy
from nas.networks.decoders.kl import Config, Level, presets

SD = presets()["sd15-decoder"]


def diffusers_decoder(config):
    from diffusers.models.autoencoders.vae import Decoder

    widths = tuple(level.channels for level in config.levels)
    kinds = ("UpDecoderBlock2D",) * len(widths)
    blocks = config.levels[0].blocks - 1
    return Decoder(config.latent_channels, 3, kinds, widths, blocks, norm_num_groups=config.groups)


def test_sd_decoder_counts():
    assert SD.cost(64).params == 49_490_179
    with torch.device("meta"):
        assert sum(p.numel() for p in diffusers_decoder(SD).parameters()) == 49_490_179


def test_same_output_as_diffusers():
    torch.manual_seed(0)
    config = SD.scaled(Proxy(8, 4, 1, 1))
    theirs = diffusers_decoder(config).eval()
    ours = config.build()
    pairs = [(ours.conv_in, theirs.conv_in), (ours.norm_out, theirs.conv_norm_out), (ours.conv_out, theirs.conv_out)]
    residuals = list(zip(ours.mid, theirs.mid_block.resnets, strict=True))
    for index, level in enumerate(ours.levels):
        block = theirs.up_blocks[-1 - index]
        residuals += zip(level, block.resnets, strict=True)
        if index:
            pairs.append((ours.upsample[index], block.upsamplers[0].conv))
    for mine, other in residuals:
        pairs += [(getattr(mine, name), getattr(other, name)) for name in ("norm1", "conv1", "norm2", "conv2")]
        if other.conv_shortcut is not None:
            pairs.append((mine.shortcut, other.conv_shortcut))
    attention = theirs.mid_block.attentions[0]
    pairs += [
        (ours.attention.norm, attention.group_norm),
        (ours.attention.to_q, attention.to_q),
        (ours.attention.to_k, attention.to_k),
        (ours.attention.to_v, attention.to_v),
        (ours.attention.to_out, attention.to_out[0]),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(latents), theirs(latents), rtol=1e-4, atol=1e-5)


CONFIGS = st.builds(
    Config,
    levels=st.lists(st.builds(Level, st.sampled_from([32, 64]), st.integers(1, 3)), min_size=1, max_size=3).map(tuple),
    latent_channels=st.integers(1, 8),
    mid_blocks=st.integers(1, 2),
    attention=st.booleans(),
)


@given(CONFIGS)
@settings(max_examples=12, deadline=None)
def test_closed_form_of_any_decoder(config):
    with torch.device("meta"):
        network, latents = config.build(), torch.empty(1, config.latent_channels, 8, 8)
        assert network(latents).shape == (1, 3, 8 * 2 ** (len(config.levels) - 1), 8 * 2 ** (len(config.levels) - 1))
    closed = config.cost(8)
    assert closed == traced(network, latents)
    assert closed.macs == second_opinion(network, latents)


@pytest.mark.parametrize("name", menu.names("decoders"))
def test_every_decoder_of_the_menu_describes_itself(name):
    module = menu.pick("decoders", name)
    for config in module.presets().values():
        assert module.Config.from_dict(config.to_dict()) == config
        assert config.canonical().key == config.key
        assert config.cost(64).params == sum(t.total.params for t in (f(*a) for f, a in config.cost_terms(64)))


def test_impossible_values_are_refused_with_the_values():
    with pytest.raises(ValueError, match=r"levels.0.channels=100 is not divisible by groups=32"):
        replace(SD, levels=(Level(100, 1),))
    with pytest.raises(ValueError, match=r"blocks=0"):
        Level(32, 0)
    with pytest.raises(ValueError, match=r"width_divisor=7"):
        SD.scaled(Proxy(7, 4, 1, 1))
