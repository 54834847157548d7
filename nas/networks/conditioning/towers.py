"""Text encoders as modules from token numbers to what a denoiser reads: what `nas.networks.conditioning` runs, and `nas
export` writes.

B captions, T tokens the denoiser reads, D width of a token's state, P width of the pooled vector.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClipTower(nn.Module):
    """An open_clip text tower: states (B, T, D) of its last layer before the final norm, and its text feature (B, P).

    A caption is followed by tokens numbered `padding`; `ended`: the first of them is its end.
    """

    def __init__(self, model: nn.Module, length: int, padding: int = 0, ended: bool = False):
        super().__init__()
        self.model, self.length, self.padding, self.ended = model, length, padding, ended

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        forward: Any = self.model.forward_intermediates
        output = forward(text=input_ids, text_indices=1, normalize=False, text_output_fmt="NLC")
        states = output["text_intermediates"][-1]
        places = torch.arange(1, states.shape[1] + 1, device=input_ids.device)
        count = ((input_ids != self.padding) * places).amax(-1) + int(self.ended)
        kept = places[None, :] <= count[:, None]
        states = (states * kept[:, :, None])[:, : self.length]
        return F.pad(states, (0, 0, 0, self.length - states.shape[1])), output["text_features"]


class BertTower(nn.Module):
    """A BERT-like encoder: states (B, T, D), zero on padding, and their mean over the caption (B, D)."""

    def __init__(self, model: nn.Module, length: int):
        super().__init__()
        self.model, self.length = model, length

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(states.dtype)
        states = states * mask
        return F.pad(states, (0, 0, 0, self.length - states.shape[1])), states.sum(1) / mask.sum(1)


class WordTower(nn.Module):
    """Word vectors (V, D) plus those of places (T, D), zero where there is no word (number 0); pooled is the words' sum over the
    root of their number (B, D)."""

    words: Tensor
    places: Tensor

    def __init__(self, words: Tensor, places: Tensor):
        super().__init__()
        self.register_buffer("words", F.pad(words, (0, 0, 1, 0)))
        self.register_buffer("places", places)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        there = (input_ids > 0).to(self.words.dtype)[:, :, None]
        words = self.words[input_ids]
        return words + self.places * there, words.sum(1) / there.sum(1).clamp_min(1).sqrt()
