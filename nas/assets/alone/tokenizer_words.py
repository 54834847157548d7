"""Captions as the text encoder takes them, by the closed vocabulary in tokenizer.json."""

import json
import re
from pathlib import Path

import numpy as np

TOLD = json.loads((Path(__file__).parent / "tokenizer.json").read_text(encoding="utf-8"))
VOCABULARY, LENGTH = TOLD["model"]["vocab"], TOLD["truncation"]["max_length"]


def tokenise(captions):
    """The encoder's inputs in order: numbers (B, length)."""
    return [np.array([numbers(caption) for caption in captions], np.int64)]


def numbers(caption):
    """Those of its words, and zeros up to the length. A word without one ends the program."""
    words = re.findall(r"\w+", caption.lower())
    for word in words:
        if word not in VOCABULARY:
            raise SystemExit(f"{caption!r}: {word!r} is none of the words of tokenizer.json")
    found = [VOCABULARY[word] for word in words[:LENGTH]]
    return found + [0] * (LENGTH - len(found))
