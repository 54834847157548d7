"""Zero-cost scores: hand formulas on tiny networks, conservation of synaptic flow, and nothing left behind."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.diffusion import schedule
from nas.networks.backbones.unet import Config, Level
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch, denoising
from nas.trust import zero_cost
from nas.trust.zero_cost import NAMES, grad_norm, naswot, scores, snip, synflow, wake, zico


def batches_of(count=3, size=4, shape=(3, 4, 4), seed=0):
    """Batches that share one generator, as a training run's do."""
    generator = torch.Generator().manual_seed(seed)
    text = Text(torch.randn(size, 5, 12, generator=generator), torch.randn(size, 10, generator=generator))
    return [LatentBatch(torch.randn(size, *shape, generator=generator), text, text, generator) for _ in range(count)]


class Net(nn.Module):
    """A network that only looks at the latents, called as denoisers are."""

    def __init__(self, *layers, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(*(layer() for layer in layers))

    def forward(self, latents, time=None, text=None):
        return self.body(latents)


def conv_net(seed=0, activation=nn.ReLU):
    return Net(lambda: nn.Conv2d(3, 5, 3), activation, lambda: nn.Conv2d(5, 2, 2), activation, nn.Flatten, seed=seed)


def flat_net(*widths, seed=0, activation=nn.ReLU, bias=False):
    """Linear layers of the given widths over the 48 numbers of a picture, with activations between."""
    layers = [nn.Flatten]
    for inputs, outputs in zip((48, *widths), widths, strict=False):
        layers += [lambda i=inputs, o=outputs: nn.Linear(i, o, bias=bias), activation]
    return Net(*layers[:-1], seed=seed)


def loss_of(network):
    return lambda batch: network(batch.latents).square().mean()


# Every kind of part: both convolutions, both attentions, shared and separate keys, skips, a middle, gates, pooled text.
UNET = Config(
    levels=(
        Level(8, (0, 1), (1, 0), cross_attention=True),
        Level(16, (2,), (1, 1), self_attention=True, cross_attention=True, conv="separable"),
    ),
    mid=(1,),
    latent_channels=3,
    text_width=12,
    pooled_width=10,
    time_width=16,
    groups=4,
    head_dim=4,
)


CHANGES = {
    "as it is": {},
    "relu attention": {"attention": "relu"},
    "separate keys": {"shared_kv": False},
    "gelu": {"activation": "gelu"},
    "skips everywhere": {"skips": "all"},
}


def unet(config=UNET, seed=0):
    """A network with fresh weights, awake, and its denoising loss."""
    torch.manual_seed(seed)
    network = config.build()
    wake(network, torch.Generator().manual_seed(seed))
    return network, denoising.Objective(network, None, schedule.Settings()).generator_loss


# --- gradients, by hand ----------------------------------------------------------------------------------------------


def linear_gradients(network, batches):
    """d/dW mean((W x)^2) = 2 W x x^T / (B outputs), per batch."""
    weight = network.body[1].weight.detach().double()
    flat = [batch.latents.double().flatten(1) for batch in batches]
    return weight, [2 * weight @ x.T @ x / (len(x) * len(weight)) for x in flat]


def test_grad_norm_and_snip_of_a_linear_network_in_closed_form():
    network, batches = flat_net(6), batches_of()
    weight, by_batch = linear_gradients(network, batches)
    mean = sum(by_batch) / len(by_batch)
    assert grad_norm(network, loss_of(network), batches) == pytest.approx(float(mean.square().sum().sqrt()), rel=1e-5)
    assert snip(network, loss_of(network), batches) == pytest.approx(float((weight * mean).abs().sum()), rel=1e-5)


def test_zico_of_a_linear_network_in_closed_form():
    network, batches = flat_net(6), batches_of(5)
    stacked = np.stack([gradient.numpy() for gradient in linear_gradients(network, batches)[1]])
    expected = math.log((np.abs(stacked).mean(0) / stacked.std(0)).sum())
    assert zico(network, loss_of(network), batches) == pytest.approx(expected, rel=1e-5)


def test_layers_add_up_and_biases_do_not_count():
    network, batches = conv_net(), batches_of()
    loss = sum(loss_of(network)(batch) for batch in batches) / len(batches)
    weights = [network.body[0].weight, network.body[2].weight]
    taken = torch.autograd.grad(loss, weights)
    assert grad_norm(network, loss_of(network), batches) == pytest.approx(sum(float(g.norm()) for g in taken), rel=1e-5)
    expected = sum(float((g * w).detach().abs().sum()) for g, w in zip(taken, weights, strict=True))
    assert snip(network, loss_of(network), batches) == pytest.approx(expected, rel=1e-5)


def test_snip_is_the_derivative_by_a_mask():
    network, batches = conv_net(), batches_of(1)
    weights = {name: w.detach() for name, w in network.named_parameters()}
    masks = {name: torch.ones_like(w, requires_grad=True) for name, w in weights.items() if name.endswith("weight")}
    masked = weights | {name: weights[name] * mask for name, mask in masks.items()}
    output = torch.func.functional_call(network, masked, (batches[0].latents,))
    output.square().mean().backward()
    expected = sum(float(mask.grad.abs().sum()) for mask in masks.values())
    assert snip(network, loss_of(network), batches) == pytest.approx(expected, rel=1e-5)


def test_zico_leaves_out_what_never_changes():
    """The first column's input is one in every batch and the loss linear in it, so its gradient has no spread."""
    network = flat_net(1)
    batches = batches_of()
    batches = [replace(batch, latents=batch.latents.index_fill(1, torch.tensor([0]), 1.0)) for batch in batches]
    gradients = [batch.latents.double().flatten(1).mean(0).numpy() for batch in batches]
    stacked = np.stack(gradients)[:, 16:]
    expected = math.log((np.abs(stacked).mean(0) / stacked.std(0)).sum())
    assert zico(network, lambda batch: network(batch.latents).mean(), batches) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_gradient_scores_scale_with_the_loss_and_zico_does_not(factor):
    network, batches = conv_net(), batches_of()
    plain, scaled = loss_of(network), lambda batch: factor * network(batch.latents).square().mean()
    for score in (grad_norm, snip):
        assert score(network, scaled, batches) == pytest.approx(factor * score(network, plain, batches), rel=1e-4)
    assert zico(network, scaled, batches) == pytest.approx(zico(network, plain, batches), rel=1e-4)


# --- activation codes ------------------------------------------------------------------------------------------------


def log_determinant(*inputs):
    """From the definition: units less Hamming distance, pair by pair; inputs of the activations, each (B, ...)."""
    codes = np.concatenate([given.detach().flatten(1).numpy() > 0 for given in inputs], axis=1)
    kernel = np.array([[codes.shape[1] - np.count_nonzero(a != b) for b in codes] for a in codes], dtype=float)
    return math.log(np.linalg.det(kernel))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU])
