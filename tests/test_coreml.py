"""Core ML, where its extra is installed: packages are written anywhere; what it lacks is named with its block."""

import dataclasses
import importlib.util
import platform

import exported
import pytest
from torch import nn

from nas.deploy import exporters, graphs
from nas.deploy.exporters import coreml

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None, reason="the extra coreml is not installed"
)


def test_a_package_is_written_and_runs_on_a_mac_only(tmp_path):
    path = coreml.write(graphs.decoder(nn.Conv2d(4, 8, 3), (4, 8, 8)), tmp_path / "small")
    assert path.name == "small.mlpackage" and path.is_dir()
    if platform.system() != "Darwin":
        with pytest.raises(exporters.NoRuntime, match="runs on a Mac"):
            coreml.load(path)


def test_an_operator_it_lacks_is_named_with_its_block(tmp_path):
    with pytest.raises(
        exporters.Unsupported,
        match=r"coreml: decoder uses the operator nas_tests\.odd.*, which Core ML lacks, in block blocks\.1$",
    ):
        coreml.write(graphs.decoder(exported.HasOdd(), (4, 2, 2)), tmp_path / "odd")
    assert not list(tmp_path.iterdir())


def test_a_package_says_what_its_network_says_of_itself(tmp_path):
    import coremltools

    graph = dataclasses.replace(graphs.decoder(nn.Conv2d(4, 8, 3), (4, 8, 8)), notes={"network": "decoder"})
    path = coreml.write(graph, tmp_path / "small")
    held = coremltools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata
    assert held["network"] == "decoder"
