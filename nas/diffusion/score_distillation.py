"""Distribution matching by scores: the gradient of KL(made || real) in what a generator makes.

A real score (the teacher's) and a fake one (of a network that learns what the generator makes) both predict the clean latents
of one noised sample; their difference says where the sample should move. DMD (Yin et al. 2023, arXiv 2311.18828, eq. 7 and 8)
divides it by the teacher's error, as the authors' code does (eq. 7 has another factor a_t); SwiftBrush (Nguyen & Tran 2023,
arXiv 2312.05239) weighs the difference of the predicted noises by s_t^2, which is s_t a_t times that of the clean latents.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Weighting = Literal["teacher_error", "variance"]


def gradient(made: Tensor, real: Tensor, fake: Tensor, a: Tensor, s: Tensor, weighting: Weighting) -> Tensor:
    """Where `made` (B, C, H, W) should move away from: the clean latents that `fake` and `real` predict, subtracted and weighed.

    a_t and s_t, (B, 1, 1, 1), are those of the noised sample that both saw.
    """
    if weighting == "variance":
        return s * a * (fake - real)
    error = (made - real).abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    return (fake - real) / error.clamp(min=1e-6)


def injected(made: Tensor, direction: Tensor) -> Tensor:
    """A loss whose gradient in `made` is `direction` / its number of elements. Its value is no measure of progress."""
    return 0.5 * (made - (made - direction).detach()).square().mean()
