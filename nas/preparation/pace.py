"""How long what a study computes before its first trial will take, from a batch timed on this machine as busy as it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nas import menu
from nas.metrics import Reference
from nas.networks.backbones import Backbone, Proxy
from nas.networks.conditioning import Text
from nas.settings.study import Study
from nas.training import encoded
from nas.trial.bench import Bench, fresh

LOADING_S = 5.0  # of models, in all (assumption)
CALLED = 8  # latents of the call that is timed


@dataclass(frozen=True)
class Pace:
    """Seconds for one picture."""

    read_s: float
    encode_s: float
    decode_s: float
    score_s: float
    """All metrics."""
    call_s: float
    """The denoiser."""

    def references_s(self, study: Study, train: int, held_out: int) -> float:
        """Latents and features of all pictures, and the lines of reference that need no training."""
        latents = (train + held_out) * (2 * self.read_s + self.encode_s)
        features = train * (self.read_s + self.score_s)
        return LOADING_S + latents + features + self.drawn_s(study) + study.evaluation.images * self.scored_s(3)

    def drawn_s(self, study: Study) -> float:
        """Drawing and scoring what one network draws."""
        return study.evaluation.images * (study.sampling.calls * self.call_s + self.scored_s(1))

    def scored_s(self, times: int) -> float:
        return times * (self.decode_s + self.score_s)


def measure(bench: Bench, network: Backbone) -> Pace:
    """Time one batch of the training pictures, in a bench whose parts are all there."""
    began = time.perf_counter()
    batch = next(iter(bench.images("train")))
    read_s = (time.perf_counter() - began) / len(batch.captions)
    images, captions, count = batch.images, batch.captions, len(batch.captions)
    latents = bench.autoencoder.encode(images[:1])
    encode_s = _each(lambda: bench.autoencoder.encode(images), count) / encoded.side_by_side()
    decode_s = _each(lambda: bench.autoencoder.decode(latents.expand(count, -1, -1, -1)), count)
    text = bench.encoder.encode(captions[:1])
    encode_s += _each(lambda: bench.encoder.encode(captions), count)
    reference = Reference(batches=lambda: [batch], captions=captions, drawn=captions)
    score_s = 0.0
    for entry in bench.study.metrics:
        metric = menu.pick("metrics", entry.name).build(entry.settings("metrics"), reference)
        metric.update(images[:1], captions[:1])
        score_s += _each(lambda metric=metric: metric.update(images + 0, captions), count)  # type: ignore[misc]
    return Pace(read_s, encode_s, decode_s, score_s, _call_s(bench.study, network, latents, text))


def _call_s(study: Study, network: Backbone, latents: torch.Tensor, text: Text) -> float:
    """Of one latent, of the network at proxy scale with random weights."""
    proxy = Proxy(study.proxy.width_divisor, latents.shape[1], text.tokens.shape[2], text.pooled.shape[1])
    made = fresh(network.scaled(proxy), 0).eval()
    many = Text(text.tokens.expand(CALLED, -1, -1), text.pooled.expand(CALLED, -1))
    given = (latents.expand(CALLED, -1, -1, -1), torch.zeros(CALLED, dtype=torch.int64), many)
    with torch.no_grad():
        made(*given)
        return _each(lambda: made(*given), CALLED)


def _each(function: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) / count
