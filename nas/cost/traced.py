"""What a network costs. One multiply-add is one MAC; a cost is that of one call on one image.

Papers count in three ways, and one network's numbers differ by up to a sixth between them:

    macs                    convolutions, linear layers and both products of attention. Twice this is what
                            `torch.utils.flop_counter` counts.
    macs_without_attention  the same without the products of attention (thop, calflops, and fvcore as it comes)
    macs_padding_free       macs, but a convolution is charged only for the taps that fall inside the image, as XLA
    does.
                            Reproduces table 1 of the MobileDiffusion paper.

Norms, activations, softmax and elementwise operations count nothing in all three.

Closed forms live beside the networks they describe (`nas/networks/backbones/`). Here any torch module is counted by tracing it:
`traced` (fvcore) and `second_opinion` (torch's own counter). Both run on the meta device, so a network of any size is
counted without its memory. An operator that no rule covers is an UncountedOperator, never a silent zero.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from typing import TYPE_CHECKING, Any

from nas.cost.count import BYTES, Cost, taps

if TYPE_CHECKING:
    from torch import nn


class UncountedOperator(Exception):
    """The network uses an operator that has no counting rule; the message names it."""


# Operators that multiply nothing into anything: layout, elementwise arithmetic, norms, activations, resizing.
_FREE = (
    "_to_copy adaptive_avg_pool2d add add_ alias arange argmax avg_pool2d batch_norm bitwise_not cat chunk clamp "
    "clamp_min clone constant_pad_nd contiguous copy_ cos detach div div_ dropout embedding empty empty_like "
    "eq exp expand expand_as fill_ flatten full full_like ge gelu group_norm gt index layer_norm le log "
    "logical_not lt masked_fill masked_fill_ mean meshgrid mul mul_ narrow native_layer_norm ne neg new_ones "
    "new_zeros ones ones_like outer pad permute pixel_shuffle pow relu relu_ repeat repeat_interleave reshape "
    "rms_norm roll rsqrt rsub select sigmoid silu silu_ sin slice softmax split split_with_sizes sqrt squeeze "
    "stack sub sum t tanh tile to transpose tril triu triu_ type_as unbind unflatten unsqueeze "
    "upsample_bilinear2d upsample_nearest2d var view where zeros zeros_like"
)
FREE = frozenset(_FREE.split())


def traced(network: nn.Module, *args: Any, **kwargs: Any) -> Cost:
    """The cost of network(*args, **kwargs) by fvcore, one trace for all conventions; give it inputs of batch size 1.

    Raises UncountedOperator.
    """
    return _analysed(network, args, kwargs)[""]


def traced_by_module(network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Cost]:
    """The same for the network (under '') and for every module inside it, by its dotted name."""
    return _analysed(network, args, kwargs)


def second_opinion(network: nn.Module, *args: Any, **kwargs: Any) -> int:
    """`macs` of network(*args, **kwargs) by torch's own counter. On the meta device: a CPU's fused attention escapes
    it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, and of the backward passes in it, by torch's own counter, on any device.

    Attention is computed as plain products, because a fused kernel's backward pass counts what it computes again; and the
    gradient of a depthwise convolution's weights, which torch counts as if channels mixed, costs what its forward pass does.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    rules = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=rules)
    counter.mod_tracker = _Nowhere()  # type: ignore[assignment]
    with sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return int(counter.get_total_flops())


class _Nowhere(nullcontext[None]):
    """In place of torch's tracker of modules, whose hooks do not bear a gradient penalty: everything is counted as one."""

    parents = frozenset({"Global"})


