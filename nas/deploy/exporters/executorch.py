"""ExecuTorch with the XNNPACK delegate: one .pte a network, for phones; its Python runtime runs the same files here.

A file takes one picture at a time; larger batches are run row by row.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.deploy.exporters import Network, Unsupported, block_of, refusal
from nas.deploy.int8.methods import kept
from nas.errors import ArgumentError, brief

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from nas.deploy.graphs import Graph
    from nas.deploy.int8.methods import Method

RUNTIME = "executorch"
EXTRA = "executorch"
PACKAGES = ("executorch",)
PRECISIONS = ("fp32", "fp16")
INT8 = "what other processors give was not measured"
OPERATORS = {"static": ("conv2d", "linear"), "dynamic": ("linear",)}  # what becomes integers; the rest stays float32


def write(graph: Graph, path: Path, precision: str = "fp32") -> Path:
    """The graph as `path`.pte. Raises Unsupported for an operator that ExecuTorch lacks."""
    import torch

    made = graph.halved() if precision == "fp16" else graph
    with _quiet():
        traced = torch.export.export(made.module, made.random_inputs(1), strict=False)
        return _lowered(graph.name, traced, path.with_name(f"{path.name}.pte"))


def quantise(
    graph: Graph, plain: Path, target: Path, method: Method, calibration: Sequence[tuple[Tensor, ...]] = ()
) -> Path:
    """The graph at `target` with convolutions and linear layers in 8 bits, weights and activations int8, by XNNPACK's quantiser.

    Raises InputError when it cannot, or when what it makes cannot be lowered.
    """
    import torch
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    if method == "static" and not calibration:
        raise ArgumentError(f"quantise: {graph.name}: static quantisation needs calibration inputs, got none")
    inputs = graph.random_inputs(1)
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=method == "dynamic")
    quantizer = xnnpack.XNNPACKQuantizer().set_filter_function(lambda node: not kept(block_of(node)))
    for operator in OPERATORS[method]:
        quantizer.set_operator_type(getattr(torch.ops.aten, operator).default, config)
    with _quiet():
        try:
            prepared = prepare_pt2e(torch.export.export(graph.module, inputs, strict=False).module(), quantizer)
            for row in _rows(calibration if method == "static" else [inputs]):  # weights are looked at in a call, too
                prepared(*row)
            traced = torch.export.export(convert_pt2e(prepared), inputs, strict=False)
        except Exception as error:  # many classes
            raise ArgumentError(f"quantise: {graph.name}: XNNPACK cannot quantise it: {brief(error)}") from None
        return _lowered(graph.name, traced, target, method)


def _rows(calibration: Sequence[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of one picture each."""
    for inputs in calibration:
        yield from zip(*(value[:, None] for value in inputs), strict=True)


def _lowered(name: str, traced: ExportedProgram, target: Path, method: Method | None = None) -> Path:
    from executorch.backends.xnnpack.partition import xnnpack_partitioner as xnnpack
    from executorch.exir import to_edge_transform_and_lower

    measured = (xnnpack.XnnpackDynamicallyQuantizedPartitioner(),) if method == "dynamic" else ()
    partitioners = [*measured, xnnpack.XnnpackPartitioner()]
    try:
        program = to_edge_transform_and_lower(traced, partitioner=partitioners).to_executorch()
    except Exception as error:  # many classes, some private
        raise Unsupported(refusal("executorch", "ExecuTorch", name, _refused(traced, error), error)) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(program.buffer)
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without gradients, warnings and what the lowering prints."""
    import torch

    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _refused(traced: ExportedProgram, error: BaseException) -> Any:
    """The first node whose operator the error names, or None."""
    names = set(re.findall(r"\w+::\w+", str(error)))
    operators = ((node, str(getattr(node.target, "_schema", ""))) for node in traced.graph.nodes)
    return next((node for node, told in operators if told.partition("(")[0].partition(".")[0] in names), None)


def load(path: Path, threads: int | None = None) -> Network:
    """The file in ExecuTorch's runtime, which sets its own number of threads. Raises Unsupported when it lacks an operator."""
    import torch
    from executorch.runtime import Runtime

    try:
        program: Any = Runtime.get().load_program(path)
        method = program.load_method("forward")
    except RuntimeError as error:
        raise Unsupported(f"{path}: ExecuTorch cannot run it: {brief(error)}") from None

    def network(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = [
            [value.clone() for value in method.execute([part[row : row + 1].contiguous() for part in inputs])]
            for row in range(len(inputs[0]))
        ]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    # the method reads the program's memory: both must live as long as the network does
    vars(network)["kept"] = (program, method)
    return network
