"""ExecuTorch with the XNNPACK delegate: one .pte a network, for phones; its Python runtime runs the same files here.

A file takes one picture at a time; larger batches are run row by row.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import brief
from nas.exporters import Network, Unsupported, block_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from nas.graphs import Graph

RUNTIME = "executorch"
EXTRA = "executorch"
PACKAGES = ("executorch",)
PRECISIONS = ("fp32", "fp16")


def write(graph: Graph, path: Path, precision: str = "fp32") -> Path:
    """The graph as `path`.pte. Raises Unsupported for an operator that ExecuTorch lacks."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    made = graph.halved() if precision == "fp16" else graph
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        traced = torch.export.export(made.module, made.random_inputs(1), strict=True)
        try:
            lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
            program = lowered.to_executorch()
        except Exception as error:  # many classes, some private
            raise Unsupported(_told(graph.name, traced, error)) from None
    target = path.with_name(f"{path.name}.pte")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(program.buffer)
    return target


def _told(name: str, traced: ExportedProgram, error: BaseException) -> str:
    """Which operator of which block could not be lowered."""
    refused = set(re.findall(r"\w+::\w+", str(error)))
    for node in traced.graph.nodes:
        if str(getattr(node.target, "_schema", "")).partition("(")[0].partition(".")[0] in refused:
            return f"format executorch: {name} uses the operator {node.target}, which ExecuTorch lacks, in block {block_of(node)}"
    return f"format executorch: {name} cannot be lowered: {brief(error)}"


def load(path: Path, threads: int | None = None) -> Network:
    """The file in ExecuTorch's runtime, which sets its own number of threads. Raises Unsupported when it lacks an operator."""
    import torch
    from executorch.runtime import Runtime
    from torch import Tensor

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
