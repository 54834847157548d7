"""ADD against closed forms, a second computation of its losses, and what it may be given."""

import pytest
import torch
import torch.nn.functional as F
from test_objectives import batch_of, inputs
from test_passes import batch_of as wide_batch
from test_passes import measured, network
from test_ufogen import column, denoiser, noised
from torch import nn

from nas.errors import InputError
from nas.networks import feature_maps
from nas.networks.adversary import ConditionedHead
from nas.objectives import Pictures, add

STAGES = 5  # of the shipped network
POOLED = wide_batch(0).text.pooled.shape[1]


def made(decided=False, **options):
    """ADD whose student is not its teacher any more; `decided`: nor are its heads undecided."""
    objective = add.Objective(
        denoiser(1), denoiser(0).requires_grad_(False), add.Settings(**options), **inputs(add, channels=3)
    )
    if decided:
        generator = torch.Generator().manual_seed(5)
        for head in objective.discriminator.heads:
            head.last.weight.data.normal_(generator=generator)
            if head.project is not None:
                head.project.weight.data.normal_(generator=generator).mul_(0.1)
    return objective


def test_undecided_heads_cost_the_margins_and_move_nothing():
    objective = made(distillation="none")
    assert objective.critic_loss(batch_of()).item() == 2 * STAGES
    loss = objective.generator_loss(batch_of())
    assert loss.item() == 0
    loss.backward()
    assert all((parameter.grad == 0).all() for parameter in objective.generator.parameters())


def students(objective, batch):
    """x' again, from the random numbers in the order they are drawn: times, whether at the last time, and noise."""
    time = torch.tensor([999, 749, 499, 249])[torch.randint(4, (len(batch.latents),), generator=batch.generator)]
    torch.rand(len(time), generator=batch.generator)
    noise = torch.randn(batch.latents.shape, generator=batch.generator)
    x_s = noised(objective, batch.latents, noise, time)
    alpha = column(objective.schedule.alphas_cumprod[time])
    return alpha.sqrt() * x_s - (1 - alpha).sqrt() * objective.generator(x_s, time, batch.text)


def logits_of(objective, pictures, batch):
    """Of every head, again: its layers, and the projection of what it knows."""
    shown = objective.feature_network(objective.decoder(batch.latents))[-1].mean(2)
    known = torch.cat([batch.text.pooled, shown], 1)
    for head, stage in zip(objective.discriminator.heads, objective.feature_network(pictures), strict=True):
        hidden = F.silu(head.first[1](head.first[0](stage)))
        yield head.last(hidden)[:, 0] + torch.einsum("bd,wd,bwn->bn", known, head.project.weight, hidden)


def test_the_losses_again():
    objective, batch = made(decided=True, distillation="none", gradient_penalty=0), batch_of()
    fake = objective.decoder(students(objective, batch))
    fooled = [logits.mean() for logits in logits_of(objective, fake, batch)]
    torch.testing.assert_close(objective.generator_loss(batch_of()), -sum(fooled))
    real = objective.decoder(batch.latents)
    hinges = [
        F.relu(1 + one).mean() + F.relu(1 - other).mean()
        for one, other in zip(logits_of(objective, fake, batch), logits_of(objective, real, batch), strict=True)
    ]
    torch.testing.assert_close(objective.critic_loss(batch_of()), sum(hinges))


@pytest.mark.parametrize("distillation", ["exponential", "sds"])
def test_the_distillation_is_that_of_pixels(distillation):
    """Of a decoder that changes nothing its gradient is 2 c(u) (x' - x^) / numel, c(u) = a or a s / 2 (one_step test i)."""
    objective = made(distillation=distillation)
    objective.decoder = nn.Identity()
    batch = batch_of()
    drawn = torch.randn_like(batch.latents).requires_grad_()
    objective._pixels(drawn, drawn, batch).backward()
    again = batch_of()
    time = torch.randint(1000, (len(again.latents),), generator=again.generator)
    noise = torch.randn(again.latents.shape, generator=again.generator)
    alpha = column(objective.schedule.alphas_cumprod[time])
    x_u = noised(objective, drawn.detach(), noise, time)
    clean = alpha.sqrt() * x_u - (1 - alpha).sqrt() * objective.teacher(x_u, time, batch.text)
    weight = alpha.sqrt() if distillation == "exponential" else (alpha * (1 - alpha)).sqrt() / 2
    torch.testing.assert_close(drawn.grad, 2 * weight * (drawn.detach() - clean.detach()) / drawn.numel())


