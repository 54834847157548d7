"""Priors against closed forms, a causal transformer computed again by hand, and targets with two modes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import menu, priors
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.priors import Learning, Lessons, Sizes, diffusion, linear, none, residual_mlp

SIZES = Sizes(tokens=5, width=12, pooled=6, image=4)
TINY = {
    "residual_mlp": {"blocks": 2, "width": 16, "images_seen": 64, "batch": 32},
    "diffusion": {"layers": 1, "heads": 1, "images_seen": 64, "batch": 32, "steps": 3, "guidance": 2.0},
}


def lessons(count=64, captions=7, sizes=SIZES, seed=0):
    """Random captions, the last of them empty, of several lengths, and embeddings that are far from standard."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn((captions, sizes.tokens, sizes.width), generator=generator)
    tokens[0, 2:] = 0
    tokens[-1] = 0
    pooled = torch.randn((captions, sizes.pooled), generator=generator)
    caption_of = torch.randint(captions - 1, (count,), generator=generator)
    images = 3 + 2 * torch.randn((count, sizes.image), generator=generator)
    return Lessons(Text(tokens.half(), pooled.half()), caption_of, images)


def made(name, data, seed=0, **options):
    settings = menu.pick("priors", name).Settings(**(TINY.get(name, {}) | options))
    prior = priors.build(name, settings, data.sizes)
    prior.fit(data, seed, priors.ignored)
    return prior


@pytest.mark.parametrize("name", menu.names("priors"))
def test_every_prior_of_the_menu_keeps_the_contract(name):
    data = lessons()
    prior, again = made(name, data), made(name, data)
    for key, value in prior.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    text, noise = data.text(torch.arange(6)), torch.randn(6, SIZES.image)
    found = prior.sample(text, noise)
    assert found.shape == (6, SIZES.image) and found.isfinite().all() and not found.requires_grad
    one = prior.sample(Text(text.tokens[2:3], text.pooled[2:3]), noise[2:3])
    torch.testing.assert_close(one, found[2:3], rtol=1e-4, atol=1e-5)  # others of the batch do not matter
    loaded = priors.load(name, prior.settings if name != "none" else None, SIZES, prior.state_dict(), "here")
    assert torch.equal(loaded.sample(text, noise), found)


@pytest.mark.parametrize("name", sorted(set(menu.names("priors")) - {"none"}))
def test_weights_for_another_width_are_refused_in_a_line(name):
    prior = made(name, lessons())
    wider = Sizes(SIZES.tokens, SIZES.width, SIZES.pooled, 9)
    with pytest.raises(InputError, match=r"prior: here: weights of another prior or width: .* of width 9$"):
        priors.load(name, prior.settings, wider, prior.state_dict(), "here")


def test_building_and_training_a_prior_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    made("diffusion", lessons())
    found = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(1))


def test_what_an_embedding_costs_is_the_products_of_its_network():
    sizes = replace(SIZES, width=16)  # tokens wider than embeddings
    data = lessons(sizes=sizes)
    cost = {name: priors.macs(made(name, data), sizes) for name in menu.names("priors")}
    mlp = 6 * 16 + 2 * 2 * 16**2 + 16 * 4  # into the blocks, two of two layers, out of them
    assert cost["none"] == 0 and cost["linear"] == 6 * 4 and cost["residual_mlp"] == mlp
    width, places, shared = 32, 5 + 4, 16  # of the transformer; tokens, text, time, embedding and query
    ends = 5 * shared * width + 6 * width + shared * width + 2 * width**2 + width * 4
    block = places * (4 * width**2 + 2 * 4 * width**2) + 2 * places**2 * width
    assert cost["diffusion"] == 3 * 2 * (ends + block)  # steps, with and without the caption


# --- linear ----------------------------------------------------------------------------------------------------------


def test_the_linear_prior_finds_a_map_that_is_there():
    generator = torch.Generator().manual_seed(1)
    pooled = torch.randn((400, 6), generator=generator).half()
    weight, bias = torch.randn((6, 4), generator=generator), torch.randn(4, generator=generator)
    noise = 0.05 * torch.randn((399, 4), generator=generator)
    images = pooled[:-1].float() @ weight + bias + noise
    prior = made("linear", Lessons(Text(torch.zeros(400, 1, 1), pooled), torch.arange(399), images), ridge=1e-6)
    assert (prior.map.weight.T - weight).norm() / weight.norm() < 0.05  # the noise's size
    assert (prior.map.bias - bias).norm() / bias.norm() < 0.05


def test_trained_by_gradients_the_linear_prior_is_its_closed_form():
    data = lessons(count=300, captions=60)
    data = replace(data, images=data.images + 2 * data.text(torch.arange(300)).pooled[:, :4])
    closed = made("linear", data, ridge=1e-6)
    free = nn.Linear(SIZES.pooled, SIZES.image)

    def loss(rows, generator):
        return F.mse_loss(free(data.text(rows).pooled), data.images[rows])

    settings = Learning(images_seen=300 * 400, batch=300, learning_rate=0.05, weight_decay=0.0)
    priors.learn(free, loss, data, settings, seed=0)
    text = data.text(torch.arange(300))
    own, known = free(text.pooled), closed.sample(text, torch.zeros(300, SIZES.image))
    centre = data.images.mean(0)
    assert (own - known).norm() / (known - centre).norm() < 0.05


