"""ExecuTorch, where its extra is installed: files compute what PyTorch does; what it lacks is named with its block."""

import importlib.util

import exported
import numpy as np
import pytest
import torch
from torch import nn

from nas.deploy import drawer, export, exporters, graphs
from nas.deploy.exporters import executorch
from nas.errors import InputError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="the extra executorch is not installed"
)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, latents):
        return nn.functional.silu(self.norm(self.first(latents)))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2)])
def test_a_file_computes_what_pytorch_does(tmp_path, precision, tolerance):
    graph = graphs.decoder(exported.randomised(Small()), (4, 8, 8))
    network = executorch.load(executorch.write(graph, tmp_path / "small", precision))
    for batch in (1, 3):
        inputs = graph.random_inputs(batch, seed=4)
        assert graphs.relative_error(network(inputs), graph.run(inputs)) < tolerance


def test_an_operator_it_lacks_is_named_with_its_block(tmp_path):
    with pytest.raises(exporters.Unsupported, match=r"decoder uses the operator nas_tests\.odd.* in block blocks\.1$"):
        executorch.write(graphs.decoder(exported.HasOdd(), (4, 2, 2)), tmp_path / "odd")
    assert not list(tmp_path.iterdir())


def test_a_folder_draws_alone(tmp_path):
    """With ExecuTorch and its torch, numpy and Pillow: no nas and nothing that it encodes captions with."""
    run = exported.run_directory(tmp_path / "small" / "2026")
    folder = export.export(run, "trial:0", tmp_path / "model", ["safetensors", "executorch"])
    asked = [{"seed": 3}, {"seed": 4, "guidance": 1.0}]
    without = ("nas", "open_clip", "diffusers", "transformers", "tokenizers", "ftfy")
    found = exported.drawn_alone(folder, exported.CAPTIONS, asked, without=without)
    plain = drawer.load(folder, "pytorch")
    for how, pictures in zip(asked, found, strict=True):
        expected = plain.draw(exported.CAPTIONS, **how).permute(0, 2, 3, 1).numpy()
        assert expected.std() > 0.05 and np.abs(pictures - expected).max() < 1e-4


class Single(nn.Module):
    """x -> x, as a layer that may become integers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.inner.weight.data = torch.eye(4).reshape(inner.weight.shape)

    def forward(self, latents):
        return self.inner(latents)


def quantised(module, tmp_path, method, calibration=()):
    graph = graphs.decoder(module, (4, 4, 4))
    return executorch.load(
        executorch.quantise(graph, tmp_path / "plain.pte", tmp_path / "small.pte", method, calibration)
    )


def test_static_ranges_are_those_of_the_calibration(tmp_path):
    inputs = torch.linspace(-1, 1, 128).view(2, 4, 4, 4)
    network = quantised(Single(nn.Conv2d(4, 4, 1, bias=False)), tmp_path, "static", [(inputs,)])
    assert torch.allclose(network((inputs,))[0], inputs, atol=2.02 * 2 / 255)
    assert torch.allclose(network((torch.full((1, 4, 4, 4), 5.0),))[0], torch.ones(()), atol=4 * 2 / 255)


def test_dynamic_ranges_are_those_of_the_call(tmp_path):
    network = quantised(Single(nn.Linear(4, 4, bias=False)), tmp_path, "dynamic")
    for reach in (1.0, 100.0):
        inputs = torch.linspace(-reach, reach, 64).view(1, 4, 4, 4)
        assert torch.allclose(network((inputs,))[0], inputs, atol=1.01 * 2 * reach / 255)


def test_weights_become_bytes_but_for_the_first_convolution(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in, self.inner = nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, latents):
            return self.inner(self.conv_in(latents))

    graph = graphs.decoder(exported.randomised(Two()), (4, 4, 4))
    plain, small = executorch.write(graph, tmp_path / "plain"), tmp_path / "small.pte"
    inputs = graph.random_inputs(2, seed=9)
    network = executorch.load(executorch.quantise(graph, plain, small, "static", [inputs]))
    saved = plain.stat().st_size - small.stat().st_size
    assert saved == pytest.approx(3 * graph.module.inner.weight.numel(), rel=0.05)
    assert 1e-5 < graphs.relative_error(network(inputs), graph.run(inputs)) < 0.05


def test_static_needs_calibration(tmp_path):
    with pytest.raises(InputError, match="quantise: decoder: static quantisation needs calibration inputs"):
        quantised(Single(nn.Conv2d(4, 4, 1)), tmp_path, "static")
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "x.pte").write_bytes(b"no program")
    with pytest.raises(exporters.Unsupported, match="ExecuTorch cannot run it"):
        executorch.load(tmp_path / "x.pte")