def test_the_penalty_is_the_slope_in_the_heads_own_inputs():
    """By differences along the slope itself, for each head alone."""
    objective, batch = made(decided=True, gradient_penalty=2.0), batch_of()
    stages = [stage.double().requires_grad_() for stage in objective.feature_network(objective.decoder(batch.latents))]
    heads, known = objective.discriminator.double(), objective._conditions(batch, None).double()
    expected = 0.0
    for head, stage in zip(heads.heads, stages, strict=True):
        (slope,) = torch.autograd.grad(head.first(stage).sum() * 0 + head(stage, known).double().sum(), stage)
        expected += float(slope.square().sum() / len(stage))
    found = objective._slopes(heads(stages, known), stages)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    direction = torch.randn_like(stages[0])
    ahead, behind = (heads.heads[0](stages[0] + h * direction, known).sum() for h in (1e-2, -1e-2))
    (slope,) = torch.autograd.grad(heads.heads[0](stages[0], known).sum(), stages[0])
    assert float((ahead - behind) / 2e-2) == pytest.approx(float((slope * direction).sum()), rel=5e-2)


@pytest.mark.parametrize(("condition", "width"), [("none", 0), ("text", 5), ("text_image", 5 + 320)])
def test_what_the_heads_know(condition, width):
    objective, batch = made(decided=True, condition=condition), batch_of()
    assert {getattr(head.project, "in_features", 0) for head in objective.discriminator.heads} == {width}
    stages = objective.feature_network(objective.decoder(batch.latents))
    told = objective.discriminator(stages, objective._conditions(batch, stages))
    others = objective._conditions(batch_of(seed=4), None)
    assert all(torch.equal(a, b) for a, b in zip(told, objective.discriminator(stages, others), strict=True)) == (
        condition == "none"
    )


def test_a_head_starts_the_same_and_undecided():
    one, other = ConditionedHead(6, 3), ConditionedHead(6, 3)
    found, known = torch.randn(2, 6, 9), torch.randn(2, 3)
    assert (one(found, known) == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    one.project.weight.data[4] = torch.tensor([1.0, 2.0, 3.0])
    hidden = one.first(found)[:, 4]
    torch.testing.assert_close(one(found, known), (known @ torch.tensor([1.0, 2.0, 3.0]))[:, None] * hidden)


class Pooled(nn.Module):
    """Features that cost nothing."""

    def forward(self, pictures):
        return [F.avg_pool2d(pictures, 2).flatten(2)] * STAGES


@pytest.mark.parametrize(
    "options", [{}, {"distillation": "none"}, {"guidance_scale": 2.0}, {"critic_every": 2}], ids=str
)
def test_its_passes_are_the_denoisers(options):
    pictures = Pictures(nn.Identity(), POOLED)
    objective = add.Objective(network(), network().requires_grad_(False), add.Settings(**options), pictures)
    objective.feature_network, objective.discriminator = Pooled(), add.Heads([4] * STAGES, POOLED + 4)
    assert measured(objective) == pytest.approx(objective.passes, rel=0.15)


def test_feature_networks_that_cannot_be_are_one_line(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"zebra")
    for name, weights, words in (
        ("tf_efficientnet_lite", None, "objective.features: unknown extractor 'tf_efficientnet_lite'; did you mean"),
        (
            "vit_small_patch14_dinov2",
            None,
            "objective.weights: vit_small_patch14_dinov2 needs them: set weights to a local",
        ),
        ("resnet10t", tmp_path / "none", "objective.weights: .*none: no such file"),
        ("own.pt", None, "objective.features: own.pt: a program names no stages; expected a model of timm"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            add.check(add.Settings(features=name, weights=weights), 10)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^objective.weights: .*weights.safetensors"):
        feature_maps.load("resnet10t", tmp_path / "weights.safetensors", None)
    with pytest.raises(InputError, match="add needs a teacher"):
        add.Objective(denoiser(0), None, add.Settings(), **inputs(add))


def test_the_maps_are_timms_own_stages():
    maps = feature_maps.load(feature_maps.SHIPPED, None, 48)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    resized = F.interpolate(pictures, size=48, mode="bilinear", antialias=True)
    expected = maps.network.forward_intermediates(resized, intermediates_only=True)
    assert [stage.shape[1] for stage in expected] == maps.widths() and len(expected) == STAGES
    for one, other in zip(maps(pictures), expected, strict=True):
        torch.testing.assert_close(one, other.flatten(2))