def test_ridge_is_what_least_squares_finds_with_rows_for_the_penalty():
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((30, 5), (30, 3)))
    weight, bias = linear.ridge(x, y, 0.3)
    centred = x - x.mean(0)
    penalty = (0.3 * centred.square().mean(0).mean() * len(x)).sqrt() * torch.eye(5, dtype=torch.float64)
    rows = torch.cat([centred, penalty]), torch.cat([y - y.mean(0), torch.zeros(5, 3, dtype=torch.float64)])
    torch.testing.assert_close(weight, torch.linalg.lstsq(*rows).solution)
    torch.testing.assert_close(x.mean(0) @ weight + bias, y.mean(0))


# --- diffusion -------------------------------------------------------------------------------------------------------


def tiny(**options):
    return priors.build("diffusion", diffusion.Settings(**(TINY["diffusion"] | options)), SIZES)


def causal_by_hand(prior, noisy, time, text):
    """diffusers' prior computed again from its weights, with a mask of booleans: causal, and blind to places after a caption."""
    own = prior.transformer
    tokens = own.encoder_hidden_states_proj(F.pad(text.tokens, (0, prior.shared - SIZES.width)))
    when = own.time_embedding(own.time_proj(time))
    rows = [
        tokens,
        own.embedding_proj(text.pooled)[:, None],
        when[:, None],
        own.proj_in(F.pad(noisy, (0, prior.shared - SIZES.image)))[:, None],
        own.prd_embedding.expand(len(noisy), -1, -1),
    ]
    x = torch.cat(rows, 1) + own.positional_embedding
    length = x.shape[1]
    there = F.pad(text.tokens.abs().sum(-1) > 0, (0, 4), value=True)
    mask = torch.ones(length, length).tril().bool()[None, None] & there[:, None, None]
    for block in own.transformer_blocks:
        normed, attend = block.norm1(x), block.attn1
        q, k, v = (
            layer(normed).unflatten(-1, (attend.heads, -1)).transpose(1, 2)
            for layer in (attend.to_q, attend.to_k, attend.to_v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + attend.to_out[0](mixed)
        x = x + block.ff(block.norm3(x))
    return own.proj_to_clip_embeddings(own.norm_out(x)[:, -1])


@pytest.mark.parametrize("whole", [True, False])
def test_the_transformer_is_causal_whether_captions_are_padded_or_not(whole):
    prior, data = tiny(layers=2, heads=2), lessons()
    text = data.text(torch.arange(6))
    if not whole:
        text.tokens[:, 3:] = 0
    noisy, time = torch.randn(6, SIZES.image), torch.randint(1000, (6,))
    with torch.no_grad():
        found, by_hand = prior.predicted(noisy, time, text), causal_by_hand(prior, noisy, time, text)
        bare = prior.transformer(F.pad(noisy, (0, 8)), time, text.pooled, text.tokens, None, return_dict=False)[0]
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)
    assert (bare - found).abs().max() > 1e-3  # without a mask diffusers is not causal


def test_standardising_and_back_is_the_identity_and_nothing_trains_the_statistics():
    prior, data = made("diffusion", lessons()), lessons()
    standard = prior.standardised(data.images)
    torch.testing.assert_close(standard.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(4))
    torch.testing.assert_close(prior.transformer.post_process_latents(standard), data.images)
    trained = {name.rpartition(".")[2] for name, value in prior.named_parameters() if value.requires_grad}
    assert not trained & {"clip_mean", "clip_std"}


def test_a_dimension_that_does_not_vary_gives_numbers():
    data = lessons()
    flat = Lessons(data.captions, data.caption_of, data.images * torch.tensor([1.0, 1.0, 1.0, 0.0]))
    prior = made("diffusion", flat)
    found = prior.sample(flat.text(torch.arange(6)), torch.randn(6, SIZES.image))
    assert found.isfinite().all() and found[:, 3].abs().max() < 1e-4


def test_of_two_kinds_of_pictures_the_diffusion_draws_both_and_the_others_the_mean():
    """Captions 0 and 1 have embeddings at two corners each; a third of the pictures of each is at the second."""
    corners = torch.tensor([[[2.0, 2.0], [-2.0, 1.0]], [[2.0, -2.0], [-1.0, -1.0]]])
    generator = torch.Generator().manual_seed(0)
    caption_of = torch.arange(2).repeat(600)
    second = (torch.rand(1200, generator=generator) < 1 / 3).long()
    images = corners[caption_of, second] + 0.1 * torch.randn((1200, 2), generator=generator)
    captions = Text(F.one_hot(torch.arange(3), 4).float()[:, None], F.one_hot(torch.arange(3), 4).float())
    data = Lessons(captions, caption_of, images)
    learning = {"images_seen": 300 * 64, "batch": 64, "learning_rate": 3e-3}
    drawn = made("diffusion", data, layers=1, heads=1, steps=20, guidance=1.0, **learning)
    means = {
        "linear": (made("linear", data), 0.05),
        "residual_mlp": (made("residual_mlp", data, **learning), 0.4),
    }
    for caption in (0, 1):
        text = Text(*(one[caption : caption + 1].expand(300, *one.shape[1:]) for one in captions))
        noise = torch.randn((300, 2), generator=generator)
        found = drawn.sample(text, noise)
        nearest = torch.cdist(found, corners[caption])
        assert nearest.min(1).values.median() < 0.4
        assert 0.18 < nearest.argmin(1).float().mean() < 0.5
        mean = images[caption_of == caption].mean(0)
        for prior, most in means.values():
            torch.testing.assert_close(prior.sample(text, noise)[0], mean, atol=most, rtol=0)


def test_none_knows_the_mean_alone():
    data = lessons()
    prior = made("none", data)
    found = prior.sample(data.text(torch.arange(3)), torch.randn(3, SIZES.image))
    assert torch.equal(found, data.images.mean(0).expand(3, -1))
    assert none.Settings() and residual_mlp.Settings().blocks == 18
