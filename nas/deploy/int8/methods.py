"""Post-training quantisation to 8-bit integers: which network how, and on which inputs; each format does it for its runtime.

Weights become int8, one scale a channel (for onnxruntime of 7 bits, see `nas.deploy.int8.onnx`). `static` takes the ranges of
activations from calibration inputs, which an export records while it draws captions of its own study; `dynamic` measures them
anew in every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from nas.deploy.drawer import Drawer
    from nas.deploy.exporters import Network

PRECISION = "int8"
Method = Literal["static", "dynamic"]
METHODS: dict[str, Method] = {"text_encoder": "dynamic", "denoiser": "static", "decoder": "static"}
KEPT = ("conv_in", "conv_out", "embedding", "patches", "unpatch", "smooth", "time")  # blocks
BATCH = 8  # rows of one calibration input
Calibration = dict[str, list["tuple[Tensor, ...]"]]  # inputs of each network, by the names of `nas.deploy.graphs`


def kept(block: str) -> bool:
    """Whether a block (its dotted name) stays float32: first and last convolution and the embedding of the time, few numbers
    that matter much."""
    return bool(set(KEPT) & set(block.split(".")))


def recorded(drawer: Drawer, captions: Sequence[str], seed: int) -> Calibration:
    """What each network is given while `captions` are drawn, BATCH rows at a time."""
    seen: Calibration = {name: [] for name in drawer.networks}
    ends = (slice(BATCH), slice(-BATCH, None))  # of a guided batch, without and with the caption

    def listening(name: str, network: Network) -> Network:
        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen[name] += [tuple(value[rows].clone() for value in inputs) for rows in ends]
            return network(inputs)

        return run

    networks = {name: listening(name, network) for name, network in drawer.networks.items()}
    replace(drawer, networks=networks).draw(captions, seed)
    return seen
