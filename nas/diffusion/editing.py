"""Drawing that starts from a picture, of which a part may stay: for every denoiser, none of which was made for it.

Image-to-image is SDEdit (Meng et al. 2022, arXiv 2108.01073, section 3): the picture is noised to a time, from which the solver
goes on. Inpainting replaces, at every evaluation, what the network takes for the clean latents by the picture's where it stays.
A solver of the probability flow then keeps that part on the picture's own straight way from the noise, which is what RePaint
(Lugmayr et al. 2022, arXiv 2201.09865, eq. 8, without resampling) puts in its place step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers import DDPMScheduler
from torch import Tensor

from nas.diffusion.schedule import signal_and_noise

Predict = Callable[[Tensor, Tensor], Tensor]  # latents (B, C, H, W), one time () -> prediction (B, C, H, W), float32


@dataclass(frozen=True)
class Edit:
    """The picture."""

    latents: Tensor
    """(1, C, H, W), unit variance."""
    strength: float = 1.0
    """Share of the steps that are taken, in (0, 1]; at least one is. With 1 they begin at pure noise."""
    mask: Tensor | None = None
    """(1, 1, H, W): 1 where it is drawn anew, 0 where the picture stays. None: all is drawn."""

    def taken(self, times: Sequence[int]) -> list[int]:
        """The times of the steps that are taken, of all times of a plan, the noisiest first."""
        return list(times[len(times) - max(1, round(self.strength * len(times))) :])

    def start(self, schedule: DDPMScheduler, noise: Tensor, time: Tensor) -> Tensor:
        """The picture as noisy as at a time (); (B, C, H, W) like the noise."""
        noisy: Tensor = schedule.add_noise(self.latents.expand_as(noise), noise, time.expand(len(noise)))
        return noisy

    def keeping(self, predict: Predict, schedule: DDPMScheduler) -> Predict:
        """The prediction, which where the picture stays is the one that means the picture."""
        if (mask := self.mask) is None:
            return predict

        def kept(latents: Tensor, time: Tensor) -> Tensor:
            return mask * predict(latents, time) + (1 - mask) * self._meaning(schedule, latents, time)

        return kept

    def _meaning(self, schedule: DDPMScheduler, latents: Tensor, time: Tensor) -> Tensor:
        """The prediction that says of noisy latents that the picture is what is clean in them: v, or the noise."""
        a, s = signal_and_noise(schedule, time.expand(len(latents)))
        noise = (latents.float() - a * self.latents) / s
        return a * noise - s * self.latents if schedule.config["prediction_type"] == "v_prediction" else noise