def test_naswot_counts_agreeing_units(activation):
    network, batches = conv_net(activation=activation), batches_of(2, size=6)
    expected = []
    for batch in batches:
        first = network.body[0](batch.latents)
        second = network.body[2](network.body[1](first))
        expected.append(log_determinant(first, second))
    assert naswot(network, loss_of(network), batches) == pytest.approx(sum(expected) / 2, rel=1e-9)


def test_naswot_sees_activations_wherever_they_are_called_but_not_those_of_others():
    network, batches, other = conv_net(activation=nn.SiLU), batches_of(), conv_net(1)
    plain = naswot(network, loss_of(network), batches)
    functional = Net(lambda: nn.Identity())
    functional.forward = lambda x, *_: F.silu(network.body[2](F.silu(network.body[0](x))))
    assert naswot(functional, loss_of(functional), batches) == plain
    assert naswot(network, lambda b: loss_of(network)(b) + loss_of(other)(b), batches) == plain


def test_equal_images_have_no_determinant():
    batch = batches_of(1)[0]
    twins = replace(batch, latents=batch.latents[:1].expand(4, -1, -1, -1))
    network = conv_net()
    assert naswot(network, loss_of(network), [twins]) == -math.inf


# --- waking ----------------------------------------------------------------------------------------------------------


def test_wake_moves_zero_layers_and_nothing_else():
    torch.manual_seed(0)
    network = UNET.build()
    before = {name: parameter.clone() for name, parameter in network.state_dict().items()}
    asleep = {name for name, layer in zero_cost.layers(network).items() if not layer.weight.any()}
    assert "conv_out" in asleep and len(asleep) == sum(
        name.endswith(("conv2.weight", "project.weight", "proj_out.weight", "conv_out.weight")) and not tensor.any()
        for name, tensor in before.items()
    )
    assert set(wake(network, torch.Generator().manual_seed(3))) == asleep
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.weight" for name in asleep}
    assert wake(network, torch.Generator()) == ()


@pytest.mark.parametrize("scale", [0.01, 0.5])
def test_woken_layers_pass_on_scale_times_their_input(scale):
    layer = nn.Conv2d(40, 300, 3)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    wake(layer, torch.Generator().manual_seed(0), scale)
    assert float(layer.weight.detach().std()) == pytest.approx(scale / math.sqrt(40 * 9), rel=0.02)
    assert float(layer(torch.randn(20, 40, 3, 3)).detach().std()) == pytest.approx(scale, rel=0.05)


