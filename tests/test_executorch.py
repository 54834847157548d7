"""ExecuTorch, where its extra is installed: files compute what PyTorch does; what it lacks is named with its block."""

import importlib.util

import exported
import pytest
from torch import nn

from nas import exporters, graphs
from nas.exporters import executorch

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


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "x.pte").write_bytes(b"no program")
    with pytest.raises(exporters.Unsupported, match="ExecuTorch cannot run it"):
        executorch.load(tmp_path / "x.pte")
