"""Pairs of noise and what a trained network draws from it: what rectified flows and regressions learn from."""

from __future__ import annotations

from pydantic import Field, field_validator

from nas.diffusion.plan import ONE_STEP, Plan
from nas.documents.section import Section


class Pairs(Section):
    """How many, and how they are drawn."""

    count: int = Field(2048, ge=1, le=10**8)
    """Of captions of the training split in random order, over and over where they are fewer; each with noise of its own."""
    sampling: Plan = Plan(solver="ddim", steps=10, guidance=3.0)
    """Solver, steps and guidance of the network that draws. Its guidance becomes part of what is learned."""

    @field_validator("sampling")
    @classmethod
    def _deterministic(cls, plan: Plan) -> Plan:
        if plan.solver in ONE_STEP:
            raise ValueError(
                f"solver: pairs are drawn along the paths of a denoiser, by ddim, dpm++, unipc or heun; got {plan.solver}"
            )
        return plan

    @property
    def passes(self) -> int:
        """Network passes that all of them cost."""
        return self.count * self.sampling.calls
