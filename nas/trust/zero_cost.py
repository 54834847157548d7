"""Zero-cost scores: what a network says about itself before training, from a few backward passes; higher is hoped better.

A layer is a convolution or a linear layer, and its weights are its matrix: biases and normalisation layers do not count,
as in the code of Abdelfattah et al. (2021) and Li et al. (2023). Gradients are those of the loss the network would be
trained on.

Denoisers start with zeroed layers, below which no gradient arrives: `wake` them first. Every score leaves the network
and the batches' random generators exactly as they were, so it gives the same number twice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from nas.networks.backbones import Linearised
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch

Loss = Callable[[LatentBatch], Tensor]
Gradients = dict[str, list[Tensor]]  # layer -> the gradient of its weights on each batch, float64

NAMES = ("grad_norm", "snip", "synflow", "naswot", "zico")

ACTIVATIONS = {F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, torch.relu, Tensor.relu}


def scores(network: nn.Module, objective_loss: Loss, batches: Sequence[LatentBatch]) -> dict[str, float]:
    """All scores by name (`NAMES`), from one backward pass per batch.

    `objective_loss` is the training loss of `network` on a batch, such as `Objective.generator_loss`. ValueError for
    fewer than two batches, a loss that is not finite, and a layer whose weights are all zero (see `wake`).
    """
    asleep = [name for name, layer in layers(network).items() if not layer.weight.any()]
    if asleep:
        raise ValueError(f"zero-cost scores: the weights of {asleep[0]} are all zero; expected a network after `wake`")
    _check_enough(batches)
    found = gradients(network, objective_loss, batches)
    return {
        "grad_norm": _grad_norm(found),
        "snip": _snip(network, found),
        "synflow": synflow(network, batches[0]),
        "naswot": naswot(network, objective_loss, batches),
        "zico": _zico(found),
    }


def wake(network: nn.Module, generator: torch.Generator, scale: float = 0.1) -> tuple[str, ...]:
    """Give every layer whose weights are all zero small noise, in place; return the names of those layers.

    The noise is normal with standard deviation scale / sqrt(fan-in), so that a layer's output has `scale` times the
    root mean square of its input at every width. Zero biases stay zero, and layers with any other weight are left alone.
    0.1 is our choice (assumption): a residual branch then adds about a tenth of its input.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"wake: scale={scale} must be a positive number")
    woken = []
    for name, layer in layers(network).items():
        if not layer.weight.any():
            noise = torch.randn(layer.weight.shape, generator=generator)
            with torch.no_grad():
                layer.weight.copy_(noise * scale / math.sqrt(layer.weight[0].numel()))
            woken.append(name)
    return tuple(woken)


def grad_norm(network: nn.Module, objective_loss: Loss, batches: Sequence[LatentBatch]) -> float:
    """Sum over layers of the L2 norm of the mean gradient over the batches (Abdelfattah et al. 2021, 2101.08134)."""
    return _grad_norm(gradients(network, objective_loss, batches))


def snip(network: nn.Module, objective_loss: Loss, batches: Sequence[LatentBatch]) -> float:
    """Sum over weights of |w dL/dw|, the gradient averaged over the batches.

    Lee et al. 2019 (1810.02340): the derivative of the loss by a weight's mask at 1 is w dL/dw. Summed and not normalised,
    as Abdelfattah et al. 2021 use it to compare networks.
    """
    return _snip(network, gradients(network, objective_loss, batches))


def zico(network: nn.Module, objective_loss: Loss, batches: Sequence[LatentBatch]) -> float:
    """Sum over layers of log(sum over weights of mean |g| / std g), over the batches (Li et al. 2023, 2301.11300).

    The std is that of g over n (not n - 1) batches, and weights whose gradient is the same on every batch are left out,
    both as in the authors' code. Layers that keep no weight add nothing; ValueError if that is all of them, and for fewer
    than two batches.
    """
    _check_enough(batches)
    return _zico(gradients(network, objective_loss, batches))


