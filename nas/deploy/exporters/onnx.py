"""ONNX through `torch.onnx.export(dynamo=True)`, run by onnxruntime. The batch is a free dimension."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.deploy.exporters import Network, Unsupported, named, refusal
from nas.deploy.int8 import onnx as onnx_int8
from nas.errors import InputError, brief

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor
    from torch.export import ExportedProgram

    from nas.deploy.graphs import Graph
    from nas.deploy.int8.methods import Method

RUNTIME = "onnxruntime"
EXTRA = "onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PRECISIONS = ("fp32", "fp16")
BLOCK = "block"  # the key under which every node says which module it came from
INT8 = "weights have 7 bits, so that no product is cut off on processors without VNNI: they draw the same, at another speed"
LARGEST = 1_500_000_000  # bytes of weights in one file; protobuf ends at 2 GiB, and more go into a file beside it
TRACED_BATCH = 2  # a batch of one would be taken for a constant


def write(graph: Graph, path: Path, precision: str = "fp32") -> Path:
    """The graph as `path`.onnx. Raises Unsupported for an operator that ONNX lacks."""
    import torch

    made = graph.halved() if precision == "fp16" else graph
    inputs = made.random_inputs(TRACED_BATCH)
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.export.export(made.module, inputs, dynamic_shapes=(free,) if _variadic(made.module) else free)
        program = _converted(made, traced)
    _clean(program.model)
    program.model.graph.name = graph.name
    program.model.metadata_props.update(graph.notes)
    target = path.with_name(f"{path.name}.onnx")
    target.parent.mkdir(parents=True, exist_ok=True)
    _beside(target).unlink(missing_ok=True)
    program.save(str(target), external_data=made.parameter_bytes > LARGEST)
    return target


def weights_beside(path: Path) -> bool:
    """Whether a file's weights lie in a second file, because one cannot hold them."""
    return _beside(path).is_file()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def save(model: ModelProto, path: Path) -> None:
    """Write a model, its weights beside it where one file cannot hold them."""
    import onnx

    large = sum(len(value.raw_data) for value in model.graph.initializer) > LARGEST
    _beside(path).unlink(missing_ok=True)  # onnx would append to it
    onnx.save(model, path, save_as_external_data=large, location=_beside(path).name)


def quantise(
    graph: Graph, plain: Path, target: Path, method: Method, calibration: Sequence[tuple[Tensor, ...]] = ()
) -> Path:
    """The float32 file `plain` in 8 bits at `target`. Raises InputError when onnxruntime cannot quantise it."""

    return onnx_int8.write(plain, target, method, calibration)


def _variadic(module: Any) -> bool:
    """Whether its forward takes *inputs, whose shapes torch.export wants as one entry."""
    (first, *_) = inspect.signature(module.forward).parameters.values()
    return bool(first.kind is first.VAR_POSITIONAL)


def _converted(graph: Graph, traced: ExportedProgram) -> Any:
    import torch

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        return torch.onnx.export(
            traced, dynamo=True, verbose=False, input_names=list(graph.inputs), output_names=list(graph.outputs)
        )
    except torch.onnx.OnnxExporterError as error:
        node = named(traced, r"Error when translating node %(\w+)", error)
        raise Unsupported(refusal("onnx", "ONNX", graph.name, node, error)) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _clean(model: Any) -> None:
    """Keep of each node's notes only its block, and drop inferred shapes: half of a small file, and in the way of int8."""
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
        value.shape = type(value.shape)(["batch", *list(value.shape)[1:]])
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
        node.metadata_props.clear()
        node.metadata_props[BLOCK] = scopes[-2] if len(scopes) > 1 else ""
        for value in node.outputs:
            value.metadata_props.clear()
            if value.name not in kept:
                value.shape = value.type = None


def load(path: Path, threads: int | None = None) -> Network:
    """The file in onnxruntime on the CPU. Raises Unsupported, or InputError when it cannot be read."""
    import numpy as np
    import torch

    session = session_of(path, threads)
    names = [value.name for value in session.get_inputs()]

    def network(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fed = {name: value.contiguous().numpy() for name, value in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(np.asarray(value)) for value in session.run(None, fed))

    return network


def session_of(path: Path, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU; `threads` None: as many as torch uses."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    if path.is_file() and _has_halves(
        path
    ):  # onnxruntime 1.31.1 dies (a segmentation fault) in its layout pass on these
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others use these cores
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # one class for each status, all private
        raise _refused(path, error) from None


def _has_halves(path: Path) -> bool:
    """Whether any weight is float16."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # no ONNX file: onnxruntime says so in its own words
        return False
    return any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)


def _refused(path: Path, error: Exception) -> InputError:
    """What onnxruntime's refusal means: a missing operator with its block, or a file it cannot read."""
    told = str(error)
    by_name = re.search(r"implementation for (\S+?)\(\d+\) node with name '([^']*)'", told)
    by_operator = re.search(r"(\S+)\(-?\d+\) is not a registered function", told)
    if not by_name and not by_operator:
        return InputError(f"{path}: onnxruntime cannot read it: {brief(error)}")
    operator = by_name[1] if by_name else by_operator[1] if by_operator else ""
    block = _block_of(path, name=by_name[2] if by_name else None, operator=operator)
    return Unsupported(f"{path}: onnxruntime lacks the operator {operator}, used in block {block}")


def _block_of(path: Path, name: str | None, operator: str) -> str:
    import onnx

    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.name == name or (name is None and operator in (node.op_type, f"{node.domain}:{node.op_type}")):
            notes = {entry.key: entry.value for entry in node.metadata_props}
            return notes.get(BLOCK) or f"of node {node.name!r}"
    return "unknown"
