"""How long a pool thinks before a training: 1,000 candidates looked at, 200 trained (target: 50 ms).

    python benchmarks/pool.py

The points are made up: candidates and ends around a trade of two or three objectives, so that fronts are as crowded as searches'.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from nas.search import pool
from nas.search.dominance import Points, nondominated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1_000)
    parser.add_argument("--trained", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    for objectives in (2, 3):
        candidates, looks, ends = problem(arguments.candidates, arguments.trained, objectives)
        took = []
        for _ in range(arguments.repeats):
            began = time.perf_counter()
            pool.expected(candidates, ends - looks, ends)
            took.append(time.perf_counter() - began)
        print(
            f"{objectives} objectives, {nondominated(ends).sum()} on the front: {1000 * statistics.median(took):.0f} ms "
            f"(slowest {1000 * max(took):.0f})"
        )


def problem(candidates: int, trained: int, objectives: int) -> tuple[Points, Points, Points]:
    """Looks of candidates, looks of the trained and their ends, all to be minimised; the first objective is a cost."""
    rng = np.random.default_rng(0)
    cost = rng.random((candidates + trained, 1))
    scores = (1 - cost) ** 2 + 0.3 * rng.random((candidates + trained, objectives - 1))
    looks = np.concatenate([cost, scores], axis=1)
    gains = np.concatenate([np.zeros((trained, 1)), 0.05 * rng.standard_normal((trained, objectives - 1))], axis=1)
    return looks[:candidates], looks[candidates:], looks[candidates:] - 0.1 * (gains != 0) + gains


if __name__ == "__main__":
    main()
