"""How pictures are drawn: solver, steps, guidance."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from nas.cost.units import Computed, Units
from nas.diffusion.cache_schedules import Cache
from nas.documents.section import Section
from nas.errors import InputError

ONE_STEP = ("one_step", "renoise")  # solvers of generators that predict clean latents from noise
ALONG_A_PATH = ("ddim", "dpm++")  # solvers of the flow from noise to clean latents that a denoiser knows

MOST_STEPS, MOST_GUIDANCE = 1000, 1000  # bounds far beyond use: a guidance of 1e30 draws no numbers at all
ALWAYS = (
    "solver",
    "steps",
    "guidance",
)  # fields that are written even at their default; a later one keeps old records equal


class Plan(Section):
    """One way to draw from a denoiser. Its cost: network MACs x steps x guidance branches, less what a cache spares."""

    solver: Literal["ddim", "dpm++", "one_step", "renoise"] = "ddim"
    """DDIM (Song et al. 2021) or second-order multistep DPM-Solver++ (Lu et al. 2022). For one-step generators: `one_step`,
    the clean latents predicted from pure noise, or `renoise`, which noises them again to a lower time, predicts again, and
    so on (UFOGen, Xu et al. 2023)."""
    steps: int = Field(25, ge=1, le=MOST_STEPS)
    """Network evaluations per branch. One step takes the clean latents predicted from pure noise. `one_step` has 1."""
    guidance: float = Field(3.0, ge=0, le=MOST_GUIDANCE)
    """Classifier-free guidance scale w in null + w (cond - null); 1 evaluates only the conditional branch, and is what
    one-step generators are made for: with `one_step` and `renoise` it is 1 unless given."""

    cache: Cache | None = None
    """Which units of the network a step keeps instead of computing them: a heuristic, such as {name: fora, every: 2}, or a
    schedule that `nas schedule` found. None: all are computed."""

    @model_validator(mode="before")
    @classmethod
    def _one_step_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("solver") not in ONE_STEP:
            return given
        return {"guidance": 1.0} | ({"steps": 1} if given["solver"] == "one_step" else {}) | given

    @model_validator(mode="after")
    def _one_step_is_one(self) -> Plan:
        if self.solver == "one_step" and self.steps != 1:
            raise ValueError(f"steps: solver one_step has 1 step, got {self.steps}; several are solver renoise")
        return self

    @model_serializer(mode="wrap")
    def _written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later fields at their default: plans that were recorded before them read and compare as they did."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in plain(self).items()
            if name in ALWAYS or getattr(self, name) != fields[name].default
        }

    def changed(self, steps: int | None = None, guidance: float | None = None) -> Plan:
        """The plan with other steps or guidance; a one-step plan that is given several steps renoises between them.

        Raises InputError for what a plan cannot have.
        """
        given = {"steps": steps, "guidance": guidance}
        values = self.model_dump() | {key: value for key, value in given.items() if value is not None}
        if self.solver == "one_step" and values["steps"] != 1:
            values["solver"] = "renoise"
        try:
            return Plan(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None

    @property
    def branches(self) -> int:
        return 1 if self.guidance == 1 else 2

    @property
    def calls(self) -> int:
        """Of the network, for one image."""
        return self.steps * self.branches

    def macs(self, units: Units) -> int:
        """Multiply-adds of the denoiser for one image, of the units that the cache leaves to be computed.

        Raises InputError for a cache that is another network's.
        """
        return int(units.macs(self.computed(units)).sum()) * self.branches

    def computed(self, units: Units) -> Computed:
        """Which units are computed at which step, (steps, units). Raises InputError as `macs`."""
        if self.cache is None:
            return np.ones((self.steps, len(units)), dtype=bool)
        return units.effective(self.cache.modes(self.steps, units))
