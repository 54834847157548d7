"""Pairs of noise and what a trained network draws from it: what rectified flows and regressions learn from."""

from __future__ import annotations

from pydantic import Field

from nas.diffusion.plan import Plan
from nas.documents.section import Section


class Pairs(Section):
    """How many, and how they are drawn."""

    count: int = Field(2048, ge=1)
    """Captions of the training split that are drawn, each once, from noise of its own."""
    sampling: Plan = Plan(solver="ddim", steps=10, guidance=3.0)
    """Solver, steps and guidance of the network that draws. Its guidance becomes part of what is learned."""

    @property
    def passes(self) -> int:
        """Network passes that all of them cost."""
        return self.count * self.sampling.calls
