"""A study's budget: the most that an architecture may cost, by column of its costs at deploy scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.numbers import above

Budget = Mapping[str, float]  # column -> limit


def over_budget(cost: Mapping[str, Any], budget: Budget) -> str:
    """Why a cost breaks the budget, or an empty string."""
    broken = [f"{name} {above(cost[name], limit)}" for name, limit in budget.items() if cost[name] > limit]
    return ", ".join(broken)


def constraints(cost: Mapping[str, Any], budget: Budget) -> dict[str, float]:
    """The budget as Optuna's constraints: by what share of each limit a cost exceeds it, negative where it does not."""
    return {name: cost[name] / limit - 1 for name, limit in budget.items()}
