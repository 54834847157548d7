"""Formats that hold a network as a graph, one file each, named as `nas export --format` names it.

A file imports without its packages, and provides

- `RUNTIME`: what runs the format, as `nas sample --runtime` names it;
- `EXTRA` and `PACKAGES`: the optional dependencies (`pip install 'nas[EXTRA]'`) and the modules they bring, the runtime's last;
- `PRECISIONS`: what it can compute in; the first is the default;
- `write(graph, path, precision) -> Path`: the file, whose suffix is the format's own, with the graph's notes where it has room
  for them. Raises `Unsupported`;
- `load(path, threads) -> Network`: the file on its runtime, `network(inputs) -> outputs`, float32 and int64 tensors of any
  batch size. Raises `Unsupported` when the runtime lacks an operator, and `NoRuntime` when it cannot run on this machine;
- if only some systems run it, `SYSTEMS`, as `platform.system()` names them;
- if it has 8-bit integers, `quantise(graph, plain, target, method, calibration) -> Path`: the same network as `plain`, which
  `write` gave in fp32, at `target` (`nas.deploy.int8.methods`). Raises `InputError` when it cannot; and `INT8`, what is known
  of them on other processors than the one at hand, for the model card.

The graph's own numbers decide: `nas.deploy.export` compares what `load` gives with PyTorch before an export counts as done. What
loads a format without nas is in `nas/assets/alone/runtime.py`.
"""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nas import menu
from nas.errors import InputError, brief

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

Network = Callable[["tuple[Tensor, ...]"], "tuple[Tensor, ...]"]


class Unsupported(InputError):
    """An operator that the format or its runtime lacks; the message names it and the block it came from."""


class NoRuntime(InputError):
    """The format can be written here, but not run."""


def block_of(node: Any) -> str:
    """The dotted name of the module that a node of a traced graph came from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (stack[-1][0] if stack else "") or "the network itself"


def named(traced: ExportedProgram, pattern: str, error: BaseException) -> Any:
    """The node of a traced graph whose name the pattern finds in an error, or None."""
    found = re.search(pattern, str(error))
    return next((node for node in traced.graph.nodes if found and node.name == found[1]), None)


def refusal(form: str, who: str, graph: str, node: Any, error: BaseException) -> str:
    """What is said when a graph cannot be written: the operator that `who` lacks and its block, where the node is known."""
    if node is None:
        return f"format {form}: {graph} cannot be written: {brief(error)}"
    return f"format {form}: {graph} uses the operator {node.target}, which {who} lacks, in block {block_of(node)}"


def missing(module: ModuleType) -> list[str]:
    """Packages of a format that are not installed."""
    return [name for name in module.PACKAGES if importlib.util.find_spec(name) is None]


def runs_here(module: ModuleType) -> bool:
    """Whether the runtime of a format is installed, and made for this system."""
    return not missing(module) and platform.system() in getattr(module, "SYSTEMS", (platform.system(),))


def require(names: Iterable[str]) -> list[ModuleType]:
    """The formats of these names. Raises InputError for an unknown one, or one whose packages are not installed."""
    modules = []
    for name in names:
        module = menu.pick("exporters", name)
        absent = missing(module)
        if absent:
            raise InputError(
                f"format {name}: needs {', '.join(absent)}, not installed; pip install 'nas[{module.EXTRA}]'"
            )
        modules.append(module)
    return modules