def naswot(network: nn.Module, objective_loss: Loss, batches: Sequence[LatentBatch]) -> float:
    """log |det K|, averaged over the batches; K_ij is the number of units in which images i and j agree.

    Mellor et al. 2021 (2006.04647): K_ij = N_A - d_H(c_i, c_j) for N_A units and the Hamming distance d_H of codes c.
    A unit is one element of the input of an activation function, wherever the network calls one, and its code is
    whether that is positive. ReLU has exactly this linear region; SiLU and GELU are close to it (close to identity above
    zero, close to zero below). ReLU attention weights are units too; softmax has none. K is a sum of Gram matrices, so its
    determinant cannot be negative: two images with the same code give -inf. ValueError if the network has no activation.
    """
    with _undisturbed(network, batches), torch.no_grad():
        return _mean([_log_determinant(network, objective_loss, batch) for batch in batches])


def synflow(network: nn.Module, like: LatentBatch) -> float:
    """Sum over weights of w dR/dw (Tanaka et al. 2020, 2006.05467); R sums the outputs of the network made linear.

    Without data: one image of the shape of `like`, all inputs one, in float64. On a copy,

    - weights and biases take their absolute values;
    - normalisation layers and activations are the identity (for these inputs ReLU is; SiLU and GELU nearly);
    - attention is uniform, the mean of the values: paths run through values, queries and keys get no score;
    - the gated FFN takes the mean of value and gate in place of their product, so that both are paths of degree one;
    - the sines and cosines of the time are one, like every input.

    R is then a sum over paths, linear in every layer, and layers that all paths cross exactly once have saliency R in total
    (their theorem 2).
    A network with another kind of multi-head attention (`F.multi_head_attention_forward`) is refused: ValueError.
    """
    return sum(_flow(network, like).values())


# --- gradients -------------------------------------------------------------------------------------------------------


