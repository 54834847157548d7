"""The perceptual distance against closed forms and a second computation, and the two objectives that learn by it."""

from dataclasses import replace

import pytest
import torch
from test_add import POOLED, Pooled
from test_objectives import Denoiser, batch_of, inputs
from test_passes import UPDATES, measured, network
from torch import nn

from nas import objectives
from nas.errors import InputError
from nas.networks import extractors, feature_maps
from nas.networks.perceptual import Features, Perceptual, distance
from nas.objectives import Pictures, dmd, instaflow

DIRECT = {"reflow_updates": 0, "rectified_steps": 1}


def latents_of(seed, size=2):
    return torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def of_shipped(**options):
    return Perceptual(inputs(instaflow)["pictures"].decoder, Features(**options))


def made(module, **options):
    """The student is not its teacher any more."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module.Objective(
            Denoiser(), Denoiser().requires_grad_(False), module.Settings(**options), **inputs(module)
        )


# --- the distance ----------------------------------------------------------------------------------------------------


def test_two_channels_by_hand():
    """One picture, two positions: (3, 4) beside (4, 3), and (1, 0) beside (0, 2). Then a stage that agrees but for its length."""
    ours, theirs = torch.tensor([[[3.0, 1.0], [4.0, 0.0]]]), torch.tensor([[[4.0, 0.0], [3.0, 2.0]]])
    by_hand = ((0.6 - 0.8) ** 2 + (0.8 - 0.6) ** 2 + 1 + 1) / 2
    assert distance([ours], [theirs]).tolist() == pytest.approx([by_hand])
    assert distance([ours, ours], [theirs, 7 * ours]).tolist() == pytest.approx([by_hand])


def test_opposite_features_are_as_far_as_can_be_and_none_as_one():
    features = torch.randn(3, 5, 6)
    assert distance([features] * 2, [-features] * 2).tolist() == pytest.approx([8.0] * 3)
    nothing = torch.zeros(3, 5, 6, requires_grad=True)
    found = distance([nothing], [features])
    assert found.tolist() == pytest.approx([1.0] * 3)
    found.sum().backward()
    assert nothing.grad.isfinite().all()


def test_with_weights_of_one_it_is_twice_what_the_cosines_lack():
    """The paper says so of its baseline."""
    ours, theirs = ([torch.randn(2, width, 9) for width in (4, 7)] for _ in range(2))
    cosines = [torch.cosine_similarity(a, b, dim=1).mean(1) for a, b in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(distance(ours, theirs), sum(2 - 2 * cosine for cosine in cosines))


def test_of_latents_again():
    """With timm's own stages, position by position."""
    made_by, one, other = of_shipped(feature_size=24), latents_of(0), latents_of(1)
    stages = []
    for latents in (one, other):
        pictures = nn.functional.interpolate(made_by.decoder(latents), size=24, mode="bilinear", antialias=True)
        stages.append(made_by.features.network.forward_intermediates(pictures, intermediates_only=True))
    total = 0.0
    for a, b in zip(*stages, strict=True):
        rows, _, height, width = a.shape
        for row in range(rows):
            for y in range(height):
                for x in range(width):
                    u, v = (s[row, :, y, x].double() / s[row, :, y, x].double().norm() for s in (a, b))
                    total += float((u - v).square().sum()) / (rows * height * width)
    assert made_by(one, other).item() == pytest.approx(total, rel=1e-4)


def test_identical_pictures_have_no_distance():
    found = of_shipped()
    assert found(latents_of(0), latents_of(0)).item() == 0
    assert found(latents_of(0), latents_of(1)).item() > 0.01


def test_gradients_flow_through_the_decoder_to_what_is_made_alone():
    found = of_shipped()
    drawn, wanted = latents_of(0).requires_grad_(), latents_of(1).requires_grad_()
    found(drawn, wanted).backward()
    assert drawn.grad.abs().sum() > 0 and wanted.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in found.parameters())


def test_going_down_its_gradient_it_shrinks():
    found, drawn, wanted = of_shipped(), latents_of(0).requires_grad_(), latents_of(1)
    adam = torch.optim.Adam([drawn], lr=0.1)
    lengths = []
    for _ in range(10):
        lengths.append(found(drawn, wanted))
        adam.zero_grad()
        lengths[-1].backward()
        adam.step()
    assert lengths[-1] < 0.7 * lengths[0]


