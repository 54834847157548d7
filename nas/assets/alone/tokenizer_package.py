"""Captions as the text encoder takes them: the package `tokenizers` reads tokenizer.json."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
INPUTS = json.loads((HERE / "draw.json").read_text(encoding="utf-8"))["tensors"]["text_encoder"]["inputs"]
TOKENIZER = Tokenizer.from_file(str(HERE / "tokenizer.json"))


def tokenise(captions):
    """The encoder's inputs in order: numbers (B, length)."""
    read = TOKENIZER.encode_batch(list(captions))
    rows = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
    return [np.array(rows[given["name"]], np.int64) for given in INPUTS]
