"""Tokens that a UNet makes of the pooled vector, as Kandinsky makes ten of a picture's embedding."""

from dataclasses import replace

import pytest
import torch
from test_unet import inputs, randomised

from nas.deploy import graphs
from nas.networks.backbones.unet import Config, Level
from nas.networks.conditioning import Text

TOLD = Config(
    (Level(16, (0,), (0,)), Level(32, (1,), (1,), self_attention=True, cross_attention=True, conv="separable")),
    latent_channels=4,
    text_width=16,
    pooled_width=12,
    pooled_tokens=10,
    time_width=32,
    groups=4,
    head_dim=8,
)


def test_tokens_of_the_pooled_vector_are_kandinskys():
    """diffusers' class puts the tokens of an embedding before the text's, which it projects too, here by the identity."""
    from diffusers.models.embeddings import TextImageProjection

    torch.manual_seed(0)
    ours, plain = randomised(TOLD.build()).eval(), replace(TOLD, pooled_tokens=0).build().eval()
    theirs = TextImageProjection(
        text_embed_dim=16, image_embed_dim=12, cross_attention_dim=16, num_image_text_embeds=10
    )
    theirs.image_embeds.load_state_dict(ours.pooled_tokens.state_dict())
    torch.nn.init.eye_(theirs.text_proj.weight)
    torch.nn.init.zeros_(theirs.text_proj.bias)
    assert plain.load_state_dict(ours.state_dict(), strict=False).unexpected_keys == [
        "pooled_tokens.weight",
        "pooled_tokens.bias",
    ]
    latents, time, text = inputs(TOLD, batch=2)
    with torch.no_grad():
        context = theirs(text.tokens, text.pooled)
        assert context.shape == (2, 17, 16)
        torch.testing.assert_close(ours(latents, time, text), plain(latents, time, Text(context, text.pooled)))


def test_tokens_of_the_pooled_vector_leave_pytorch_with_any_batch():
    graph = graphs.denoiser(TOLD.build(), (4, 8, 8), (7, 16), 12)
    batch = [{0: torch.export.Dim("batch")}] * 4
    traced = torch.export.export(graph.module, graph.random_inputs(2), dynamic_shapes=tuple(batch), strict=False)
    inputs = graph.random_inputs(3)
    assert torch.allclose(traced.module()(*inputs), graph.module(*inputs), atol=1e-5)


NO_CROSS = (replace(TOLD.levels[0], channels=64, down=(1,), up=(1,), self_attention=True),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooled_tokens": -1}, "pooled_tokens=-1 must be at least 0 and at most 1,000"),
        ({"pooled_tokens": 1001}, "pooled_tokens=1001 must be at least 0"),
        ({"pooled_width": None}, "pooled_tokens=10 are made of a pooled vector, but pooled_width is null"),
        ({"levels": NO_CROSS, "mid": ()}, "pooled_tokens=10 are read by cross_attention, which no level has"),
    ],
)
def test_tokens_that_nothing_makes_or_reads_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(TOLD, **fields)
