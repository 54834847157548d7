"""What another runtime or precision costs: a study's own scores of the pictures it draws, and its speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from nas import metrics
from nas.networks.conditioning import Text
from nas.trial.bench import SCORE_BATCH

if TYPE_CHECKING:
    from nas.deploy.drawer import Drawer
    from nas.deploy.exporters import Network
    from nas.trial.bench import Bench

CALIBRATION = 16  # captions drawn to see the ranges of activations
REPEATS = 15  # pairs of calls behind a speed ratio


def calibration_captions(bench: Bench) -> list[str]:
    """Captions of the training split, spread over it."""
    captions = bench.train_data.captions[:-1]
    return list(captions[:: max(1, len(captions) // CALIBRATION)][:CALIBRATION])


@torch.no_grad()
def scores(bench: Bench, drawer: Drawer) -> dict[str, float]:
    """The study's metrics by column: its evaluation captions and noise, every network on the drawer's runtime."""
    return metrics.scores(bench.metrics, bench.captioned(_drawn(bench, drawer)))


def _drawn(bench: Bench, drawer: Drawer) -> Iterator[torch.Tensor]:
    captions, _, noise = bench.drawn
    for start in range(0, len(noise), SCORE_BATCH):
        text = Text(*drawer.encode(captions[start : start + SCORE_BATCH]))
        yield drawer.decode(drawer.sample(noise[start : start + SCORE_BATCH], text))


def speed_ratio(before: Network, after: Network, inputs: tuple[torch.Tensor, ...]) -> float:
    """How many times faster `after` is: the median over pairs of calls, one picture each, in CPU time of this process."""
    one = tuple(value[:1] for value in inputs)
    ratios = []
    for repeat in range(REPEATS + 2):
        spent = [_cpu_seconds(network, one) for network in (before, after)]
        if repeat > 1:  # the first two warm up
            ratios.append(spent[0] / spent[1])
    return statistics.median(ratios)


def _cpu_seconds(network: Network, inputs: tuple[torch.Tensor, ...]) -> float:
    began = time.process_time()
    network(inputs)
    return max(time.process_time() - began, 1e-9)


def told(
    scored: Mapping[str, Mapping[str, float]], entries: Mapping[str, Mapping[str, Any]], runtime: str, device: str
) -> list[str]:
    """Lines for the model card: what int8 costs and gives, and on which device that was measured."""
    lines = [
        f"int8 {name} ({entry['method']}): {entry['size_ratio']:.2f} of the size, {entry['speed_ratio']:.2f} times as fast "
        f"in CPU time, one picture at a time"
        for name, entry in entries.items()
    ]
    for column, before in scored["fp32"].items():
        after = scored["int8"][column]
        change = f" ({after / before - 1:+.1%})" if before else ""
        lines.append(f"{column}: {before:.5g} in fp32, {after:.5g} in int8{change}, all networks on {runtime}")
    return [*lines, f"int8 was measured on {device}"]
