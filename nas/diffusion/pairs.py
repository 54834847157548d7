"""Pairs of noise and what a trained network draws from it, made once before a training that learns from them."""

from __future__ import annotations

from pydantic import Field

from nas.diffusion.plan import Plan
from nas.documents.section import Section


class Pairs(Section):
    """How many pairs, and how the latents of a pair are drawn from its noise."""

    count: int = Field(2048, ge=1)
    """Pairs in all, each with a caption of the training split. Their cost: count x steps x guidance branches passes."""
    sampling: Plan = Plan(solver="ddim", steps=10, guidance=3.0)
    """How the teacher draws. Its guidance becomes part of what is learned, so that the trained network needs none."""
