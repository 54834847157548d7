"""An autoencoder trained on pictures, and its file.

The loss is L1 + L2 on pixels, and a KL term small enough to only keep the latents bounded (as in LDM, Rombach et al. 2022, arXiv
2112.10752, which uses 1e-6). With a codebook it is, in that term's place, |sg(e) - z|^2 + 0.25 |e - sg(z)|^2 of latents z and
their nearest entries e, whose gradient goes straight through to z: the loss of VQ-VAE (van den Oord et al. 2017, arXiv
1711.00937, eq. 3) with its 0.25 at the other term, as the code of VQGAN and MoVQ has it.
No perceptual or adversarial term: features used there would also be the ones that distances read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import save_file
from torch import Tensor

from nas.disk import files
from nas.seeds import stream_seed
from nas.training.decoders import BATCH
from nas.training.fitting import Fitting

KL_WEIGHT = 1e-6
WARMUP, LEAST = 20, 0.02  # updates until the full learning rate, and what is left of it in the end


class Reconstruction(Fitting[Tensor]):
    """An autoencoder that learns to copy pictures (N, 3, H, W) in [-1, 1]."""

    def __init__(
        self, model: AutoencoderKL | VQModel, updates: int, batch: int = 16, rate: float = 7e-4, seed: int = 0
    ):
        model.train().requires_grad_()
        adam = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
        super().__init__(model, adam, updates, batch)
        self.model, self.seed, self.full = model, seed, rate

    def loss(self, lessons: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.step))
        rows = torch.randint(len(lessons), (self.batch,), generator=generator)
        pictures = lessons[rows]
        mirrored = torch.rand(self.batch, 1, 1, 1, generator=generator) < 0.5
        return loss_of(self.model, torch.where(mirrored, pictures.flip(-1), pictures), generator)

    def rate(self) -> float:
        warm, done = min(1.0, (self.step + 1) / WARMUP), self.step / self.updates
        return self.full * warm * (LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * done)))


def loss_of(model: AutoencoderKL | VQModel, pictures: Tensor, generator: torch.Generator, bf16: bool = False) -> Tensor:
    """L1 + L2 of the copies of pictures (B, 3, H, W), and what is asked of their latents; a scalar. With `bf16` the networks
    run in bfloat16, which takes ten times as long as float32 where the processor has no instructions for it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made, asked = _copied(model, pictures, generator)
    loss: Tensor = F.l1_loss(made.float(), pictures) + F.mse_loss(made.float(), pictures) + asked
    return loss


def _copied(model: AutoencoderKL | VQModel, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Copies, and a scalar: by entries of the codebook, and its loss; or drawn from the posterior, and the KL term."""
    if isinstance(model, VQModel):
        found = model(pictures)
        return found.sample, found.commit_loss
    posterior = model.encode(pictures).latent_dist
    made = model.decode(posterior.sample(generator)).sample
    return made, KL_WEIGHT * posterior.kl().mean()


def _latents(model: AutoencoderKL | VQModel, pictures: Tensor) -> Tensor:
    """Of pictures (B, 3, H, W), (B, C, h, w): what the encoder puts out, or the posterior's mean."""
    found = model.encode(pictures)
    latents: Tensor = found.latents if isinstance(model, VQModel) else found.latent_dist.mean
    return latents


@torch.no_grad()
def write(model: AutoencoderKL | VQModel, pictures: Tensor, path: Path, about: Mapping[str, str]) -> None:
    """A file that `autoencoder.path` takes, in half precision: the weights, and the mean and the deviation of the latents of
    pictures (N, 3, H, W), by which they get unit variance."""
    latents = torch.cat([_latents(model, part) for part in torch.split(pictures, BATCH)])
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    metadata = {
        **about,
        "config": json.dumps(config),
        "latent_mean": json.dumps(latents.mean((0, 2, 3)).tolist()),
        "latent_std": json.dumps(latents.std((0, 2, 3)).tolist()),
        "fingerprint": fingerprint(tensors),
    }
    with files.replacing(path) as partial:
        save_file(tensors, partial, metadata)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of weights: what was computed by others of the same file name is computed again."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
