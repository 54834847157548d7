"""A text encoder's tokenizer as the content of a `tokenizer.json`: Hugging Face's format, which many languages read.

Cutting and padding are in it, so that a caption's numbers are the graph's input. An export reads CLIP's byte pairs and closed
vocabularies itself; for any other it needs the package `tokenizers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's: what byte pairs are looked for in
MENDED = (
    "Letters that were decoded wrongly, ligatures and full-width letters are read as they are; in nas, open_clip's encoders "
    "have the package ftfy mend them first."
)
QUOTES = (("[\u02bc\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"'))  # typographic ones become plain
PROBES = ("", "a red heart", "Two cats, on a sofa; it's 12 o'clock!", "Ünïcode 日本 🍕", "long " * 100)


class TokenizerFile(NamedTuple):
    """What a `tokenizer.json` holds."""

    content: dict[str, Any]
    reader: str
    """How an export reads it, by the program nas/assets/alone/tokenizer_*.py of that name: `clip`, `words`, or `package`, which
    needs the package `tokenizers`."""
    about: str = ""
    """What the model card says of it."""


def of_open_clip(tokenizer: Any) -> TokenizerFile | None:
    """Of a tokenizer of open_clip's; None where it does what such a file cannot say."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn

    if isinstance(tokenizer, HFTokenizer):
        made = of_hugging_face(tokenizer.tokenizer, tokenizer.context_length, lambda some: tokenizer(some).tolist())
        return made and made._replace(about=MENDED)
    plain = isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None
    if not plain or tokenizer.clean_fn is not get_clean_fn("lower"):
        return None
    return TokenizerFile(_byte_pairs(tokenizer), "clip", f"It holds CLIP's byte pairs. {MENDED}")


def of_hugging_face(
    tokenizer: Any, length: int, tokens: Callable[[list[str]], list[list[int]]]
) -> TokenizerFile | None:
    """Of a fast tokenizer of transformers', padded and cut to `length`; None where the file gives other numbers than `tokens`
    (captions -> rows of numbers) does.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    made = Tokenizer.from_str(backend.to_str())
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    if [row.ids for row in made.encode_batch(list(PROBES))] != tokens(list(PROBES)):
        return None
    return TokenizerFile(json.loads(made.to_str()), "package")


def of_words(words: Sequence[str], length: int) -> TokenizerFile:
    """Of a closed vocabulary: words are numbered from 1, and whatever is no word of it is 0, as padding is."""
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": _truncation(length),
        "padding": _padding(length, "[PAD]"),
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Removed", "invert": True},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {"[PAD]": 0} | {w: n for n, w in enumerate(words, 1)},
            "unk_token": "[PAD]",
        },
    }
    return TokenizerFile(content, "words", "It holds a closed vocabulary: captions with other words are refused.")


def _truncation(length: int) -> dict[str, Any]:
    return {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}


def _padding(length: int, token: str) -> dict[str, Any]:
    """With number 0."""
    return {
        "strategy": {"Fixed": length},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": token,
    }


def _byte_pairs(tokenizer: Any) -> dict[str, Any]:
    """CLIP's tokenizer; of what open_clip mends in a caption before (ftfy, HTML), only quotation marks are in the file."""
    length, vocabulary = tokenizer.context_length, tokenizer.encoder
    start, end = tokenizer.all_special_ids[:2]
    word = {number: token for token, number in vocabulary.items()}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": _truncation(length),
        "padding": _padding(length, word[0]),
        "added_tokens": [{"id": number, "content": word[number], **flags} for number in (start, end)],
        "normalizer": _sequence(
            "normalizers", {"type": "NFC"}, *(_replaced(*pair) for pair in QUOTES), {"type": "Lowercase"}
        ),
        "pre_tokenizer": _sequence(
            "pretokenizers",
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ),
        "post_processor": {
            "type": "RobertaProcessing",
            "cls": [word[start], start],
            "sep": [word[end], end],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)],
        },
    }


def _replaced(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _sequence(key: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(parts)}
