"""A linear map of the pooled text: the prior of Kandinsky's best FID (Razzhigaev et al. 2023, arXiv 2310.03502).

It is ridge regression, in closed form: W = (X^T X + N r I)^-1 X^T Y of centred pooled vectors X (N, P) and embeddings Y (N, E),
with r the ridge times the mean variance of X. What a caption leaves open it answers with the mean.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.documents.section import Section
from nas.networks.conditioning import Text
from nas.priors import Heard, Lessons, Sizes, ignored


class Settings(Section):
    """How much it is shrunk."""

    ridge: float = Field(1e-3, gt=0, le=1e3)
    """Squared norm of the weights in the loss, times the mean variance of the pooled text's dimensions."""


class Prior(nn.Module):
    """pooled (B, P) -> (B, E)."""

    def __init__(self, settings: Settings, sizes: Sizes):
        super().__init__()
        self.settings = settings
        self.map = nn.Linear(sizes.pooled, sizes.image)

    @torch.no_grad()
    def fit(self, lessons: Lessons, seed: int, heard: Heard = ignored) -> None:
        total = len(lessons.images)
        pooled, images = lessons.text(torch.arange(total)).pooled.double(), lessons.images.double()
        weight, bias = ridge(pooled, images, self.settings.ridge)
        self.map.weight.copy_(weight.T)
        self.map.bias.copy_(bias)
        heard(total, total)

    @torch.no_grad()
    def sample(self, text: Text, noise: Tensor) -> Tensor:
        image: Tensor = self.map(text.pooled)
        return image


def ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (P, E) and bias (E,) of y from x, rows of both belonging together; the bias is not shrunk."""
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    shrunk = covariance + strength * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(shrunk, centred.T @ (y - y.mean(0)) / len(x))
    return weight, y.mean(0) - x.mean(0) @ weight
