"""The three networks behind a picture as graphs: modules that take and give plain tensors, with inputs to try them on.

text_encoder  input_ids (B, context) int64 (BERT: and attention_mask) -> states (B, T, D), pooled (B, P)
denoiser      latents (B, C, H, W), time (B,) int64, tokens, pooled -> prediction (B, C, H, W)
decoder       latents (B, C, H, W) -> images (B, 3, H f, W f) in [-1, 1]

Everything that leaves PyTorch (export formats, latency on other runtimes) starts here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nas.networks.autoencoders import Autoencoder
from nas.networks.conditioning import Text, TextEncoder

NAMES = ("text_encoder", "denoiser", "decoder")
TIMES = 1000  # a denoiser is asked about times below this
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Graph:
    """One network, its tensors in order and by name."""

    name: str
    module: nn.Module
    """Positional tensors in; one tensor or a tuple of them out. In eval mode."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    draw: Callable[[int, torch.Generator], Tensors]
    """Random inputs of a batch size, reproducible."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What a file of it says of itself, in formats with room for that (`nas.deploy.contents.wiring.notes`)."""

    def random_inputs(self, batch: int, seed: int = 0) -> Tensors:
        """Inputs to compare runtimes on."""
        return self.draw(batch, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def run(self, inputs: Tensors) -> Tensors:
        """What PyTorch gives for them."""
        return as_tuple(self.module(*inputs))

    def halved(self) -> Graph:
        """The same network computing in float16, its tensors still float32."""
        return replace(self, module=Half(copy.deepcopy(self.module)).eval())

    @property
    def parameter_bytes(self) -> int:
        """Size of the weights as they are."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.module.state_dict().values())


def as_tuple(given: Tensor | Tensors) -> Tensors:
    """Outputs as a tuple, however many there are."""
    return (given,) if isinstance(given, Tensor) else tuple(given)


class Half(nn.Module):
    """A network in float16 between float32 tensors."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.half()

    def forward(self, *inputs: Tensor) -> Tensors:
        given = (x.half() if x.is_floating_point() else x for x in inputs)
        return tuple(x.float() for x in as_tuple(self.module(*given)))


class Denoiser(nn.Module):
    """A backbone whose text comes as two tensors."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        prediction: Tensor = self.network(latents, time, Text(tokens, pooled))
        return prediction


def denoiser(network: nn.Module, latents: tuple[int, int, int], tokens: tuple[int, int], pooled: int) -> Graph:
    """The graph of a backbone for latents (C, H, W), text tokens (T, D) and a pooled vector of width `pooled`."""

    def draw(batch: int, generator: torch.Generator) -> Tensors:
        time = torch.randint(TIMES, (batch,), generator=generator)
        noise, states, vector = (
            torch.randn((batch, *shape), generator=generator) for shape in (latents, tokens, (pooled,))
        )
        return noise, time, states, vector

    names = ("latents", "time", "tokens", "pooled")
    return Graph("denoiser", Denoiser(network).eval(), names, ("prediction",), draw)


def decoder(module: nn.Module, latents: tuple[int, int, int]) -> Graph:
    """The graph of a decoder for latents (C, H, W)."""

    def draw(batch: int, generator: torch.Generator) -> Tensors:
        return (torch.randn((batch, *latents), generator=generator),)

    return Graph("decoder", module.eval(), ("latents",), ("images",), draw)


def text_encoder(encoder: TextEncoder) -> Graph:
    """The graph of a text encoder; it is tried on its examples in random order."""
    tried = encoder.tokenise(encoder.examples)

    def draw(batch: int, generator: torch.Generator) -> Tensors:
        rows = torch.randint(len(encoder.examples), (batch,), generator=generator)
        return tuple(numbers[rows] for numbers in tried.values())

    return Graph("text_encoder", encoder.network().eval(), tuple(tried), ("states", "pooled_text"), draw)


def of_pipeline(
    network: nn.Module, encoder: TextEncoder, autoencoder: Autoencoder, side: int, pooled: int
) -> tuple[Graph, Graph, Graph]:
    """Text encoder, denoiser and decoder of what was trained together, for latents of this side and pooled vectors of width
    `pooled`."""
    latents = (autoencoder.channels, side, side)
    text = (encoder.length, encoder.width)
    return (
        text_encoder(encoder),
        denoiser(network, latents, text, pooled),
        decoder(autoencoder.decoder(), latents),
    )


def relative_error(found: Tensors, expected: Tensors) -> float:
    """The largest difference over the largest expected number, of the output where that is worst; NaN if any number is."""
    pairs = zip(found, expected, strict=True)
    return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp_min(1e-12) for a, b in pairs]).max())
