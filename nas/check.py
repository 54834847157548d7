"""Everything that can be known to be wrong with a study before it starts. Nothing is written before this has passed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nas import lora, menu, supernet
from nas.backbones import Proxy
from nas.errors import InputError
from nas.settings import Study
from nas.space import SearchSpace
from nas.study import over_budget

PROBES = 2_000  # candidates counted on paper, to catch a budget nothing meets


def check(study: Study, space: SearchSpace) -> None:
    """Raises InputError naming the setting, its value and what was expected."""
    if space.family[0] != "backbones":
        raise InputError(f"space: {space.name!r} holds {space.family[0]}, not denoisers; a study trains denoisers")
    costs = probe(study, space)
    known = [name for name, value in costs[0].items() if isinstance(value, int | float)]
    _named("budget", study.budget, known)
    _columns(study, known)
    _meetable(study, space, costs)
    if study.training.init == "scratch":
        _start(study)
    else:
        if study.training.lora is not None:
            _adapters(study, space, study.training.lora)
        supernet.weights_path(study.training.init, study.space)
    menu.pick("datasets", study.dataset.name).load(study.dataset.settings("datasets"), "train")


def _start(study: Study) -> None:
    """An objective with a teacher starts from trained weights, and so do adapters."""
    if "teacher" in menu.pick("objectives", study.objective.name).Objective.requires:
        raise InputError(
            f"objective: {study.objective.name} starts from a trained network, but training.init is scratch; "
            "expected supernet or a path to supernet weights"
        )
    if study.training.lora is not None:
        raise InputError(
            "training.lora: adapters of a network that was never trained, training.init is scratch; expected supernet or a "
            "path to supernet weights"
        )


def _adapters(study: Study, space: SearchSpace, settings: lora.Settings) -> None:
    """The adapters fit the largest network, of whose proxy only the names of layers matter here."""
    proxy = Proxy(study.proxy.width_divisor, latent_channels=4, text_width=8, pooled_width=8)
    lora.targets(supernet.skeleton(space.architecture(space.largest()).scaled(proxy)), settings)


def probe(study: Study, space: SearchSpace) -> list[dict[str, Any]]:
    """Deploy-scale costs of random members."""
    rng = random.Random(study.seed)
    size, tokens = study.deploy.latent_size, study.deploy.text_tokens
    return [asdict(space.architecture(space.sample(rng)).cost(size, tokens)) for _ in range(PROBES)]


def _named(section: str, given: Sequence[str] | dict[str, float], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{section}: unknown column {name!r}{menu.nearest(name, known)}")


def _columns(study: Study, costs: list[str]) -> None:
    metrics = {}
    for entry in study.metrics:
        column = menu.pick("metrics", entry.name).column(entry.settings("metrics"))
        if column in metrics:
            raise InputError(f"metrics: two of them give the column {column!r}")
        metrics[column] = entry
    known = [*metrics, "denoising_loss", *costs]
    _named("search.minimise", study.search.minimise, known)
    _named("search.maximise", study.search.maximise, known)


def _meetable(study: Study, space: SearchSpace, costs: list[dict[str, Any]]) -> None:
    if not all(over_budget(cost, study.budget) for cost in costs):
        return
    refused = {name: sum(cost[name] > limit for cost in costs) for name, limit in study.budget.items()}
    why = ", ".join(f"{name} over {study.budget[name]:.3g}: {count}" for name, count in refused.items() if count)
    least = ", ".join(f"{name} {min(cost[name] for cost in costs):.3g}" for name in study.budget)
    raise InputError(
        f"budget: none of {PROBES:,} random candidates of space {space.name!r} meets it ({why}); the least seen: {least}"
    )