def test_wake_is_seeded():
    networks = [UNET.build() for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        wake(network, torch.Generator().manual_seed(seed))
    first, same, other = (network.conv_out.weight for network in networks)
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_wake_wants_a_positive_scale(scale):
    with pytest.raises(ValueError, match="scale"):
        wake(nn.Linear(2, 2), torch.Generator(), scale)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_scores_of_a_real_denoiser(change):
    network, loss = unet(replace(UNET, **CHANGES[change]))
    batches = batches_of()
    found = scores(network, loss, batches)
    assert tuple(found) == NAMES
    assert all(math.isfinite(value) and value != 0 for value in found.values())
    assert scores(network, loss, batches) == found
    assert found["synflow"] == synflow(network, batches[0])
    for score in (grad_norm, snip, naswot, zico):
        assert score(network, loss, batches) == found[score.__name__]


def state_of(network, batches):
    return (
        [(name, tensor.clone()) for name, tensor in network.state_dict().items()],
        [parameter.grad for parameter in network.parameters()],
        [parameter.requires_grad for parameter in network.parameters()],
        [module.training for module in network.modules()],
        [sorted(vars(module)) for module in network.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()],
        [batch.generator.get_state().tolist() for batch in batches],
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    network, loss = unet()
    network.conv_in.weight.grad = torch.full_like(network.conv_in.weight, 3.0)
    network.conv_out.weight.requires_grad_(False)
    network.levels[0].train(), network.levels[1].eval()
    batches = batches_of()
    before = state_of(network, batches)

    def failing(batch):
        loss(batch)
        raise RuntimeError("no memory")

    if fails:
        for score in (grad_norm, naswot):
            with pytest.raises(RuntimeError, match="no memory"):
                score(network, failing, batches)
    else:
        scores(network, loss, batches)
    assert same(before, state_of(network, batches))


def test_scores_work_where_gradients_are_off_and_weights_are_frozen():
    network, loss = unet()
    batches = batches_of()
    expected = scores(network, loss, batches)
    network.requires_grad_(False)
    with torch.no_grad():
        assert scores(network, loss, batches) == expected


def test_batches_that_share_a_generator_see_different_noise():
    """Otherwise the spread that ZiCo divides by is too small: here latents and text are the same in every batch."""
    network, loss = unet()
    batch = batches_of(1)[0]
    by_batch = zero_cost.gradients(network, loss, [batch, batch])["conv_in"]
    assert not torch.equal(*by_batch)


def mean_scores(config, seeds=3):
    """Over seeds of weights and batches."""
    rows = [scores(*unet(config, seed), batches_of(seed=seed)) for seed in range(seeds)]
    return {name: float(np.mean([row[name] for row in rows])) for name in NAMES}


def test_wider_and_deeper_networks_score_higher():
    """Where the score is known to grow: paths and weights. (With group norms the gradient's norm falls with width.)"""
    bottleneck = UNET.levels[1]
    small = mean_scores(UNET)
    wide = mean_scores(replace(UNET, levels=(UNET.levels[0], replace(bottleneck, channels=32))))
    deep = mean_scores(replace(UNET, levels=(UNET.levels[0], replace(bottleneck, down=(5,), up=(4, 4)))))
    assert all(larger[name] > small[name] for larger in (wide, deep) for name in ("synflow", "zico", "naswot"))
    assert deep["snip"] > small["snip"]


def test_a_linear_networks_gradient_scores_grow_with_width():
    """Without norms: one linear layer of n outputs has a gradient norm that falls as 1 / sqrt(n) under a mean, and so
    grows as sqrt(n) under a sum; SNIP grows as n."""
    total = {}
    for width in (8, 32, 128):
        network, batches = flat_net(width), batches_of(2, size=16)
        nn.init.normal_(network.body[1].weight, std=0.1, generator=torch.Generator().manual_seed(0))

        def loss(batch, network=network):
            return network(batch.latents).square().sum()

        total[width] = (grad_norm(network, loss, batches), snip(network, loss, batches))
    for small, large in ((8, 32), (32, 128)):
        assert total[large][0] / total[small][0] == pytest.approx(2, rel=0.15)
        assert total[large][1] / total[small][1] == pytest.approx(4, rel=0.15)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_scored_is_said():
    network, loss = unet()
    batches = batches_of()
    cases = [
        (lambda: scores(network, loss, batches[:1]), "1 batches, expected at least 2"),
        (lambda: scores(UNET.build(), loss, batches), "all zero.*wake"),
        (lambda: grad_norm(network, loss, []), "0 batches"),
        (lambda: naswot(network, loss, []), "0 batches"),
        (lambda: grad_norm(nn.ReLU(), loss, batches), "0 layers"),
        (lambda: snip(network, lambda batch: loss(batch) * math.nan, batches), "batch 0 is nan"),
        (lambda: zico(network, loss_of(flat_net(2)), batches), "no layer's gradient"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_naswot_wants_activations_of_one_row_per_image():
    linear = flat_net(3)
    with pytest.raises(ValueError, match="no activation"):
        naswot(linear, loss_of(linear), batches_of())
    merged = Net(lambda: nn.Flatten(0, 1), nn.ReLU)
    with pytest.raises(ValueError, match="one row per image"):
        naswot(merged, loss_of(merged), batches_of())