# --- the objectives --------------------------------------------------------------------------------------------------


def test_instaflow_has_it_last():
    """Reflow, then latents, then pictures; each the same numbers as where there is no other stage."""
    options = {"reflow_updates": 2, "rectified_steps": 2}
    staged, plain = made(instaflow, **options, perceptual={"after": 3}), made(instaflow, **options)
    for update in range(5):
        assert torch.equal(*(one.generator_loss(replace(batch_of(), update=update)) for one in (staged, plain)))
    for update in (5, 9):
        batch = replace(batch_of(), update=update)
        noise, target = staged._pair(replace(batch_of(), update=update))
        last = torch.full((len(noise),), 999)
        rebuilt = staged.clean(staged.generator, noise, last, batch.text)
        torch.testing.assert_close(staged.generator_loss(batch), of_shipped()(rebuilt, target))


def test_dmds_regression_by_it():
    without = made(dmd, regression_weight=0.0).generator_loss(batch_of())
    objective, batch = made(dmd, perceptual={}), batch_of()
    rebuilt = objective.clean(objective.generator, batch.start, torch.full((6,), 999), batch.text)
    expected = of_shipped()(rebuilt, batch.latents)
    torch.testing.assert_close(objective.generator_loss(batch_of()) - without, 0.25 * expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(objective.logged["regression_loss"], expected.detach())


def test_its_passes_are_the_denoisers():
    """With a decoder and features that cost nothing."""
    settings = instaflow.Settings(**DIRECT, perceptual={})
    given = network(), network().requires_grad_(False), settings, Pictures(nn.Identity(), POOLED)
    objective = instaflow.Objective(*given)
    objective.perceptual.features = Pooled()
    assert measured(objective) == pytest.approx(objective.passes_of(UPDATES), rel=0.15)
    assert made(dmd, perceptual={}).passes == made(dmd).passes == 13


@pytest.mark.parametrize("module", [dmd, instaflow])
def test_old_settings_are_written_as_they_were(module):
    assert "perceptual" not in module.Settings().model_dump(mode="json")
    assert module.Settings(perceptual={}).model_dump(mode="json")["perceptual"]["features"] == feature_maps.SHIPPED
    name = module.__name__.rpartition(".")[2]
    assert not objectives.takes_pictures(name, module.Settings())
    assert objectives.takes_pictures(name, module.Settings(perceptual={}))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [dmd, instaflow])
def test_networks_that_cannot_be_are_one_line(module, tmp_path):
    for given, words in (
        ({"features": "vgg61"}, "unknown extractor 'vgg61'; did you mean"),
        ({"features": "vgg16"}, "vgg16 needs them: set weights to a local"),
        ({"features": "vgg16", "weights": tmp_path / "none"}, "none: no such file"),
        ({"features": "own.pt"}, "own.pt: a program names no stages; expected a model of timm"),
    ):
        with pytest.raises(InputError, match=rf"^objective\.perceptual\.(features|weights): .*{words}") as caught:
            module.check(module.Settings(**DIRECT if module is instaflow else {}, perceptual=given), 10)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"perceptual\.\S*feature_size"):
        module.Settings(perceptual={"feature_size": 1})


def test_a_network_without_stages_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "weights").touch()
    bare = extractors.Extractor(nn.Identity(), 8, [0.5] * 3, [0.5] * 3)
    monkeypatch.setattr(extractors, "load", lambda *given: bare)
    with pytest.raises(
        InputError, match=r"^objective\.perceptual\.features: resnet10t names no stages; expected another"
    ):
        Perceptual(nn.Identity(), Features(features="resnet10t", weights=tmp_path / "weights"))


def test_more_updates_before_it_than_there_are_is_one_line():
    settings = instaflow.Settings(reflow_updates=4, perceptual={"after": 5})
    instaflow.check(settings, 10)
    with pytest.raises(InputError, match=r"^objective\.perceptual\.after: 5, but the one step has 5 updates .* fewer$"):
        instaflow.check(settings, 9)
