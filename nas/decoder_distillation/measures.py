"""What a decoder is worth beside its teacher, on latents that no training saw: pictures, costs and times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric

from nas import menu, metrics
from nas.cost.count import Cost, conv2d
from nas.datasets import Batch
from nas.deploy import exporters, graphs
from nas.deploy.speed import latency
from nas.metrics import Reference
from nas.networks.autoencoders.kl import Decoder
from nas.networks.decoders.kl.network import Decoder as Network
from nas.schedules.drawing import BATCH
from nas.settings.entries import Entry

DISTANCES = ("fid", "kid", "mind")  # metrics that compare with pictures, here the teacher's
REPEATS, THREADS = 21, 1
RUNTIMES = (latency.EAGER, "onnxruntime")


def to_teacher(entries: Sequence[Entry], pictures: Tensor, captions: Sequence[str]) -> list[Metric]:
    """Those of the study's metrics that are distances, or `mind`, with the teacher's pictures (N, 3, S, S) as the real ones."""
    chosen = [entry for entry in entries if entry.name in DISTANCES] or [Entry(name="mind")]
    parts = torch.split(pictures, BATCH)
    batches = [Batch(part, [""] * len(part), [""] * len(part)) for part in parts]
    reference = Reference(lambda: batches, list(captions), None, list(captions))
    return [menu.pick("metrics", entry.name).build(entry.settings("metrics"), reference) for entry in chosen]


def distances(built: Sequence[Metric], pictures: Tensor) -> dict[str, float]:
    """Of pictures (N, 3, S, S) from the teacher's, by `<column>_to_teacher`."""
    found = metrics.scores(built, ((part, [""] * len(part)) for part in torch.split(pictures, BATCH)))
    return {f"{column}_to_teacher": value for column, value in found.items()}


def cost(decoder: Decoder, side: int) -> Cost:
    """Closed form of a decoder of `nas.networks.decoders.kl` for latents of this side, its first convolution included."""
    network = decoder.network
    assert isinstance(network, Network)
    values = asdict(network.config.cost(side))
    if decoder.convolution is not None:
        channels = network.config.latent_channels
        own = conv2d(side, channels, channels, 1)
        values["params"] += own.params
        for name in ("macs", "macs_without_attention", "macs_padding_free"):
            values[name] += own.macs
        values["activation_bytes"] += 4 * own.activations
    return Cost(**values)


def runtimes() -> list[str]:
    """Those that a decoder is timed on here."""
    here = [name for name in menu.names("exporters") if exporters.runs_here(menu.pick("exporters", name))]
    able = {latency.EAGER, *(menu.pick("exporters", name).RUNTIME for name in here)}
    return [name for name in RUNTIMES if name in able]


def times(decoders: Mapping[float, Decoder], latents: tuple[int, int, int]) -> dict[float, dict[str, float]]:
    """Milliseconds of one picture, by ratio: median and quartiles by runtime. Decoders are called in turns, so that what
    else the machine does falls on all alike."""
    found: dict[float, dict[str, float]] = {ratio: {} for ratio in decoders}
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for runtime in runtimes():
                calls = {
                    ratio: _call(decoder, latents, runtime, Path(scratch) / f"{ratio:g}")
                    for ratio, decoder in decoders.items()
                }
                spent: dict[float, list[tuple[float, float]]] = {ratio: [] for ratio in calls}
                for turn in range(REPEATS + 1):
                    for ratio, call in calls.items():
                        wall, cpu = time.perf_counter(), time.process_time()
                        call()
                        if turn:  # the first warms up
                            now = 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)
                            spent[ratio].append(now)
                for ratio, taken in spent.items():
                    timing = latency.summary(taken)
                    found[ratio] |= {f"{runtime}_{name}": value for name, value in asdict(timing).items()}
    finally:
        torch.set_num_threads(before)
    return found


def _call(decoder: Decoder, latents: tuple[int, int, int], runtime: str, scratch: Path) -> Callable[[], object]:
    scratch.mkdir(exist_ok=True)
    graph = graphs.decoder(decoder, latents)
    return partial(latency.on_runtime(graph, runtime, THREADS, scratch), graph.random_inputs(1))
