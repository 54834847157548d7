"""Early stopping with several objectives: may a trial that has just been scored go on to the next rung?

    stopping: {rule: improvement, rungs: [0.25, 0.5, 1.0], gain: 0.01, min_peers: 4}

Optuna's pruners refuse studies with more than one objective, so the decision is made here. A rule compares the curve of
one trial with those of the trials that were there before it; nothing waits, and who was stopped stays stopped.

- `improvement`: a trial goes on if it is expected to add more than a share of the hypervolume of the fully trained
  (nas.search.improvement).
- `halving`: ASHA's stopping rule (Li et al. 2020, section 3.2): a trial goes on if it is among the best share of all that
  finished the rung so far. "Best" is NSGA-II's order, the non-dominated rank, with the hypervolume a point alone
  contributes to its rank's front deciding ties (nas.search.dominance).
- `slope`: the rule of MobileDiffusion (arXiv 2311.16567): a trial stops if its scores improve more slowly than those of
  earlier candidates at the same step. The paper gives no formula; here it is the improvement since the rung before, and
  a trial stops if it is slower than the median one in every score. Costs don't improve and are left out.
- `median`: a trial stops if it is worse than the median of the earlier ones in every objective.
- `none`: nothing stops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from nas.documents.section import Section
from nas.numbers import amount
from nas.search import improvement
from nas.search.dominance import Points, contributions, nondominated_ranks, normalised
from nas.search.peers import Curve, Curves, Peers

Objectives = Mapping[str, str]  # column -> minimise or maximise


class Stopping(Section):
    """When a trial is looked at, and which go on."""

    rule: Literal["improvement", "halving", "slope", "median", "none"] = "improvement"
    """`improvement` by expected hypervolume, `halving` by non-dominated rank, `slope` as in the MobileDiffusion paper,
    `median` on each objective, or `none`."""
    rungs: tuple[float, ...] = Field((0.4, 1.0), max_length=100)
    """Fractions of training.images_seen at which a trial is scored; the last is 1. A 0 scores the initial weights."""
    keep: float = Field(0.5, gt=0, le=1)
    """Share of the trials at a rung that goes on to the next; 1 never stops one. `slope` and `median` take it as the
    quantile that a trial has to reach in one objective at least: 0.5 is the median. `improvement` has `gain` instead."""
    gain: float = Field(0.01, ge=0, lt=1)
    """`improvement`: the share of the hypervolume that a trial must be expected to add, or it is stopped."""
    min_peers: int = Field(4, ge=1)
    """Trials at a rung, the new one included, before any is stopped; for `improvement` trials at the end."""

    @model_validator(mode="after")
    def _read_by_the_rule(self) -> Self:
        """Refuses a share that the rule would ignore."""
        unread = "keep" if self.rule == "improvement" else "gain"
        if getattr(self, unread) != type(self).model_fields[unread].default:
            reading = "rule halving, slope or median" if unread == "keep" else "rule improvement"
            raise ValueError(f"{unread}: rule {self.rule} does not read it; expected {reading}")
        return self

    @field_validator("rungs")
    @classmethod
    def _rising_to_one(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(a < b for a, b in zip(rungs, rungs[1:], strict=False))
        if not rungs or not rising or rungs[0] < 0 or rungs[-1] != 1:
            raise ValueError(f"expected rising fractions that end with 1, got {list(rungs)}")
        return rungs


def goes_on(curve: Curve, others: Peers | Sequence[Curve], settings: Stopping) -> bool:
    """Whether a trial continues, given its objectives at every rung so far, (rungs, objectives), all minimised.

    `others` are the curves of all other trials, as far as each got.
    """
    if settings.rule == "none":
        return True
    own, peers = _arrays(curve, others)
    if settings.rule == "improvement":
        few = (peers.reached == len(settings.rungs)).sum() < settings.min_peers
        return bool(few) or improvement.of_curves(own, peers, len(settings.rungs)) > settings.gain
    earlier = peers.at(len(own))
    few = len(earlier) + 1 < max(2, settings.min_peers)
    return settings.keep == 1 or few or RULES[settings.rule](np.concatenate([earlier, own[None]]), settings.keep)


def reason(curve: Curve, others: Peers | Sequence[Curve], settings: Stopping, objectives: Objectives) -> str:
    """Why this trial was stopped here, with the numbers that were compared, for its record.

    `objectives`: column -> minimise or maximise, in the order of the curves' last axis.
    """
    own, peers = _arrays(curve, others)
    rung = len(own) - 1
    if settings.rule == "improvement":
        share = improvement.of_curves(own, peers, len(settings.rungs))
        return f"at rung {rung} expected to add {share:.2%} to the hypervolume, not more than {settings.gain:.2%}"
    curves = np.concatenate([peers.at(len(own)), own[None]])
    if settings.rule == "halving":
        best, place = math.ceil(settings.keep * len(curves)), place_of_last(curves)
        return f"at rung {rung} in place {place} of {len(curves)}; the best {best} go on"
    if settings.rule == "median":
        wanted, reached = np.quantile(curves[:-1, -1], settings.keep, axis=0), own[-1]
        told = _beside(reached, wanted, objectives)
        return f"at rung {rung} worse than the best {settings.keep:.0%} in every objective: {told}"
    gained = curves[:, -2] - curves[:, -1]
    told = _beside(-gained[-1], -np.quantile(gained[:-1], 1 - settings.keep, axis=0), objectives, _learnt(curves))
    return f"at rung {rung} improving more slowly than the best {settings.keep:.0%} in every score: by {told}"


def _arrays(curve: Curve, others: Peers | Sequence[Curve]) -> tuple[Points, Peers]:
    return np.asarray(curve, dtype=np.float64), others if isinstance(others, Peers) else Peers.of(others)


def _beside(own: Points, others: Points, objectives: Objectives, shown: NDArray[np.bool_] | None = None) -> str:
    """What a trial has beside what it would have needed, by objective, each with its own sign again."""
    told = []
    for place, (name, way) in enumerate(objectives.items()):
        if shown is None or shown[place]:
            sign, beyond = (1, ">") if way == "minimise" else (-1, "<")
            told.append(f"{name} {amount(sign * float(own[place]))} {beyond} {amount(sign * float(others[place]))}")
    return ", ".join(told)


# --- the rules: may the last of these curves go on? ------------------------------------------------------------------


def halving(curves: Curves, keep: float) -> bool:
    """Whether the last trial is among the best `keep` of all, by rank and then by contributed hypervolume."""
    better, level = _ranks_before(curves[:, -1])
    share = math.ceil(keep * len(curves))
    if better >= share or better + len(level) <= share:  # the hypervolume cannot change it
        return better < share
    return _place(curves, better, level) <= share


def place_of_last(curves: Curves) -> int:
    """The place of the last trial among all, from 1, by rank and then by contributed hypervolume."""
    return _place(curves, *_ranks_before(curves[:, -1]))


def _place(curves: Curves, better: int, level: NDArray[np.int64]) -> int:
    added = contributions(normalised(curves[:, -1])[level])
    return 1 + better + int((added[:-1] >= added[-1]).sum())


def _ranks_before(points: Points) -> tuple[int, NDArray[np.int64]]:
    """How many points are of a better rank than the last, and which are of its own."""
    beaten = (points >= points[-1]).all(axis=1) & (points > points[-1]).any(
        axis=1
    )  # they are behind it, and move nobody
    ranks = np.full(len(points), len(points))
    ranks[~beaten] = nondominated_ranks(points[~beaten])
    return int((ranks < ranks[-1]).sum()), np.flatnonzero(ranks == ranks[-1])


def slope(curves: Curves, keep: float) -> bool:
    """Whether the last trial improved in some score at least as fast as the best `keep` of the earlier ones.

    At a first rung nothing has improved yet: every trial goes on. So it does where no score moves.
    """
    learnt = _learnt(curves)
    if curves.shape[1] < 2 or not learnt.any():
        return True
    gained = (curves[:, -2] - curves[:, -1])[:, learnt]
    return bool((gained[-1] >= np.quantile(gained[:-1], 1 - keep, axis=0)).any())


def _learnt(curves: Curves) -> NDArray[np.bool_]:
    """Which objectives change in training; costs do not."""
    return np.asarray((curves != curves[:, :1]).any(axis=(0, 1)))


def median(curves: Curves, keep: float) -> bool:
    """Whether the last trial is in some objective at least as good as the best `keep` of the earlier ones."""
    points = curves[:, -1]
    return bool((points[-1] <= np.quantile(points[:-1], keep, axis=0)).any())


RULES = {"halving": halving, "slope": slope, "median": median}
