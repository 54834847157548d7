"""Weights that a path names, read as data.

A PyTorch file is a pickle, and a pickle is a program: what it asks for beside tensors is refused, never run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nas.errors import InputError, brief

if TYPE_CHECKING:
    from torch import Tensor


class Held(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read(path: Path, setting: str) -> Held:
    """A safetensors file, unpacked. Raises InputError, beginning with `setting`, for anything else."""
    from safetensors import safe_open

    from nas.disk.packed import unpack

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return Held(unpack(tensors), file.metadata() or {})
    except Exception as error:  # safetensors raises its own class, and OSError
        raise unreadable(path, setting, error) from None


def metadata(path: Path, setting: str) -> dict[str, str]:
    """What a safetensors file says beside its tensors, which are not read. Raises InputError as `read` does."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except Exception as error:
        raise unreadable(path, setting, error) from None


def checkpoint(path: Path, setting: str) -> dict[str, Tensor]:
    """The tensors by name of another library's file: safetensors, or a PyTorch file of nothing but tensors.

    Raises InputError, beginning with `setting`, for a pickle that asks for anything else, without running it.
    """
    import torch

    if _is_safetensors(path):
        return read(path, setting).tensors
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): value for name, value in held.items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # of pickle, zipfile, torch and whatever the file makes them stumble over
        raise unreadable(path, setting, error) from None


def unreadable(path: Path, setting: str, error: Exception) -> InputError:
    """What to tell of a file that a reader of tensors refused: what its pickle asks for, if that was it."""
    text = str(error)
    if asked := re.search(r"GLOBAL ([\w.]+)", text):
        told = (
            f"its pickle asks for {asked[1]}, which is not run; expected safetensors, or a file of nothing but tensors"
        )
    elif "TorchScript" in text:
        told = "it is a TorchScript program, which is not run; expected safetensors, or a file of nothing but tensors"
    elif "Weights only load failed" in text:  # torch goes on to advise its unsafe reader
        told = "not a file of nothing but tensors; expected safetensors"
    else:
        told = brief(error)
    return InputError(f"{setting}: {path}: cannot be read as weights: {told}")


def _is_safetensors(path: Path) -> bool:
    """By content: the length of a JSON header, and its first brace."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False
