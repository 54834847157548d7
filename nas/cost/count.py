"""Closed forms of single layers: parameters, multiply-adds and activations, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

BYTES = 4  # of one float32 activation


@dataclass(frozen=True)
class Cost:
    """Totals for one call on one image."""

    params: int
    """Trainable numbers."""
    macs: int
    """Multiply-adds, attention included."""
    macs_without_attention: int
    """Multiply-adds without the two products of attention."""
    macs_padding_free: int
    """Multiply-adds without those on zero padding."""
    activation_bytes: int
    """Bytes in float32 of what convolutions, linear layers and attention put out: what training keeps, about."""


@dataclass(frozen=True)
class Part:
    """The share of one component at one resolution."""

    component: str
    side: int
    """Side of the image this component puts out."""
    cost: Cost


@lru_cache(maxsize=4096)
def taps(n: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Kernel taps inside a line of n pixels, over all output positions of a convolution."""
    out = (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    positions = (p * stride - padding + j * dilation for p in range(out) for j in range(kernel))
    return sum(0 <= position < n for position in positions)


class Count(NamedTuple):
    """What one piece of the network costs for one image."""

    params: int = 0
    macs: int = 0  # attention included
    attention: int = 0  # the part of macs in the two products of attention
    padding: int = 0  # the part of macs spent on zero padding
    activations: int = 0  # numbers that convolutions, linear layers and attention put out


Pieces = list[tuple[str, int, Count]]  # component, side of the image it puts out, cost


class Term(NamedTuple):
    """A total and what it is made of."""

    total: Count
    pieces: Pieces


def term(pieces: Pieces) -> Term:
    return Term(total([count for _, _, count in pieces]), pieces)


Call = tuple[Callable[..., Term], tuple[Any, ...]]
"""A term that is still to be computed: a function and its arguments."""


def cost_of(terms: Iterable[Call]) -> Cost:
    """The cost of what is a sum of terms."""
    columns = zip(*(function(*arguments).total for function, arguments in terms), strict=True)
    return _cost(Count(*map(sum, columns)))


def parts_of(terms: Iterable[Call], components: Sequence[str]) -> list[Part]:
    """The same by component, in this order, and resolution, the largest image first."""
    sums: dict[tuple[str, int], Count] = {}
    for function, arguments in terms:
        for component, side, count in function(*arguments).pieces:
            sums[component, side] = total([sums.get((component, side), Count()), count])
    ordered = sorted(sums.items(), key=lambda item: (components.index(item[0][0]), -item[0][1]))
    return [Part(component, side, _cost(count)) for (component, side), count in ordered]


def _cost(c: Count) -> Cost:
    return Cost(c.params, c.macs, c.macs - c.attention, c.macs - c.padding, BYTES * c.activations)


def total(counts: list[Count]) -> Count:
    """The sum of counts."""
    return Count(*map(sum, zip(*counts, strict=True))) if counts else Count()


def times(number: int, count: Count) -> Count:
    return Count(*(number * value for value in count))


def linear(tokens: int, i: int, o: int, bias: bool = True) -> Count:
    """A linear layer on a number of tokens."""
    return Count(i * o + o * bias, i * o * tokens, 0, 0, o * tokens)


def conv2d(n: int, i: int, o: int, kernel: int, stride: int = 1) -> Count:
    """A convolution that puts out an image of side n / stride."""
    out = n // stride
    padded, valid = (kernel * out) ** 2, taps(n, kernel, stride, kernel // 2) ** 2
    return Count(kernel**2 * i * o + o, padded * i * o, 0, (padded - valid) * i * o, o * out**2)


def depthwise2d(n: int, c: int, kernel: int) -> Count:
    """A depthwise convolution."""
    padded, valid = (kernel * n) ** 2, taps(n, kernel, 1, kernel // 2) ** 2
    return Count((kernel**2 + 1) * c, padded * c, 0, (padded - valid) * c, c * n**2)


def norm(c: int) -> Count:
    """A group or layer norm."""
    return Count(params=2 * c)
