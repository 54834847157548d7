"""How pictures are drawn: solver, steps, guidance."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from nas.cost.units import Computed, Units
from nas.diffusion.caches.cache_schedules import Cache, Written
from nas.diffusion.spacing import SPACINGS, TIMES, renoising
from nas.diffusion.tokens import unmasking
from nas.documents.section import Section
from nas.documents.strict import first_wrong
from nas.errors import InputError, shown

ONE_STEP = ("one_step", "renoise")  # solvers of generators that predict clean latents from noise
ALONG_A_PATH = (
    "ddim",
    "dpm++",
    "unipc",
    "heun",
)  # solvers of the flow from noise to clean latents that a denoiser knows

AUTOREGRESSIVE = "autoregressive"  # the solver that draws a picture token by token
OF_TOKENS = ("order", "iterations", "temperature", "guidance_schedule")  # fields that only it reads

MOST_STEPS, MOST_GUIDANCE = 1000, 1000  # bounds far beyond use: a guidance of 1e30 draws no numbers at all
MOST_ITERATIONS = 10**6
ALWAYS = (
    "solver",
    "steps",
    "guidance",
)  # fields that are written even at their default; a later one keeps old records equal
Which = Annotated[int, Field(ge=0, lt=64)]  # of experts
Time = Annotated[int, Field(ge=0, lt=TIMES)]  # of training


class Plan(Section):
    """One way to draw from a denoiser. Its cost: network MACs x `calls`, less what a cache spares."""

    solver: Literal["ddim", "dpm++", "unipc", "heun", "one_step", "renoise", "autoregressive"] = "ddim"
    """DDIM (Song et al. 2021), or of second order: multistep DPM-Solver++ (Lu et al. 2022), UniPC, which corrects each of
    its steps by the next evaluation (Zhao et al. 2023), and Heun, who evaluates twice a step. For one-step generators:
    `one_step`, the clean latents predicted from pure noise, or `renoise`, which noises them again to a lower time, predicts
    again, and so on (UFOGen, Xu et al. 2023)."""
    steps: int = Field(25, ge=1, le=MOST_STEPS)
    """Network evaluations per branch; `heun` has twice as many less one. One step takes the clean latents predicted from
    pure noise. `one_step` has 1. With `autoregressive` those of the head, for every token."""
    guidance: float = Field(3.0, ge=0, le=MOST_GUIDANCE)
    """Classifier-free guidance scale w in null + w (cond - null); 1 evaluates only the conditional branch, and is what
    one-step generators are made for: with `one_step` and `renoise` it is 1 unless given."""
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    """Which training times are asked about (Lin et al. 2024, table 2): evenly from the last one down (`trailing`), down to
    the first one without the last (`leading`), or with both ends (`linspace`). One step needs `trailing`, as one-step
    generators do."""
    guidance_interval: tuple[Time, Time] = (0, TIMES - 1)
    """The lowest and the highest training time, of 0 to 999, that is guided (Kynkäänniemi et al. 2024). At other times only
    the conditional branch is evaluated."""
    cache: Cache | None = None
    """Which units of the network a step keeps instead of computing them: a heuristic, such as {name: fora, every: 2}, or a
    schedule that `nas schedule` found. None: all are computed."""
    experts: tuple[Which, ...] | None = None
    """Of experts by time (objective `deme`, merge none): which of them draws each evaluation, the noisiest first; 0 is that of
    the least noise. None: the one whose times it was trained for."""
    order: Literal["random", "raster"] = "random"
    """Of `autoregressive`: which tokens are drawn first, any, or those of the picture's first row, one after the other."""
    iterations: int | None = Field(None, ge=1, le=MOST_ITERATIONS)
    """Of `autoregressive` in random order: in so many goes all tokens are drawn, few at first (the cosine rule). None: one
    token in each."""
    temperature: float = Field(1.0, ge=0, le=10)
    """Of `autoregressive`: what the noise of a step is multiplied by."""
    guidance_schedule: Literal["constant", "linear"] = "constant"
    """Of `autoregressive`: whether the guidance is that of all iterations, or rises with the share of tokens known after them."""

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

    @model_validator(mode="after")
    def _asks_of_noise(self) -> Plan:
        if self.spacing != "trailing" and self.solver in ONE_STEP:
            raise ValueError(
                f"spacing: solver {self.solver} has times of its own, expected trailing, got {self.spacing}"
            )
        if self.spacing != "trailing" and self.steps == 1:
            raise ValueError(
                f"spacing: {self.spacing} asks about pure noise as if it were time 0 where steps is 1; expected trailing"
            )
        return self

    @model_validator(mode="after")
    def _keeps_whole_batches(self) -> Plan:
        if self.cache is not None and self.guidance != 1 and self.guidance_interval != (0, TIMES - 1):
            raise ValueError(
                f"cache: what both branches put out cannot stand for one; expected no guidance_interval beside it, got "
                f"{list(self.guidance_interval)}"
            )
        return self

    @model_validator(mode="after")
    def _as_many_rows(self) -> Plan:
        if isinstance(self.cache, Written) and len(self.cache.rows) != self.evaluations:
            raise ValueError(
                f"cache: its schedule has {len(self.cache.rows)} rows, and {self.solver} in {self.steps} steps evaluates the "
                f"network {self.evaluations} times; expected as many"
            )
        return self

    @model_validator(mode="after")
    def _as_many_experts(self) -> Plan:
        if self.experts is not None and len(self.experts) != self.evaluations:
            raise ValueError(
                f"experts: {len(self.experts)} of them, and {self.solver} in {self.steps} steps evaluates the network "
                f"{self.evaluations} times; expected as many"
            )
        if self.experts is not None and self.cache is not None:
            raise ValueError("cache: what one expert puts out cannot stand for another's; expected none beside experts")
        return self

    @model_validator(mode="after")
    def _of_tokens(self) -> Plan:
        fields = type(self).model_fields
        if self.solver != AUTOREGRESSIVE:
            if told := [name for name in OF_TOKENS if getattr(self, name) != fields[name].default]:
                raise ValueError(f"{told[0]}: solver {self.solver} does not read it; expected solver {AUTOREGRESSIVE}")
            return self
        if self.order == "raster" and self.iterations is not None:
            raise ValueError(
                f"iterations: order raster draws one token after the other, of several at once none would know its neighbour; "
                f"expected none given, got {self.iterations}"
            )
        if told := [
            name for name in ("cache", "guidance_interval", "experts") if getattr(self, name) != fields[name].default
        ]:
            raise ValueError(f"{told[0]}: solver {AUTOREGRESSIVE} does not read it; expected none")
        return self

    @field_validator("guidance_interval", mode="before")
    @classmethod
    def _two_times(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple) or len(given) != 2:
            raise ValueError(f"expected two training times, such as [200, 799], got {shown(given)}")
        return given

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[int, int]) -> tuple[int, int]:
        if interval[0] > interval[1]:
            raise ValueError(f"expected the lower time first, got {list(interval)}")
        return interval

    @model_serializer(mode="wrap")
    def _written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later fields at their default: plans that were recorded before them read and compare as they did."""
        fields = type(self).model_fields
        return {
            name: list(value) if isinstance(value, tuple) else value  # as YAML and JSON have it
            for name, value in plain(self).items()
            if name in ALWAYS or getattr(self, name) != fields[name].default
        }

    def changed(self, steps: int | None = None, guidance: float | None = None, **others: Any) -> Plan:
        """The plan with other fields; a one-step plan that is given several steps renoises between them.

        Raises InputError for what a plan cannot have.
        """
        given = {
            name: value
            for name, value in (others | {"steps": steps, "guidance": guidance}).items()
            if value is not None
        }
        own = self.model_dump()
        if given.get("solver") == "one_step":
            own["steps"] = 1
        elif self.solver == "one_step" and given.get("steps", 1) != 1:
            own["solver"] = "renoise"
        try:
            return Plan.model_validate(own | given)
        except ValidationError as error:
            raise InputError(first_wrong(Plan, error)) from None

    def times(self, count: int = TIMES) -> list[int]:
        """The training times, of `count`, that the steps start from, the noisiest first."""
        return renoising(self.steps, count) if self.solver in ONE_STEP else SPACINGS[self.spacing](self.steps, count)

    def scale_at(self, time: int) -> float:
        """The guidance scale at a training time; 1 for the conditional branch alone."""
        low, high = self.guidance_interval
        return self.guidance if low <= time <= high else 1.0

    def scale_after(self, known: int, tokens: int) -> float:
        """The guidance scale of the iteration after which so many tokens are known; MAR takes one for missing in the last."""
        share = min(known, tokens - 1) / tokens if self.guidance_schedule == "linear" else 1.0
        return 1 + (self.guidance - 1) * share if self.guidance != 1 else 1.0

    @property
    def asked(self) -> list[int]:
        """The training time of every evaluation: of `heun` those between two steps twice."""
        first, *later = self.times()
        return [first, *(time for time in later for _ in range(2 if self.solver == "heun" else 1))]

    def evaluations_of(self, steps: int) -> int:
        """Of the network in the last so many steps."""
        return 2 * steps - 1 if self.solver == "heun" else steps

    @property
    def evaluations(self) -> int:
        """Of the network with all its branches, for one image: a row of a cache's schedule each; of `autoregressive` those of
        the head, for one token."""
        return len(self.asked)

    @property
    def calls(self) -> int:
        """Of the network, for one image: an evaluation with guidance is two."""
        return sum(self._branches)

    @property
    def _branches(self) -> list[int]:
        """At each evaluation."""
        return [1 if self.scale_at(time) == 1 else 2 for time in self.asked]

    def macs(self, units: Units) -> int:
        """Multiply-adds of the denoiser for one image, of the units that the cache leaves to be computed.

        Raises InputError for a cache that is another network's, and for a network that cannot be drawn so.
        """
        if self.solver == AUTOREGRESSIVE:
            return self._macs_of_tokens(units)
        if units.autoregression is not None and units.autoregression.codes is not None:
            raise InputError(
                f"solver: {self.solver} denoises numbers, and tokens are indices; expected {AUTOREGRESSIVE}"
            )
        return int(units.macs(self.computed(units)) @ np.array(self._branches))

    def _macs_of_tokens(self, units: Units) -> int:
        if (parts := units.autoregression) is None:
            raise InputError(
                f"solver: {AUTOREGRESSIVE} draws token by token, which this family of networks cannot; expected another solver, "
                "or a family of networks that can"
            )
        if parts.codes is not None and self.steps != 1:
            raise InputError(f"steps: {self.steps}, but a token that is an index is drawn at once; expected 1")
        return max(self._branches) * parts.macs(unmasking.counts(parts.tokens, self.iterations), self.steps)

    def computed(self, units: Units) -> Computed:
        """Which units are computed at which evaluation, (evaluations, units). Raises InputError as `macs`."""
        if self.cache is None:
            return np.ones((self.evaluations, len(units)), dtype=bool)
        if not len(units):
            raise InputError("cache: this family of networks has no units whose outputs could be kept; expected null")
        return units.effective(self.cache.modes(self.evaluations, units))