def layers(network: nn.Module) -> dict[str, Any]:
    """The convolutions and linear layers by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _ConvNd | nn.Linear)}


def gradients(network: nn.Module, objective_loss: Loss, batches: Sequence[LatentBatch]) -> Gradients:
    """Each layer's gradient on each batch, float64; zeros where the loss does not depend on the layer.

    ValueError without layers or batches, and for a loss that is not finite.
    """
    weights = {name: layer.weight for name, layer in layers(network).items()}
    if not weights or not batches:
        raise ValueError(
            f"zero-cost scores: got {len(weights)} layers and {len(batches)} batches, expected some of both"
        )
    found: Gradients = {name: [] for name in weights}
    with _undisturbed(network, batches), torch.enable_grad():
        for weight in weights.values():
            weight.requires_grad_(True)
        for number, batch in enumerate(batches):
            loss = objective_loss(batch)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"zero-cost scores: the loss of batch {number} is {loss.item()}, expected a finite number"
                )
            taken = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(weights, taken, strict=True):
                found[name].append(gradient.double())
    return found


@contextmanager
def _undisturbed(network: nn.Module, batches: Sequence[LatentBatch]) -> Iterator[None]:
    """The network in evaluation mode; afterwards its modes, which parameters learn, and the generators are as before."""
    modes = {module: module.training for module in network.modules()}
    learns = {parameter: parameter.requires_grad for parameter in network.parameters()}
    states = {batch.generator: batch.generator.get_state() for batch in batches}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, learnt in learns.items():
            parameter.requires_grad_(learnt)
        for generator, state in states.items():
            generator.set_state(state)


def _check_enough(batches: Sequence[LatentBatch]) -> None:
    if len(batches) < 2:
        raise ValueError(
            f"zico: got {len(batches)} batches, expected at least 2 (it divides by their standard deviation)"
        )


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("zero-cost scores: got 0 batches, expected some")
    return sum(values) / len(values)


def _grad_norm(found: Gradients) -> float:
    return sum(float(torch.stack(each).mean(0).norm()) for each in found.values())


def _snip(network: nn.Module, found: Gradients) -> float:
    weights = {name: layer.weight.detach() for name, layer in layers(network).items()}
    return sum(float((weights[name] * torch.stack(each).mean(0)).abs().sum()) for name, each in found.items())


def _zico(found: Gradients) -> float:
    logs = []
    for each in found.values():
        stacked = torch.stack(each)  # (batches, *weight)
        spread = stacked.std(0, correction=0)
        ratio = (stacked.abs().mean(0) / spread)[spread > 0].sum()
        if ratio > 0:
            logs.append(float(ratio.log()))
    if not logs:
        raise ValueError(
            "zico: no layer's gradient differs between batches; expected other batches, and a network after `wake`"
        )
    return sum(logs)


# --- activation codes ------------------------------------------------------------------------------------------------


class _Agreement(TorchFunctionMode):
    """Adds up, while `inside` the network, in how many units each two images of a batch of `size` agree."""

    def __init__(self, size: int):
        self.size, self.inside, self.units = size, False, 0
        self.kernel = torch.zeros(size, size, dtype=torch.float64)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside and func in ACTIVATIONS:
            self._count(args[0] if args else kwargs["input"])
        return func(*args, **(kwargs or {}))

    def _count(self, given: Tensor) -> None:
        if len(given) != self.size:
            raise ValueError(
                f"naswot: an activation of shape {tuple(given.shape)} is not one row per image of {self.size}"
            )
        code = (given > 0).flatten(1).float()
        agree = code @ code.T + (1 - code) @ (1 - code).T  # whole numbers: exact below 2^24 units
        self.kernel += agree.double().cpu()
        self.units += code.shape[1]


def _log_determinant(network: nn.Module, objective_loss: Loss, batch: LatentBatch) -> float:
    agreement = _Agreement(len(batch.latents))

    def enter(*_: Any) -> None:
        agreement.inside = True

    def leave(*_: Any) -> None:
        agreement.inside = False

    handles = (network.register_forward_pre_hook(enter), network.register_forward_hook(leave, always_call=True))
    try:
        with agreement:
            objective_loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not agreement.units:
        raise ValueError("naswot: the network called no activation function; expected ReLU, SiLU, GELU or the like")
    return float(torch.linalg.slogdet(agreement.kernel).logabsdet)


# --- synaptic flow ---------------------------------------------------------------------------------------------------


def _identity(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _one(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.ones_like(input)


def _equal_shares(input: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
    return torch.ones_like(input) / input.shape[dim]


def _uniform_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return value.mean(-2, keepdim=True).expand(*query.shape[:-1], -1)


def _refused(*_: Any, **__: Any) -> Tensor:
    raise ValueError("synflow: nn.MultiheadAttention cannot be made linear here; expected nas' own attention")


LINEAR: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(ACTIVATIONS, _identity),
    **dict.fromkeys((F.group_norm, F.layer_norm, F.batch_norm, F.instance_norm, F.rms_norm), _identity),
    **dict.fromkeys((torch.sin, torch.cos, Tensor.sin, Tensor.cos), _one),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _equal_shares),
    F.scaled_dot_product_attention: _uniform_attention,
    F.multi_head_attention_forward: _refused,
}


class _Linear(TorchFunctionMode):
    """Inside, networks of absolute weights are sums over paths (see `synflow`)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return LINEAR.get(func, func)(*args, **(kwargs or {}))


def _flow(network: nn.Module, like: LatentBatch) -> dict[str, float]:
    """Each layer's saliency, the sum over its weights of w dR/dw."""
    linear = _absolute_copy(network)
    weights = {name: layer.weight.requires_grad_(True) for name, layer in layers(linear).items()}
    with torch.enable_grad(), _Linear():
        total = linear(*_ones(like)).sum()
        taken = torch.autograd.grad(total, list(weights.values()), allow_unused=True, materialize_grads=True)
    pairs = zip(weights.items(), taken, strict=True)
    return {name: float((weight.detach() * gradient).sum()) for (name, weight), gradient in pairs}


def _absolute_copy(network: nn.Module) -> nn.Module:
    """A copy in float64 with absolute parameters; its gates are averaged and its attention can be made uniform."""
    linear = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.abs_()
    for module in linear.modules():
        if isinstance(module, Linearised):
            module.linearise()
    return linear


def _ones(like: LatentBatch) -> tuple[Tensor, Tensor, Text]:
    """One image, time and caption, all ones, float64."""
    latents, tokens, pooled = (
        torch.ones_like(given[:1], dtype=torch.float64) for given in (like.latents, like.text.tokens, like.text.pooled)
    )
    return latents, torch.ones(1, dtype=torch.float64, device=latents.device), Text(tokens, pooled)