def _convolution_backward(
    grad: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """Of each gradient that is wanted, to the input or to the weights, a forward pass."""
    forward = 2 * grad[0] * prod((x if transposed else grad)[2:]) * prod(weight)
    return forward * sum(wanted[:2])


def _analysed(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Cost]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore is built on torch.jit, which warns that it is deprecated
        from fvcore.nn.jit_analysis import JitModelAnalysis

        tensors, caller = _positional(network, args, kwargs)
        analysis = JitModelAnalysis(caller, tensors).set_op_handle(**RULES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with _convolutions_traceable_on_meta():
            by_module = analysis.by_module_and_operator()
            unknown = {name.split("::")[-1] for name in analysis.unsupported_ops()} - FREE
            if unknown:
                raise UncountedOperator(f"no rule counts the operator {', '.join(sorted(unknown))}")
    params = {name: sum(p.numel() for p in module.parameters()) for name, module in caller.named_modules() if name}
    return {name.removeprefix("network").removeprefix("."): _cost(params[name], by_module[name]) for name in params}


def _cost(params: int, counts: Counter[str]) -> Cost:
    macs, attention, padding = (int(counts[rule]) for rule in ("macs", "attention", "padding"))
    return Cost(params, macs, macs - attention, macs - padding, BYTES * int(counts["activations"]))


def _positional(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], nn.Module]:
    """All tensors among the arguments, and a module that takes just them: the tracer allows nothing else."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten

    values, spec = tree_flatten((args, kwargs))

    class Caller(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            filled = [next(given) if isinstance(value, torch.Tensor) else value for value in values]
            args, kwargs = tree_unflatten(filled, spec)
            return self.network(*args, **kwargs)

    return tuple(value for value in values if isinstance(value, torch.Tensor)), Caller()


@contextmanager
def _convolutions_traceable_on_meta() -> Iterator[None]:
    """torch 2.15's meta kernel of a convolution cannot run under the tracer, and the operator fvcore knows is not
    recorded."""
    import torch
    from torch._meta_registrations import meta_conv

    tracing, set_tracing = torch._C._get_tracing_state, torch._C._set_tracing_state  # type: ignore[attr-defined]

    def convolution(*args: Any) -> Any:
        if tracing() is None:
            return meta_conv(*args)
        return torch.ops.aten._convolution.default(*args, False, False, False, False)

    def underscored(*args: Any) -> Any:
        state = tracing()
        set_tracing(None)
        try:
            return meta_conv(*args[:9])
        finally:
            set_tracing(state)

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        library.impl("convolution", convolution, "Meta", allow_override=True)
        library.impl("_convolution", underscored, "Meta", allow_override=True)
        yield
    finally:
        library._destroy()


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    image, kernel, out = (_shape(value) for value in (inputs[0], inputs[1], outputs[0]))
    if inputs[6].toIValue():
        raise UncountedOperator("no rule counts the operator conv_transpose")
    stride, padding, dilation = ([v.toIValue() for v in inputs[i].node().inputs()] for i in (3, 4, 5))
    macs = prod(kernel) * out[0] * prod(out[2:])
    inside = prod(
        taps(n, k, stride[axis], padding[axis], dilation[axis])
        for axis, (n, k) in enumerate(zip(image[2:], kernel[2:], strict=True))
    )
    valid = kernel[0] * kernel[1] * out[0] * inside
    return Counter(macs=macs, padding=macs - valid, activations=prod(out))


def _linear(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    out = prod(_shape(outputs[0]))
    return Counter(macs=out * _shape(inputs[1])[-1], activations=out)


def _addmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    out = prod(_shape(outputs[0]))
    return Counter(macs=out * _shape(inputs[1])[-1], activations=out)


def _product(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A product of two activations: in these networks, one of the two of attention."""
    out = prod(_shape(outputs[0]))
    macs = out * _shape(inputs[0])[-1]
    return Counter(macs=macs, attention=macs, activations=out)


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    q, k, v = (_shape(value) for value in inputs[:3])
    macs = prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    return Counter(macs=macs, attention=macs, activations=prod(_shape(outputs[0])))


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Of one tensor it only moves numbers."""
    if len(list(inputs[1].node().inputs())) > 1:
        raise UncountedOperator("no rule counts the operator einsum of several tensors")
    return Counter()


def _shape(value: Any) -> list[int]:
    shape: list[int] = value.type().sizes()
    return shape


RULES = {
    "aten::_convolution": _convolution,
    "aten::linear": _linear,
    "aten::addmm": _addmm,
    "aten::matmul": _product,
    "aten::bmm": _product,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
}
