"""From noise to latents. How is data: a `Plan` says which solver, how many steps and how much guidance."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nas.conditioning import Text


class Plan(BaseModel):
    """One way to draw from a denoiser. Its cost: network MACs x steps x guidance branches."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    solver: Literal["ddim", "dpm++"] = "ddim"
    """DDIM (Song et al. 2021) or second-order multistep DPM-Solver++ (Lu et al. 2022)."""
    steps: int = Field(25, ge=1, le=1000)
    """Network evaluations per branch. One step takes the clean latents predicted from pure noise."""
    guidance: float = Field(3.0, ge=0)
    """Classifier-free guidance scale w in null + w (cond - null); 1 evaluates only the conditional branch."""

    @property
    def branches(self) -> int:
        return 1 if self.guidance == 1 else 2

    def macs(self, network_macs: int) -> int:
        """Multiply-adds of the denoiser for one image."""
        return network_macs * self.steps * self.branches


@torch.no_grad()
def sample(
    network: nn.Module, plan: Plan, schedule_config: Mapping[str, Any], noise: Tensor, text: Text, null: Text
) -> Tensor:
    """Latents (B, C, H, W) drawn from `noise` of the same shape under `text` (B rows); `null` has one row.

    Deterministic: the noise is the only randomness.
    """
    solver = _solver(plan, schedule_config)
    solver.set_timesteps(plan.steps, device=noise.device)
    if plan.branches == 2:
        size = len(noise)
        both = Text(*(torch.cat([n.expand(size, *n.shape[1:]), t]) for n, t in zip(null, text, strict=True)))
    latents: Tensor = noise * solver.init_noise_sigma
    for step in solver.timesteps:
        model_input = solver.scale_model_input(latents, step)
        if plan.branches == 1:
            prediction = network(model_input, step.expand(len(noise)), text).float()
        else:
            doubled = torch.cat([model_input, model_input])
            unconditional, conditional = network(doubled, step.expand(len(doubled)), both).float().chunk(2)
            prediction = unconditional + plan.guidance * (conditional - unconditional)
        latents = solver.step(prediction, step, latents).prev_sample
    return latents


def _solver(plan: Plan, schedule_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a plan; `trailing` spacing starts at the last training step (Lin et al. 2024).

    DDIM is DPM-Solver++ of first order (Lu et al. 2022, section 4). `DDIMScheduler` equals it where the number of steps
    divides 1,000; elsewhere it steps to times it never asks the network about, and may end short of the clean latents.
    """
    from diffusers import DPMSolverMultistepScheduler

    config = {key: value for key, value in schedule_config.items() if not key.startswith("_")}
    return DPMSolverMultistepScheduler.from_config(
        config,
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=1 if plan.solver == "ddim" else 2,
        lower_order_final=True,
    )
