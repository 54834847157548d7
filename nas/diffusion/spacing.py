"""Which of the training times a drawing asks about: Lin et al. 2024 (arXiv 2305.08891), table 2, counted from 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

TIMES = 1000  # training times of every schedule


def trailing(steps: int, count: int = TIMES) -> list[int]:
    """From the last time down, evenly; DPM-Solver's."""
    spaced = np.arange(count, 0, -count / steps).round()[:steps]  # rounding errors may add one below zero
    return [int(time) - 1 for time in spaced]


def leading(steps: int, count: int = TIMES) -> list[int]:
    """Down to time 0 in steps of floor(count / steps): the last times, of most noise, are left out; DDIM's."""
    return [index * (count // steps) for index in reversed(range(steps))]


def linspace(steps: int, count: int = TIMES) -> list[int]:
    """Both ends among them; iDDPM's."""
    return [int(time) - 1 for time in np.linspace(1, count, steps).round()[::-1]]


def renoising(steps: int, count: int = TIMES) -> list[int]:
    """floor(i / k (count - 1)), i = k .. 1: of generators that predict clean latents (UFOGen, Xu et al. 2023)."""
    return [index * (count - 1) // steps for index in range(steps, 0, -1)]


SPACINGS: Mapping[str, Callable[[int, int], list[int]]] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
}
