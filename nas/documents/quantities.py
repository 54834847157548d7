"""Numbers as people write them, in files and on the command line: 12, 0.5, 40_000, 3e-4, 4e3, 4K, 400M, 1.5 T."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9](?:_?[0-9])*)(?:\.[0-9]*)?|\.[0-9]+)")  # no 010, no 1:30
NUMBER = re.compile(rf"({DECIMAL.pattern})((?:[eE][-+]?[0-9]{{1,3}})?)(?: ?([kKMGT]))?")
LARGEST = 2**63  # plain whole numbers stay below it
EXACT = 2**53  # below it floats and whole numbers are the same, so 4e3 may be either


def number(text: str) -> int | float | None:
    """What a text says as a finite number, None if it says none. Whole ones are int, unless written with a point alone (1.0)."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    digits, exponent, suffix = match.groups()
    value = Decimal(digits.replace("_", "") + exponent) * int(SUFFIXES.get(suffix, 1))
    plain = not (exponent or suffix)
    whole = not (plain and "." in digits) and value == value.to_integral_value()
    if whole and abs(value) < (LARGEST if plain else EXACT):
        return int(value)
    real = float(value)
    return real if math.isfinite(real) else None


def count(value: Any) -> float:
    """A positive number, given or written. Raises ValueError for anything else."""
    given = isinstance(value, int | float) and not isinstance(value, bool)
    found = value if given else number(str(value).strip())
    if found is None or not 0 < found < math.inf:
        raise ValueError(f"expected a positive number such as 400M, 200G or 4.0e+8, got {value!r}")
    return float(found)
