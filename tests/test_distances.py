"""Distances between few pictures against their definitions."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from test_metrics import pictures, samples

from nas.datasets import Batch
from nas.metrics import Reference, fid, kid, mind


def test_the_kernel_distance_is_its_definition():
    x, y = torch.as_tensor(samples(9, 5, 0)), torch.as_tensor(samples(19, 5, 1))

    def kernel(a, b):
        return float((a @ b / 5 + 1) ** 3)

    def unbiased(x, y):
        n = len(x)
        within = [sum(kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for z in (x, y)]
        return sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / n**2

    expected = (unbiased(x, y[:9]) + unbiased(x, y[9:18])) / 2
    assert kid.kernel_distance(x, y).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="as many real ones, got 19 and 9"):
        kid.kernel_distance(y, x)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 12), (7, 10), (13, 6)])
def test_the_sliced_distance_is_optimal_transport_along_each_direction(n, m):
    """By linear assignment between samples repeated to a common number."""
    x, y = samples(n, 3, 0), samples(m, 3, 1)
    many = math.lcm(n, m)
    costs = []
    for a, b in zip(x.T, y.T, strict=True):
        cost = (np.repeat(a, many // n)[:, None] - np.repeat(b, many // m)[None, :]) ** 2
        costs.append(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    ordered = [torch.as_tensor(np.sort(z, 0)) for z in (x, y)]
    assert mind.sliced_distance(*ordered).item() == pytest.approx(np.mean(costs))


def test_a_shift_of_the_mean_counts_as_its_square():
    x = torch.as_tensor(samples(40, 64, 0)).float()
    shift = torch.as_tensor(samples(1, 64, 3)).float()
    onto = mind.directions(64)
    assert mind.directions(64).norm(dim=0).tolist() == pytest.approx([1] * mind.DIRECTIONS)
    moved = mind.sliced_distance(mind.projected(x, onto), mind.projected(x + shift, onto)).item() * 64
    assert moved == pytest.approx(shift.square().sum().item(), rel=0.15)  # 1,024 directions of 64


def test_distances_share_the_features_of_real_pictures(tmp_path):
    calls = []

    def batches():
        calls.append(1)
        return [Batch(pictures(12, 0), ["a"] * 12, list("abcdefghijkl"))]

    reference = Reference(batches, [], tmp_path / "cache" / "any")
    built = [module.build(module.Settings(), reference) for module in (fid, kid, mind)]
    assert len(calls) == 1 and [metric.columns[0] for metric in built] == [
        "fid_efficientnet_lite0",
        "kid_efficientnet_lite0",
        "mind_efficientnet_lite0",
    ]
