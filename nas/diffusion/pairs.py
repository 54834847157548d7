"""Pairs of noise and what a trained network draws from it: what rectified flows and regressions learn from."""

from __future__ import annotations

from pydantic import Field

from nas.diffusion.plan import Plan
from nas.documents.section import Section


class Pairs(Section):
    """How many, and how they are drawn. Their cost: count x steps x guidance branches forward passes."""

    count: int = Field(2048, ge=1)
    """Captions of the training split that are drawn, each once, from noise of its own."""
    sampling: Plan = Plan(solver="ddim", steps=10, guidance=3.0)
    """Solver, steps and guidance of the network that draws. A deterministic solver: one noise, one picture."""
