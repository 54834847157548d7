"""The machine in words: what a run records, and what times are told of."""

from __future__ import annotations

import hashlib
import os
import platform
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


def computing_device() -> str:
    """What PyTorch computes on here, in words: the GPU, or else this machine."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else device()[0]
