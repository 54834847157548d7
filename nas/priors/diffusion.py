"""A diffusion of the embedding itself by a transformer: Kandinsky's prior (Razzhigaev et al. 2023, arXiv 2310.03502), which is
unCLIP's (Ramesh et al. 2022, arXiv 2204.06125), as diffusers' `PriorTransformer`, small.

The transformer reads text tokens, pooled text, time, noisy embedding and a learned query, and predicts the clean embedding at the
query. Targets are standardised by dimension. It is drawn by DDIM, where Kandinsky draws by DDPM, so that the embedding is a
function of one noise. A caption that fits several kinds of pictures has several kinds of embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, PriorTransformer
from pydantic import Field
from torch import Tensor, nn

from nas.networks.conditioning import Text
from nas.priors import Heard, Learning, Lessons, Sizes, ignored, learn

HEAD = 32  # width of an attention head
CLAMP = 10.0  # of predicted embeddings, in standard deviations
LEAST_SPREAD = 1e-6  # a dimension that does not vary is not divided by 0


class Settings(Learning):
    """Its size, how it is trained and how it is drawn."""

    layers: int = Field(4, ge=1, le=100)
    """Transformer blocks."""
    heads: int = Field(4, ge=1, le=100)
    """Attention heads of width 32; the transformer's width is 32 times as many."""
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of captions replaced by the empty one, for guidance."""
    steps: int = Field(25, ge=1, le=1000)
    """Calls of the transformer for one embedding, two each where it is guided."""
    guidance: float = Field(1.0, ge=0, le=1000)
    """Classifier-free guidance scale w in null + w (cond - null); 1 is none. Kandinsky draws with 4."""


class Prior(nn.Module):
    """text, noise (B, E) -> (B, E)."""

    null_tokens: Tensor
    null_pooled: Tensor

    def __init__(self, settings: Settings, sizes: Sizes):
        super().__init__()
        self.settings, self.sizes = settings, sizes
        self.shared = max(sizes.width, sizes.image)  # diffusers has one width for tokens and embeddings
        self.transformer: Any = PriorTransformer(
            num_attention_heads=settings.heads,
            attention_head_dim=HEAD,
            num_layers=settings.layers,
            embedding_dim=self.shared,
            num_embeddings=sizes.tokens,
            embedding_proj_dim=sizes.pooled,
            clip_embed_dim=sizes.image,
        )
        for statistic in (self.transformer.clip_mean, self.transformer.clip_std):
            statistic.requires_grad_(False)  # what diffusers makes parameters, and zero
        self.transformer.clip_std.fill_(1.0)
        for embedding in (self.transformer.positional_embedding, self.transformer.prd_embedding):
            nn.init.normal_(embedding, std=0.02)  # diffusers starts them at zero, where places are all alike
        self.register_buffer("null_tokens", torch.zeros(1, sizes.tokens, sizes.width))
        self.register_buffer("null_pooled", torch.zeros(1, sizes.pooled))
        self.schedule: Any = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            clip_sample_range=CLAMP,
            timestep_spacing="trailing",
        )

    def predicted(self, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
        """The clean embedding (B, E), standardised, from a noisy one at times (B,).

        The mask is always given: without one diffusers leaves out the causal mask too. Places after a caption are zero vectors.
        """
        kept = text.tokens.abs().sum(-1) > 0
        clean: Tensor = self.transformer(
            self._widened(noisy), time, text.pooled, self._widened(text.tokens), kept, return_dict=False
        )[0]
        return clean

    def standardised(self, images: Tensor) -> Tensor:
        """Embeddings (B, E) with mean 0 and variance 1 over the training set; `post_process_latents` is the way back."""
        standard: Tensor = (images - self.transformer.clip_mean) / self.transformer.clip_std
        return standard

    def fit(self, lessons: Lessons, seed: int, heard: Heard = ignored) -> None:
        self.transformer.clip_mean.copy_(lessons.images.mean(0, keepdim=True))
        self.transformer.clip_std.copy_(lessons.images.std(0, keepdim=True).clamp_min(LEAST_SPREAD))
        self.null_tokens.copy_(lessons.captions.tokens[-1:].float())
        self.null_pooled.copy_(lessons.captions.pooled[-1:].float())

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            clean = self.standardised(lessons.images[rows])
            time = torch.randint(len(self.schedule.alphas_cumprod), (len(rows),), generator=generator)
            noise = torch.randn(clean.shape, generator=generator)
            dropped = torch.rand(len(rows), generator=generator) < self.settings.caption_dropout
            noisy = self.schedule.add_noise(clean, noise, time)
            return F.mse_loss(self.predicted(noisy, time, lessons.text(rows, dropped)), clean)

        learn(self, loss, lessons, self.settings, seed, heard)

    @torch.no_grad()
    def sample(self, text: Text, noise: Tensor) -> Tensor:
        self.schedule.set_timesteps(self.settings.steps)
        x = noise
        for level in self.schedule.timesteps:
            clean = self._guided(x, level.expand(len(x)), text)
            x = self.schedule.step(clean, level, x).prev_sample
        image: Tensor = self.transformer.post_process_latents(x)
        return image

    def _guided(self, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
        conditional = self.predicted(noisy, time, text)
        if self.settings.guidance == 1:
            return conditional
        null = Text(*(one.expand(len(noisy), *one.shape[1:]) for one in (self.null_tokens, self.null_pooled)))
        unconditional = self.predicted(noisy, time, null)
        return unconditional + self.settings.guidance * (conditional - unconditional)

    def _widened(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.shared - x.shape[-1]))
