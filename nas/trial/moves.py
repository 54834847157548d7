"""The changes of one decision that an evolution may make to a network (`search.sampler: evolution`), and what each costs.

A removal is the choice of an axis that costs next less, a copy the one that costs next more; both only where the changed network
can have the weights of the unchanged one (nas.weights.inheritance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nas import menu
from nas.cost.latency_table import COLUMN as LATENCY
from nas.errors import InputError, shown
from nas.networks.backbones import Backbone, Proxy
from nas.numbers import amount
from nas.runs.evolution import Kind
from nas.search.stopping import Stopping
from nas.settings.study import Evolution, Study
from nas.space import screen
from nas.space.search_space import Choices, SearchSpace
from nas.trial import base_model
from nas.trial.checks.check import ANY_DATA
from nas.weights import inheritance, supernet

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Move:
    """One change, and the network that it makes."""

    axis: str
    kind: Kind
    choice: Any
    config: Backbone
    cost: float


class Moves:
    """The changes that a study's space offers, in the cost that the study wants to save."""

    def __init__(self, study: Study, space: SearchSpace):
        """Raises InputError for a cost that there is not, and a base that is no member of the space."""
        self.settings = settings_of(study)
        self._study, self._space = study, space
        base = base_model.architecture(study)
        self._check_cost(study.deploy.costs(base))
        start = screen.position(space, base)
        if start is None:
            raise InputError(f"space: the base model is not a member of space {space.name!r}, where evolution begins")
        self.start = start
        share = 1.0 if self.settings.cost == LATENCY else self.cost(base)
        self.target = self.settings.target * share

    def _check_cost(self, known: Mapping[str, Any]) -> None:
        named, columns = self.settings.cost, [name for name, value in known.items() if isinstance(value, int | float)]
        if named not in columns:
            hint = "; it needs a table of blocks, deploy.latency" if named == LATENCY else menu.nearest(named, columns)
            raise InputError(f"search.evolution.cost: unknown column {shown(named)}{hint}")

    def cost(self, config: Backbone) -> float:
        """What a network costs, in the column that counts."""
        found: float = self._study.deploy.costs(config)[self.settings.cost]
        return found

    def network(self, choices: Choices) -> Backbone:
        """The member's network."""
        return self._space.architecture(choices)

    def changed(self, member: Choices, changes: Mapping[str, Any]) -> Choices:
        """The member with these choices of its axes."""
        return self._space.changed(member, changes)

    def removals(self, member: Choices) -> list[Move]:
        """For each axis the change that costs next less, in the order of the axes."""
        return self._nearest(member, "removal", self.descends)

    def copies(self, member: Choices) -> list[Move]:
        """For each axis the change that costs next more."""
        return self._nearest(member, "copy", self.descends)

    def _nearest(self, member: Choices, kind: Kind, allowed: Callable[[Backbone, Backbone], bool]) -> list[Move]:
        now, sign = self.network(member), 1 if kind == "copy" else -1
        found: dict[str, list[Move]] = {}
        for axis, other in self._space.moves(member):
            config = self.network(other)
            if sign * ((cost := self.cost(config)) - self.cost(now)) > 0:
                found.setdefault(axis, []).append(Move(axis, kind, other[axis], config, cost))
        ordered = (sorted(moves, key=lambda move: sign * move.cost) for moves in found.values())
        firsts = (next((move for move in moves if allowed(move.config, now)), None) for moves in ordered)
        return [move for move in firsts if move is not None]

    def together(self, member: Choices, changes: Mapping[str, Any]) -> bool:
        """Whether changes that are possible one by one make a network together that can have the member's weights."""
        other = self.changed(member, changes)
        return self._space.makes(other) and self.descends(self.network(other), self.network(member))

    def descends(self, own: Backbone, whole: Backbone) -> bool:
        """Whether a network can have the weights of another."""
        proxy = Proxy(self._study.proxy.width_divisor, **ANY_DATA)
        try:
            inheritance.check(_skeleton(own, proxy), _skeleton(whole, proxy), _sources(own, whole, proxy), grown=True)
        except (InputError, ValueError):
            return False
        return True

    def least(self) -> float:
        """The least cost that changes of one axis after another reach, whatever weights there are."""
        member = self.start
        while moves := self._nearest(member, "removal", lambda own, whole: True):
            for move in moves:
                other = self.changed(member, {move.axis: move.choice})
                member = other if self._space.makes(other) else member
        return self.cost(self.network(member))


