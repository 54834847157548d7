"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft: W x becomes W x + alpha / rank B A x, and only A and B are
trained. B starts at zero, so a network that has just been adapted is the network it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, field_validator

from nas.disk import weight_files
from nas.documents.section import Section
from nas.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Lora(Section):
    """Which layers get an adapter, and how large it is."""

    rank: int = Field(8, ge=1, le=8192)
    """Rows of A. LCM-LoRA takes 64 at 320 channels and more; a proxy's widths are a sixteenth of that (assumption)."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the adapter, over the rank. None: the rank, as LCM-LoRA."""
    targets: str = ".*"
    """Regular expression for the whole names of the layers, for example `.*\\.to_(q|k|v|kv|out)` for attention alone.
    Linear layers and convolutions that match get an adapter, depthwise convolutions never (peft's need groups that divide
    the rank)."""

    @field_validator("targets")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"expected a regular expression, got {value!r}: {error}") from None
        return value


def adapt(network: nn.Module, settings: Lora, seed: int, setting: str = "training.lora") -> None:
    """Give the network's layers adapters, in place, and freeze everything else.

    `seed` starts A. Raises InputError, which begins with the `setting`, when no layer matches.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    names = targets(network, settings, setting)
    alpha = settings.rank if settings.alpha is None else settings.alpha
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=names)  # type: ignore[arg-type]
        inject_adapter_in_model(config, network)


def targets(network: nn.Module, settings: Lora, setting: str = "training.lora") -> list[str]:
    """The names of the layers that get an adapter. Raises InputError when there is none."""
    able = [name for name, layer in network.named_modules() if _able(layer)]
    names = [name for name in able if re.fullmatch(settings.targets, name)]
    if not names:
        example = f", for example {able[len(able) // 2]}" if able else ""
        raise InputError(
            f"{setting}.targets: {settings.targets!r} matches none of the network's {len(able)} linear layers and "
            f"convolutions{example}"
        )
    return names


def inside(settings: BaseModel, setting: str) -> Iterator[tuple[str, Lora]]:
    """All adapters among settings and the sections in them, with where each is; `setting` is where `settings` are."""
    for name in type(settings).model_fields:
        value, place = getattr(settings, name), f"{setting}.{name}"
        if isinstance(value, Lora):
            yield place, value
        elif isinstance(value, BaseModel):
            yield from inside(value, place)


def _able(layer: nn.Module) -> bool:
    from torch import nn

    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def merged(network: nn.Module) -> nn.Module:
    """A plain copy with the adapters added into the weights: the network's outputs, the names of its state before `adapt`.

    A network without adapters is returned as it is.
    """
    if not list(_adapted(network)):
        return network
    plain = deepcopy(network)
    for name, layer in list(_adapted(plain)):
        layer.merge()
        plain.set_submodule(name, layer.get_base_layer())
    return plain.requires_grad_(False)


def _adapted(network: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return ((name, layer) for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer))


def save(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """The adapters alone, in peft's format: safetensors with the names of its `adapter_model.safetensors`."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in get_peft_model_state_dict(network).items()}
    save_file(tensors, path, metadata)


def load(network: nn.Module, path: Path) -> None:
    """Read `save`'s file into a network with the same adapters. Raises InputError naming the first layer that differs."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    found, expected = weight_files.read(path, "adapters").tensors, get_peft_model_state_dict(network)
    for name in sorted(found.keys() | expected.keys()):
        here, there = (tuple(side[name].shape) if name in side else "nothing" for side in (expected, found))
        if here != there:
            raise InputError(f"{path}: adapters of another network: {name} is {there}, expected {here}")
    set_peft_model_state_dict(network, found)
