"""ONNX graphs in 8-bit integers, by onnxruntime's quantiser: weights int8, activations uint8 (`nas.deploy.int8.methods`).

x86 processors without VNNI add two products of an unsigned and a signed byte in 16 bits, and what does not fit is cut off. So
weights use 7 of their 8 bits: 2 x 255 x 64 = 32,640 fits, and a file gives the same numbers everywhere. It costs neither size
nor speed; uint8 weights would be exact as well, but have slower kernels (studies/LOG.md).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.deploy.exporters import onnx as exporter
from nas.deploy.int8.methods import Method, kept
from nas.errors import ArgumentError, brief

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_WEIGHT = 64  # of int8 weights, after `reduce_range`
OPERATORS = {"static": ["Conv", "MatMul", "Gemm"], "dynamic": ["MatMul", "Gemm", "Gather"]}


def write(source: Path, target: Path, method: Method, calibration: Sequence[tuple[Tensor, ...]] = ()) -> Path:
    """The float32 graph at `source` with int8 weights of at most LARGEST_WEIGHT at `target`; `static` needs calibration inputs.

    Raises InputError when onnxruntime cannot quantise it.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    common: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": True}
    common |= {"op_types_to_quantize": OPERATORS[method], "nodes_to_exclude": _kept(source)}
    common["use_external_data_format"] = beside = exporter.weights_beside(source)
    with _quiet(), tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Path(scratch) / "quantised.onnx"
        try:
            if method == "dynamic":
                quantize_dynamic(source, made, **common)
            else:
                reader = _Reader(_names(source), calibration)
                prepared = _prepared(source, Path(scratch), beside)
                quantize_static(prepared, made, reader, QuantFormat.QDQ, activation_type=QuantType.QUInt8, **common)
        except Exception as error:  # onnxruntime raises many kinds
            raise ArgumentError(f"quantise: {source}: onnxruntime cannot quantise it: {brief(error)}") from None
        _save_stripped(made, target, source)
    return target


def _kept(path: Path) -> list[str]:
    """Names of nodes that stay float32."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    blocks = {node.name: entry.value for node in nodes for entry in node.metadata_props if entry.key == exporter.BLOCK}
    return [name for name, block in blocks.items() if kept(block)]


class _quiet:
    """onnxruntime's quantiser logs a warning for every layer it leaves alone."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)


def _prepared(source: Path, scratch: Path, beside: bool) -> Path:
    """The graph with inferred shapes, which static quantisation reads, and nothing inferred by the exporter; its weights in a
    file `beside` it where one file cannot hold them.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = scratch / "prepared.onnx"
    quant_pre_process(
        source, prepared, skip_symbolic_shape=True, save_as_external_data=beside, all_tensors_to_one_file=beside
    )
    return prepared


def _save_stripped(made: Path, target: Path, source: Path) -> None:
    """Save with what `source` says of itself, and without what the quantiser noted down."""
    import onnx

    model, plain = onnx.load(made), onnx.load(source, load_external_data=False)
    model.graph.name = plain.graph.name
    del model.metadata_props[:]
    model.metadata_props.extend(plain.metadata_props)
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    exporter.save(model, target)


def _names(path: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(path, load_external_data=False).graph.input]


class _Reader:
    """Calibration inputs as onnxruntime asks for them: one dictionary a call, then None."""

    def __init__(self, names: Sequence[str], inputs: Sequence[tuple[Tensor, ...]]):
        self.left: Iterator[Mapping[str, Any]] = iter(
            {name: value.contiguous().numpy() for name, value in zip(names, row, strict=True)} for row in inputs
        )

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self.left, None)