def settings_of(study: Study) -> Evolution:
    """The study's `search.evolution`."""
    assert study.search is not None and study.search.evolution is not None
    return study.search.evolution


def quality_of(study: Study) -> tuple[str, int]:
    """The score that removals are weighed by, and 1 where more of it is better, -1 where less. Raises InputError."""
    assert study.search is not None
    asked, costs = settings_of(study).quality, _costs(study)
    scores = [column for column in study.objectives if column not in costs]
    if asked is None and len(scores) != 1:
        raise InputError(
            f"search.evolution.quality: {len(scores)} scores among the objectives ({', '.join(scores) or 'none'}); expected the "
            "name of one"
        )
    if asked is not None and asked not in scores:
        raise InputError(
            f"search.evolution.quality: {shown(asked)} is no score among the objectives{menu.nearest(asked, scores)}"
        )
    column = asked or scores[0]
    return column, 1 if study.objectives[column] == "maximise" else -1


def _costs(study: Study) -> list[str]:
    return list(study.deploy.costs(base_model.architecture(study)))


def check(study: Study, space: SearchSpace | None) -> None:
    """What can be known to be wrong with an evolution before it starts. Raises InputError."""
    if study.search is None or study.search.sampler != "evolution" or space is None:
        return
    _check_sections(study)
    quality_of(study)
    _check_runtime(study)
    moves = Moves(study, space)
    if not moves.removals(moves.start):
        raise InputError(
            f"space: no axis of {space.name!r} has a choice that makes the base cheaper and keeps its weights; evolution removes "
            "blocks, one axis each"
        )
    if moves.target < (least := moves.least()):
        told = f"{amount(moves.target)} {moves.settings.cost}"
        raise InputError(
            f"search.evolution.target: {moves.settings.target:g} ({told}) is below {amount(least)}, the least that removals "
            f"reach in space {space.name!r}"
        )


def _check_sections(study: Study) -> None:
    """That the study has what an evolution needs, and nothing that it does not read."""
    assert study.search is not None
    base_model.base_of(study)
    if study.training.init != "inherited":
        raise InputError(
            f"training.init: evolution goes on from the weights of a base model, but this is {study.training.init}; expected "
            "inherited, and a base section"
        )
    strange = {
        "search.start": study.search.start,
        "search.plan": study.search.plan,
        "search.repeats": study.search.repeats,
        "racing.trials": study.racing.trials,
        "budget": study.budget,
    }
    for setting, given in strange.items():
        if given:
            raise InputError(f"{setting}: sampler evolution does not read it; expected search.evolution alone")
    _check_stopping(study.stopping)
    if study.training.lora is not None:
        raise InputError("training.lora: evolution trains whole networks; expected no adapters")
    if settings_of(study).cost == LATENCY and study.deploy.latency is None:
        raise InputError("search.evolution.cost: latency_ms needs a table of blocks, deploy.latency")


def _check_stopping(asked: Stopping) -> None:
    """That nothing is to be stopped early: every round goes on from the weights at the end of the one before."""
    for name in ("rule", "keep", "gain", "min_peers"):
        given, default = getattr(asked, name), Stopping.model_fields[name].default
        if given not in (default, "none"):
            raise InputError(
                f"stopping.{name}: sampler evolution stops no trial early, but this is {given}; expected rule none"
            )


def _check_runtime(study: Study) -> None:
    """That the table of blocks was measured on the runtime that is asked for."""
    wanted, told = settings_of(study).runtime, study.deploy.latency_conditions().get(LATENCY)
    if wanted is None:
        return
    if told is None:
        raise InputError(
            f"search.evolution.runtime: {shown(wanted)}, but the study has no table of blocks, deploy.latency"
        )
    if told["runtime"] != wanted:
        raise InputError(
            f"deploy.latency: {study.deploy.latency} was measured on {told['runtime']}, expected "
            f"{shown(wanted)} (search.evolution.runtime)"
        )


# --- shapes, made once ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _skeleton(config: Backbone, proxy: Proxy) -> nn.Module:
    return supernet.skeleton(config.scaled(proxy))


def _sources(own: Backbone, whole: Backbone, proxy: Proxy) -> dict[str, str]:
    return inheritance.sources(own.scaled(proxy), whole.scaled(proxy))
