"""Every export format keeps the contract of nas/deploy/exporters: what it writes, it loads, and that computes as PyTorch does."""

import pytest
import torch
from torch import nn

from nas import menu
from nas.deploy import exporters, graphs
from nas.deploy.export import TOLERANCE


@pytest.fixture(scope="module", params=menu.names("exporters"))
def module(request):
    return menu.pick("exporters", request.param)


def test_what_it_says_of_itself(module):
    assert module.RUNTIME and isinstance(module.RUNTIME, str) and module.EXTRA
    assert module.PACKAGES and module.PRECISIONS and set(module.PRECISIONS) <= set(TOLERANCE)
    others = [menu.pick("exporters", name) for name in menu.names("exporters")]
    assert [other.RUNTIME for other in others].count(module.RUNTIME) == 1


def test_a_graph_written_and_loaded_computes_what_pytorch_does(module, tmp_path):
    if exporters.missing(module):
        pytest.skip(f"not installed: {', '.join(exporters.missing(module))}")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 1))
    graph = graphs.decoder(network, (4, 8, 8))
    path = module.write(graph, tmp_path / "folder" / "decoder", module.PRECISIONS[0])
    assert path.parent == tmp_path / "folder" and path.name.startswith("decoder.") and path.exists()
    try:
        loaded = module.load(path)
    except exporters.NoRuntime as reason:
        pytest.skip(str(reason))
    for batch in (1, 3):  # other batches than the one that is traced
        inputs = graph.random_inputs(batch, seed=batch)
        assert graphs.relative_error(loaded(inputs), graph.run(inputs)) < TOLERANCE[module.PRECISIONS[0]]
