"""The masked autoregressor of discrete tokens, indices of a codebook as numbers: those of Fluid's comparison (Fan et al. 2024,
arXiv 2410.13863) and of MaskGIT (Chang et al. 2022, arXiv 2202.04200).

Letters as in `nas.networks.backbones.mar.network`; K entries of the codebook, c = 1.
"""

from typing import cast

from torch import Tensor, nn

from nas.networks.backbones.mar.network import DEVIATION, Network


class DiscreteNetwork(Network):
    """The same network, which reads an index by a learned row, and says of a hidden one how likely each entry is."""

    def _reader(self) -> nn.Module:
        rows = nn.Embedding(cast(int, self.config.codes), self.config.width)
        nn.init.normal_(rows.weight, std=DEVIATION)
        return rows

    def _writer(self) -> nn.Module:
        return nn.Linear(self.config.width, cast(int, self.config.codes))

    def _rows(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.project(tokens.squeeze(2).long())
        return rows

    @property
    def output(self) -> nn.Linear:
        """The last layer."""
        return cast(nn.Linear, self.head)

    @property
    def middle(self) -> nn.Module:
        """The decoder's last norm; its output is tokens (B, L, D)."""
        return self.norm_decoder

    @property
    def middle_width(self) -> int:
        """D."""
        return self.config.width

    def logits(self, conditions: Tensor) -> Tensor:
        """Of all entries, (B, N, K), under conditions (B, N, D)."""
        found: Tensor = self.head(conditions)
        return found

    def denoised(self, tokens: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        """The likeliest indices (B, N, 1) under conditions (B, N, D); nothing else enters."""
        return self.logits(conditions).argmax(2, keepdim=True).to(conditions.dtype)
