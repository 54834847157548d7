"""How well the time that a study is said to take agrees with the time it takes: ten studies of different size.

    python benchmarks/time_estimate.py                   # some 15 minutes on two cores
    python benchmarks/time_estimate.py --load 2          # beside two processes that compute all the time
    python benchmarks/time_estimate.py --only scenes-2w  # one of them

A line is a study: what was said before its first trial, what it took from there to the last line, and said / taken.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAID = re.compile(r"about ([^:]+) to go:")
UNITS = {"h": 3600, "min": 60, "s": 1}
SMALL = ["evaluation.images=64", "search.sampler=random"]
ONCE = ["ablation.repeats=1", "ablation.confidence=null"]
STUDIES = {  # name: (study, settings)
    "slices": ("emoji", [*SMALL, "search.trials=8"]),
    "slices-all": ("emoji", [*SMALL, "search.trials=6", "stopping.rule=none", "training.images_seen=512"]),
    "warm": ("emoji", ["search.trials=4", "stopping.rule=none", "training.images_seen=2048"]),
    "warm-1w": ("emoji", [*SMALL, "search.trials=3", "stopping.rule=none", "training.images_seen=2048", "workers=1"]),
    "pictures": ("emoji", ["search.trials=6", "training.images_seen=512", "sampling.steps=20"]),
    "scratch": ("emoji", [*SMALL, "search.trials=3", "training.init=scratch", "training.images_seen=4096"]),
    "scenes": ("quickstart", [*SMALL, "search.trials=3", "stopping.rule=none", "training.images_seen=8192"]),
    "scenes-2w": ("quickstart", ["search.trials=4", "training.images_seen=6400", "workers=2"]),
    "ablation": ("activation", ["evaluation.images=64", "training.images_seen=1024", *ONCE]),
    "narrow": ("emoji", [*SMALL, "search.trials=4", "proxy.width_divisor=32", "training.init=scratch"]),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=int, default=0, help="processes that compute beside the studies")
    parser.add_argument("--only", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "time_estimate")
    arguments = parser.parse_args()
    ratios = []
    with busy(arguments.load):
        for name in arguments.only:
            said, taken = measured(*STUDIES[name], arguments.root)
            ratios.append(said / taken)
            print(f"{name:<12} said {said:6.0f} s   took {taken:6.0f} s   {ratios[-1]:.2f}", flush=True)
    within = sum(0.7 <= ratio <= 1.3 for ratio in ratios)
    print(f"{within} of {len(ratios)} within 30 %, median {statistics.median(ratios):.2f}")


def measured(study: str, overrides: list[str], root: Path) -> tuple[float, float]:
    """Seconds that were said at first, and that passed from then to the study's end."""
    settings = [part for one in overrides for part in ("--set", one)]
    command = [
        str(Path(sys.executable).with_name("nas")),
        "run",
        str(ROOT / "studies" / study),
        "--root",
        str(root),
        *settings,
    ]
    said = began = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            lines.append(line)
            if said is None and (match := SAID.search(line)):
                said, began = seconds(match[1]), time.perf_counter()
    if running.returncode or said is None or began is None:
        raise SystemExit(f"{' '.join(command)}\n{''.join(lines[-10:])}")
    return said, time.perf_counter() - began


def seconds(duration: str) -> float:
    """Of "2 h 5 min" or "3 min 20 s"."""
    words = duration.split()
    return float(sum(int(amount) * UNITS[unit] for amount, unit in zip(words[::2], words[1::2], strict=True)))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Within it so many processes compute without a pause."""
    running = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(processes)]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            process.terminate()


def _compute() -> None:
    while True:
        sum(range(10**6))


if __name__ == "__main__":
    main()
