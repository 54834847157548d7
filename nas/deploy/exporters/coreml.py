"""Core ML packages, converted on any system. They run on a Mac or an iPhone only, so here they are not compared with PyTorch."""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.deploy.exporters import Network, NoRuntime, Unsupported, named, refusal

if TYPE_CHECKING:
    from nas.deploy.graphs import Graph

RUNTIME = "coreml"
EXTRA = "coreml"
PACKAGES = ("coremltools",)
SYSTEMS = ("Darwin",)
PRECISIONS = ("fp16", "fp32")


def write(graph: Graph, path: Path, precision: str = "fp16") -> Path:
    """The graph as `path`.mlpackage for iOS 17 and later, one picture at a time. Raises Unsupported."""
    import torch

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools

    compute = coremltools.precision.FLOAT16 if precision == "fp16" else coremltools.precision.FLOAT32
    target = path.with_name(f"{path.name}.mlpackage")
    target.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # progress bars
        warnings.simplefilter("ignore")
        traced = torch.export.export(graph.module, graph.random_inputs(1), strict=True).run_decompositions({})
        try:
            made = coremltools.convert(
                traced, minimum_deployment_target=coremltools.target.iOS17, compute_precision=compute
            )
        except Exception as error:  # many classes
            node = named(traced, r"Unsupported fx node (\w+), kind", error)
            raise Unsupported(refusal("coreml", "Core ML", graph.name, node, error)) from None
    made.user_defined_metadata.update(graph.notes)
    made.save(str(target))
    return target


def load(path: Path, threads: int | None = None) -> Network:
    """The package on a Mac. Raises NoRuntime elsewhere."""
    if platform.system() not in SYSTEMS:
        raise NoRuntime(f"Core ML runs on a Mac, this is {platform.system()}")
    import coremltools
    import numpy as np
    import torch
    from torch import Tensor

    model: Any = coremltools.models.MLModel(str(path))
    description = model.get_spec().description
    names, outputs = ([value.name for value in part] for part in (description.input, description.output))

    def network(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = []
        for row in range(len(inputs[0])):
            fed = {name: value[row : row + 1].numpy() for name, value in zip(names, inputs, strict=True)}
            given = model.predict(fed)
            rows.append([torch.from_numpy(np.asarray(given[name])) for name in outputs])
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    return network
