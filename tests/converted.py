"""ONNX graphs, whose conversion takes ten seconds even of a shipped text encoder: what was converted before is copied."""

import functools
import os
import shutil
from contextlib import contextmanager
from hashlib import sha256

import pytest
import torch


def folder(tmp_path_factory):
    """Where the processes of one test session keep what they converted."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "conversions"


@contextmanager
def shared(tmp_path_factory):
    """Inside, exports take the graphs that another test had converted."""
    from nas.deploy.exporters import onnx

    _table_read_once()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "write", once(onnx.write, folder(tmp_path_factory)))
        yield


def _table_read_once():
    """torch reads its table of ONNX operators from source for every graph, a third of the work of a small one."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


def once(write, kept):
    """`nas.deploy.exporters.onnx.write`, which copies from the folder `kept` what computes the same with the same weights."""

    @functools.wraps(write)
    def again(graph, path, precision="fp32"):
        made = kept / f"{_fingerprint(graph, precision)}.onnx"
        target = path.with_name(f"{path.name}.onnx")
        target.parent.mkdir(parents=True, exist_ok=True)
        if made.exists():
            shutil.copy(made, target)
            return target
        written = write(graph, path, precision)
        kept.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(f".{os.getpid()}")
        shutil.copy(written, partial)
        partial.replace(made)
        return written

    return again


@torch.no_grad()
def _fingerprint(graph, precision):
    said = sha256(repr([graph.name, precision, graph.inputs, graph.outputs, sorted(graph.notes.items())]).encode())
    inputs = graph.random_inputs(2)
    weights = [value for _, value in sorted(graph.module.state_dict().items())]
    for value in (*weights, *inputs, *graph.run(inputs)):
        said.update(repr(tuple(value.shape)).encode() + value.contiguous().view(-1).numpy().tobytes())
    return said.hexdigest()
