"""The noise schedule, and what it makes of latents: noisy ones, what is to be predicted from them, and clean ones again."""

from __future__ import annotations

from typing import Literal, Self

from diffusers import DDPMScheduler
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from nas.documents.section import Section
from nas.networks.conditioning import Text

CLEAN = -1  # the time below 0 at which there is no noise left: a = 1, s = 0


def noise_schedule(settings: Settings) -> DDPMScheduler:
    """Stable Diffusion's schedule: 1,000 steps, sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012)."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if settings.prediction == "v" else "epsilon",
        rescale_betas_zero_snr=settings.zero_terminal_snr,
        clip_sample=False,
    )


def denoising_error(
    network: nn.Module, schedule: DDPMScheduler, latents: Tensor, text: Text, time: Tensor, noise: Tensor
) -> Tensor:
    """Squared error of each element, shape (B, C, H, W), for given times (B,) and noise (B, C, H, W)."""
    noisy, target = corrupted(schedule, latents, time, noise)
    prediction: Tensor = network(noisy, time, text)
    return (prediction.float() - target).square()


def corrupted(schedule: DDPMScheduler, latents: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy latents at the given times, and what the network should predict from them; both (B, C, H, W)."""
    noisy: Tensor = schedule.add_noise(latents, noise, time)
    target: Tensor = noise
    if schedule.config["prediction_type"] == "v_prediction":
        target = schedule.get_velocity(latents, noise, time)
    return noisy, target


def signal_and_noise(schedule: DDPMScheduler, time: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and s_t of x_t = a_t x_0 + s_t e at times (B,), which may be CLEAN; float32, shaped (B, 1, 1, 1)."""
    alphas = pad(schedule.alphas_cumprod.to(time.device), (0, 1), value=1.0)  # CLEAN is the index of the last one
    alpha = alphas[time].view(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()


def clean(schedule: DDPMScheduler, noisy: Tensor, time: Tensor, prediction: Tensor) -> Tensor:
    """The clean latents (B, C, H, W) that a prediction at times (B,) means: a x - s v, or (x - s e) / a.

    In float32 whatever the network computes in: at the last time an error of e is multiplied by s / a = 14.6.
    """
    return clean_at(schedule, noisy, *signal_and_noise(schedule, time), prediction)


def clean_at(schedule: DDPMScheduler, noisy: Tensor, a: Tensor, s: Tensor, prediction: Tensor) -> Tensor:
    """The same with the a and s (B, 1, 1, 1) of the noisy latents themselves, at a training time or between two."""
    if schedule.config["prediction_type"] == "v_prediction":
        return a * noisy.float() - s * prediction.float()
    return (noisy.float() - s * prediction.float()) / a


def noise_in(schedule: DDPMScheduler, noisy: Tensor, time: Tensor, prediction: Tensor) -> Tensor:
    """The noise (B, C, H, W) that a prediction at times (B,) means, float32: s x + a v, or e itself."""
    if schedule.config["prediction_type"] != "v_prediction":
        return prediction.float()
    a, s = signal_and_noise(schedule, time)
    return s * noisy.float() + a * prediction.float()


def velocity(schedule: DDPMScheduler, noisy: Tensor, time: Tensor, prediction: Tensor) -> Tensor:
    """The v = a e - s x_0 (B, C, H, W) that a prediction at times (B,) means, float32: v itself, or (e - s x) / a."""
    if schedule.config["prediction_type"] == "v_prediction":
        return prediction.float()
    a, s = signal_and_noise(schedule, time)
    return (prediction.float() - s * noisy.float()) / a


def ddim_step(schedule: DDPMScheduler, noisy: Tensor, time: Tensor, prediction: Tensor, later: Tensor) -> Tensor:
    """x (B, C, H, W) at less noisy times `later` (B,): a' x0 + s' e of what a prediction at times (B,) means, float32.

    Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0. `later` may be CLEAN.
    """
    a, s = signal_and_noise(schedule, later)
    return a * clean(schedule, noisy, time, prediction) + s * noise_in(schedule, noisy, time, prediction)


class Settings(Section):
    prediction: Literal["v", "epsilon"] = "v"
    """What the network predicts."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last step is pure noise (Lin et al. 2024, algorithm 1); needs prediction v."""

    @model_validator(mode="after")
    def _learnable(self) -> Self:
        if self.zero_terminal_snr and self.prediction != "v":
            raise ValueError(f"zero_terminal_snr needs prediction v, got {self.prediction}")
        return self
