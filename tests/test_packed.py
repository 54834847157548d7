"""Weights in 8 bits: half a step of every row at most, and what else is in a file stays."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nas.disk import packed, weight_files
from nas.errors import InputError


def test_rows_are_kept_to_half_a_step_and_the_rest_to_half_precision():
    tensors = {
        "kernel": torch.randn(32, 8, 3, 3) * torch.logspace(-4, 2, 32)[:, None, None, None],
        "zero": torch.zeros(16, 32),
        "bias": torch.randn(300),
        "small": torch.randn(4, 4),
    }
    stored = packed.pack(tensors)
    assert stored["kernel"].dtype == torch.int8 and stored["bias"].dtype == stored["small"].dtype == torch.float16
    found = packed.unpack(stored)
    assert set(found) == set(tensors)
    step = tensors["kernel"].flatten(1).abs().amax(1) / 127
    error = (found["kernel"] - tensors["kernel"]).flatten(1).abs().amax(1)
    assert (error <= 0.5001 * step).all()
    assert torch.equal(found["zero"], tensors["zero"]) and torch.equal(found["bias"], tensors["bias"].half())


def test_a_packed_file_is_read_as_any_other_and_a_wrong_scale_is_said(tmp_path):
    tensors = {"matrix": torch.randn(20, 30), "bias": torch.randn(20)}
    save_file(tensors, tmp_path / "whole.safetensors", {"made_for": "scenes"})
    command = [
        sys.executable,
        "-m",
        "nas.assets.pack",
        str(tmp_path / "whole.safetensors"),
        str(tmp_path / "8.safetensors"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    found = weight_files.read(tmp_path / "8.safetensors", "init")
    assert found.metadata == {"made_for": "scenes"}
    assert torch.allclose(found.tensors["matrix"], tensors["matrix"], atol=float(tensors["matrix"].abs().max()) / 250)
    stored = load_file(tmp_path / "8.safetensors")
    save_file({**stored, packed.SCALES: torch.ones(3)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"init: .*bad.safetensors.*3 scales for 20 rows in 8 bits"):
        weight_files.read(tmp_path / "bad.safetensors", "init")
