"""Which losses of a run say nothing about quality, in words. Objectives declare it: `measures_progress`, `guided_drawing`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nas import menu
from nas.errors import InputError
from nas.numbers import listed


def told(settings: Mapping[str, Any], trials: Iterable[Mapping[str, Any]]) -> str:
    """Where training losses are no measure, and where `denoising_loss`, in a few sentences; empty where both are."""
    found = objectives(settings, trials)
    trained = {cell for cell, name in found.items() if not _declared(name, "measures_progress")}
    judged = {cell for cell, name in found.items() if not _declared(name, "guided_drawing")}
    said = {
        "Neither training losses nor denoising_loss, which judges denoisers, say how good a network is": trained
        & judged,
        "Training losses do not say how good a network is": trained - judged,
        "denoising_loss, which judges denoisers, does not say how good a network is": judged - trained,
    }
    told = [
        f"{what} {_where([cell for cell in found if cell in cells], found)}." for what, cells in said.items() if cells
    ]
    return " ".join([*told, "Look at the other scores."]) if told else ""


def objectives(settings: Mapping[str, Any], trials: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The objective by cell, of those that have begun; of a search under an empty name."""
    shared = _name(settings.get("objective"))
    if not settings.get("ablation"):
        return {"": shared}
    found = {}
    for record in trials:
        own = record.get("settings") or {}
        found[str(record.get("cell") or "")] = str(own.get("objective.name") or _name(own.get("objective", shared)))
    return found


def _name(entry: Any) -> str:
    """Of a menu entry, which is a name or a mapping with one; none is plain denoising."""
    return str(entry.get("name")) if isinstance(entry, Mapping) else str(entry or "denoising")


def _declared(name: str, declaration: str) -> bool:
    """What an objective says of itself; of one that this version does not have, nothing is known and so nothing told."""
    try:
        return bool(getattr(menu.pick("objectives", name).Objective, declaration))
    except InputError:
        return True


def _where(cells: Sequence[str], found: Mapping[str, str]) -> str:
    """All cells are named by their objectives, some by their names."""
    if len(cells) == len(found):
        return f"with {listed(sorted(set(found.values())))}"
    return f"in the cell{'s' if len(cells) > 1 else ''} {listed(cells)}"
