"""A sampling plan from a file, such as those that `nas schedule` writes, in place of the one a network was scored by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from nas.diffusion.plan import AUTOREGRESSIVE, Plan
from nas.documents.document import Document
from nas.errors import ArgumentError, InputError
from nas.trial.bench import Bench

SECTION = "sampling"


def read(path: Path) -> Plan:
    """The plan under `sampling`, or that the file is. Raises InputError."""
    document = Document.read(path)
    inside = SECTION in document.content
    content = document.content[SECTION] if inside else document.content
    found: Plan = document.validate(Plan, content, (SECTION,) if inside else ())
    return found


def check(plan: Plan, network: nn.Module, bench: Bench, where: str) -> None:
    """Raises InputError, beginning with `where`, for a cache that is another network's or for another number of steps, and for a
    solver that the network cannot be drawn by."""
    if plan.cache is None and plan.solver != AUTOREGRESSIVE:
        return
    config = network.config
    units = config.units(bench.train_data.latents.shape[-1], bench.train_data.tokens.shape[1])  # type: ignore[operator,union-attr]
    try:
        plan.macs(units)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def check_formats(plan: Plan, formats: Iterable[str], quantised: bool = False) -> None:
    """Raises InputError for formats of graphs, which draw all tokens at once and hand on what a unit put out as it was, where the
    plan does not; and for 8 bits where it keeps anything."""
    if plan.solver == AUTOREGRESSIVE and (graphs := list(formats)):
        raise ArgumentError(
            f"format: {graphs[0]} computes all tokens at once, and the plan draws them one after the other (solver: "
            f"{AUTOREGRESSIVE}); expected yaml, safetensors"
        )
    if plan.cache is not None and quantised:
        raise ArgumentError(
            f"quantise int8: not of a plan that keeps units (cache: {plan.cache.name}); expected one without"
        )
    if plan.cache is not None and plan.cache.extrapolates and (graphs := list(formats)):
        raise ArgumentError(
            f"format: {graphs[0]} keeps what a unit put out as it was, and the plan extrapolates (cache: {plan.cache.name}); "
            "expected yaml, safetensors"
        )
