"""The machine in words: what a run records, and what times are told of."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def device() -> tuple[str, str]:
    """This machine in words (processor, cores, system), and eight hex digits of that."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        found = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        name = f"{found.get('model name', name)} (family {found.get('cpu family')}, model {found.get('model')})"
    words = f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    return words, hashlib.sha256(words.encode()).hexdigest()[:8]


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forget_peak_memory() -> None:
    """From here on `peak_memory_mib` is of what comes now, where the system can do that (Linux)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Most memory held since `forget_peak_memory`, or ever: on the GPU by PyTorch, or else by this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 1024)


def computing_device() -> str:
    """What PyTorch computes on here, in words: the GPU, or else this machine."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else device()[0]
