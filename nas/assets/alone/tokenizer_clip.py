"""Captions as the text encoder takes them, by the byte pairs of CLIP's tokenizer in tokenizer.json."""

import html
import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np

TOLD = json.loads((Path(__file__).parent / "tokenizer.json").read_text(encoding="utf-8"))
VOCABULARY, LENGTH = TOLD["model"]["vocab"], TOLD["truncation"]["max_length"]
START, END = (TOLD["post_processor"][place][1] for place in ("cls", "sep"))
RANK = {tuple(pair): number for number, pair in enumerate(TOLD["model"]["merges"])}
PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
LETTERS = {byte: chr(byte) for byte in PLAIN}
LETTERS |= {byte: chr(256 + number) for number, byte in enumerate(sorted({*range(256)} - {*PLAIN}))}


def tokenise(captions):
    """The encoder's inputs in order: numbers (B, length)."""
    return [np.array([numbers(caption) for caption in captions], np.int64)]


def numbers(caption):
    """The start, the byte pairs of the words, the end, and zeros up to the length."""
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", caption))).lower()
    text = re.sub("[\u02bc\u2018-\u201b]", "'", re.sub("[\u201c-\u201f]", '"', text))  # typographic quotes
    digits = "".join({"0"} | {sign for sign in text if unicodedata.category(sign)[0] == "N"})
    words = re.findall(rf"'(?:s|t|re|ve|m|ll|d)|[{digits}]|[^\W_{digits}]+|(?:_|[^\s\w])+", text)
    pieces = [VOCABULARY[part] for word in words for part in joined(word)]
    found = [START, *pieces[: LENGTH - 2], END]
    return found + [0] * (LENGTH - len(found))


def joined(word):
    """The letters of a word, joined pair by pair as long as a pair is known, the best known first."""
    parts = [LETTERS[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    while found := [(RANK[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in RANK]:
        at = min(found)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    return parts
