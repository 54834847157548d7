"""SynFlow against closed forms, counted paths, and what a flow must conserve."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_zero_cost import CHANGES, UNET, Net, batches_of, conv_net, flat_net, unet
from torch import nn

from nas.networks.backbones.unet.network import FeedForward
from nas.trust import zero_cost
from nas.trust.zero_cost import synflow


def test_synflow_of_linear_layers_in_closed_form():
    network = flat_net(7, 5, 4)
    absolute = [layer.weight.detach().double().abs() for layer in zero_cost.layers(network).values()]
    total = float((absolute[2] @ absolute[1] @ absolute[0]).sum())
    assert synflow(network, batches_of(1)[0]) == pytest.approx(3 * total, rel=1e-9)


def test_synflow_of_convolutions_counts_paths():
    """A 3x3 kernel and then a 2x2 kernel on 4x4 pictures of ones leave one output position: all weights are used."""
    network = conv_net()
    for layer in zero_cost.layers(network).values():
        nn.init.zeros_(layer.bias)
    first, second = (layer.weight.detach().double().abs() for layer in zero_cost.layers(network).values())
    total = float((second.sum((2, 3)) @ first.sum((1, 2, 3))).sum())
    assert synflow(network, batches_of(1)[0]) == pytest.approx(2 * total, rel=1e-9)


@pytest.mark.parametrize("activation", ["swish", "gelu"])
def test_synflow_of_a_gated_ffn_in_closed_form(activation):
    """Value and gate are two paths of which the mean goes on."""
    network = Net(lambda: nn.Flatten(), lambda: FeedForward(48, 2, activation))
    without_biases(network)
    expand, project = (layer.weight.detach().double().abs() for layer in zero_cost.layers(network).values())
    total = float((project @ (expand[:96] + expand[96:]) / 2).sum())
    assert synflow(network, batches_of(1)[0]) == pytest.approx(2 * total, rel=1e-9)


def test_synflow_needs_no_data_and_no_signs():
    network, (one, other) = conv_net(), batches_of(2)
    before = synflow(network, one)
    assert before == synflow(network, other)
    with torch.no_grad():
        network.body[0].weight.neg_()
    assert synflow(network, one) == before


def without_biases(network):
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return network


@pytest.mark.parametrize("change", CHANGES)
def test_flow_is_conserved_between_the_inputs_and_the_output(change):
    """Tanaka et al. 2020, theorem 2: what enters through the layers that read an input leaves through the last one."""
    network = without_biases(unet(replace(UNET, **CHANGES[change]))[0])
    flow = zero_cost._flow(network, batches_of(1)[0])
    entering = [name for name in flow if name == "conv_in" or name.startswith("embedding.") and name.endswith(".0")]
    entering += [name for name in flow if name.endswith("attend_cross.to_v")]
    assert len(entering) == 3 + sum(hasattr(module, "attend_cross") for module in network.modules())
    assert sum(flow[name] for name in entering) == pytest.approx(flow["conv_out"], rel=1e-9)


def test_total_flow_is_linear_in_every_layer():
    """So a layer's share is what is lost without it; queries and keys carry none."""
    network = without_biases(unet()[0])
    like = batches_of(1)[0]
    flow = zero_cost._flow(network, like)
    named = zero_cost.layers(network)
    ends = ("to_q", "to_k", "to_v", "to_kv", "ffn.expand", "ffn.project", "separable.depthwise", "full.conv1", "time")
    for end in ends:
        name = next(name for name in named if name.endswith(end))
        kept = named[name].weight.detach().clone()
        nn.init.zeros_(named[name].weight)
        lost = flow["conv_out"] - zero_cost._flow(network, like)["conv_out"]
        assert lost == pytest.approx(flow[name], rel=1e-6, abs=1e-12 * flow["conv_out"])
        assert (flow[name] == 0) == (end in ("to_q", "to_k"))
        named[name].weight.data.copy_(kept)


def test_foreign_attention_is_refused():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, latents, time, text):
            tokens = latents.flatten(2).transpose(1, 2)[..., :1].expand(-1, -1, 4)
            return self.attend(tokens, tokens, tokens)[0]

    with pytest.raises(ValueError, match="MultiheadAttention"):
        synflow(Foreign(), batches_of(1)[0])


def test_written_out_softmax_attention_is_uniform_too():
    class WrittenOut(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.v = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

        def forward(self, latents, time, text):
            x = latents.flatten(2).transpose(1, 2)
            return F.softmax(self.q(x) @ x.transpose(1, 2), dim=-1) @ self.v(x)

    network = WrittenOut()
    expected = 16 * float(network.v.weight.detach().double().abs().sum())  # 16 positions, each the mean of equal values
    assert synflow(network, batches_of(1)[0]) == pytest.approx(expected, rel=1e-9)
