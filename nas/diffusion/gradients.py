"""Do times agree on where a network should go? Cosines between gradients of the denoising loss at different times.

DeMe (Ma et al. 2024, arXiv 2410.06664, figure 1) finds those of adjacent times alike and those of far-apart ones not.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from nas.diffusion.schedule import denoising_error
from nas.networks.conditioning import Text


def gradient(
    network: nn.Module, schedule: DDPMScheduler, latents: Tensor, text: Text, time: Tensor, noise: Tensor
) -> Tensor:
    """Of the denoising loss of latents (B, C, H, W) at times (B,), to all trained parameters in a row (P,)."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    loss = denoising_error(network, schedule, latents, text, time, noise).mean()
    parts = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def grad_cos(
    network: nn.Module, schedule: DDPMScheduler, latents: Tensor, text: Text, noise: Tensor, t_a: int, t_b: int
) -> float:
    """The cosine between the gradients at two times, of the same latents (B, C, H, W), captions and noise; 0 without one."""
    times = (torch.full((len(latents),), time, device=latents.device) for time in (t_a, t_b))
    a, b = (gradient(network, schedule, latents, text, time, noise) for time in times)
    return cosine(a, b)


def cosine(a: Tensor, b: Tensor) -> float:
    """Between two vectors (P,), in float64; 0 where one is zero."""
    a, b = a.double(), b.double()
    length = a.norm() * b.norm()
    return float(a @ b / length) if length else 0.0
