"""Costs: the closed form against traced counts, the golden totals, and refusal of what no rule covers."""

import subprocess
import sys
from dataclasses import replace

import pytest
import test_backbones
import torch
from hypothesis import given, settings
from test_pooled_tokens import TOLD
from test_unet import CONFIGS, PRESETS

from nas.cost import traced
from nas.cost.count import taps


def assert_closed_form_is_what_tracing_counts(config, size, tokens):
    closed, (modules, whole) = config.cost(size, tokens), test_backbones.traced(config, size, tokens)
    assert closed == modules[""]
    assert closed.macs == whole


def test_golden_totals_of_the_published_layout():
    total = PRESETS["mobilediffusion"].cost(64, 77)
    assert total.params == 386_028_616
    assert total.macs == 184_436_064_256
    assert round(total.macs_padding_free / 1e9, 3) == 181.774


def test_padding_free_macs_reproduce_table_1():
    """arXiv 2311.16567 prints 392 for SD-1.5; XLA, which also counts elementwise operations, gives 393."""
    assert round(PRESETS["sd15"].cost(64, 77).macs_padding_free / 1e9, 2) == 390.88


@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_closed_form_with_tokens_of_the_pooled_vector(attention):
    told = replace(TOLD, attention=attention)
    assert_closed_form_is_what_tracing_counts(told, 16, 5)
    more, none = told.cost(16, 5), replace(told, pooled_tokens=0).cost(16, 5)
    assert more.params - none.params == 10 * 16 * (12 + 1)  # one linear layer from 12 numbers to 10 tokens of 16


@given(CONFIGS)
@settings(max_examples=4, deadline=None)
def test_closed_form_of_any_network(config):
    assert_closed_form_is_what_tracing_counts(config, 16, 5)


def test_parts_add_up():
    config = PRESETS["mobilediffusion"]
    pieces, total = config.parts(64, 77), config.cost(64, 77)
    for name in vars(total):
        assert sum(getattr(part.cost, name) for part in pieces) == getattr(total, name)
    ffn = next(part.cost for part in pieces if (part.component, part.side) == ("ffn", 16))
    assert (round(ffn.params / 1e6, 2), round(ffn.macs / 1e9, 2)) == (141.67, 36.24)


def test_of_the_published_layout_the_closed_form_and_its_parts_are_what_modules_count():
    """As large as it is; test_backbones has every layout at small widths."""
    with torch.device("meta"):
        network, inputs = (
            PRESETS["mobilediffusion"].build(),
            test_backbones.inputs(PRESETS["mobilediffusion"], 64, 1, 77),
        )
    modules, closed = traced.traced_by_module(network, *inputs), PRESETS["mobilediffusion"].cost(64, 77)
    assert modules[""] == closed
    assert traced.second_opinion(network, *inputs) == closed.macs
    ffn = [count for name, count in modules.items() if name.startswith("levels.2.") and name.endswith(".ffn")]
    part = next(p.cost for p in PRESETS["mobilediffusion"].parts(64, 77) if (p.component, p.side) == ("ffn", 16))
    assert len(ffn) == 15
    assert sum(count.macs for count in ffn) == part.macs
    assert sum(count.params for count in ffn) == part.params


def test_relu_attention_keeps_macs_and_puts_out_its_weights():
    softmax = PRESETS["mobilediffusion"]
    relu = replace(softmax, attention="relu")
    assert relu.cost(64, 77).macs == softmax.cost(64, 77).macs
    assert relu.cost(64, 77).activation_bytes > softmax.cost(64, 77).activation_bytes


def test_latents_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="latents of side 30 cannot be halved 2 times"):
        PRESETS["mobilediffusion"].cost(30, 77)


class Spectral(torch.nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real @ x


def test_an_operator_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(traced.UncountedOperator, match="fft_fft"):
        traced.traced(Spectral(), torch.zeros(4, 4))


class Attention(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def test_attention_is_counted():
    total = traced.traced(Attention(), torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 7, 8), torch.zeros(1, 2, 7, 16))
    assert total.macs == 2 * 5 * 7 * (8 + 16)
    assert total.macs_without_attention == 0


@pytest.mark.parametrize(("n", "kernel", "stride"), [(16, 3, 1), (16, 3, 2), (5, 7, 1), (4, 9, 1), (7, 3, 2)])
def test_taps_against_a_convolution_of_ones(n, kernel, stride):
    """A convolution of ones with ones sums, over its outputs, exactly the taps inside."""
    out = torch.nn.functional.conv1d(torch.ones(1, 1, n), torch.ones(1, 1, kernel), stride=stride, padding=kernel // 2)
    assert taps(n, kernel, stride, kernel // 2) == int(out.sum())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_traced_counts_do_not_depend_on_the_device(device):
    config = PRESETS["mobilediffusion"].canonical()
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU()).to(device)
    total = traced.traced(network, torch.zeros(1, 3, 6, 6, device=device))
    assert total.macs == 9 * 3 * 8 * 36
    assert total.macs_padding_free == 16 * 16 * 3 * 8
    assert total.activation_bytes == 4 * 8 * 36
    assert config.cost(8, 1).params == 386_028_616


def test_describing_and_counting_need_no_torch():
    code = (
        "import sys; from nas.networks.backbones import unet; unet.presets()['sd15'].cost(64, 77);"
        "import nas.space.search_space, random; space = nas.space.search_space.SearchSpace.load('mobilediffusion');"
        "space.architecture(space.sample(random.Random(0))).cost(64, 77);"
        "assert not {'torch', 'optuna', 'numpy'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
