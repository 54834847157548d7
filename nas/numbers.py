"""How a number is spelled wherever a person reads one: in terminals, pages and messages."""

from __future__ import annotations

PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
ROUNDED = 0.99995  # of a thousand of the next smaller prefix: what would be rounded to it takes the larger one


def amount(value: float) -> str:
    """188.8 G, 211.2 M, 23,456, 1,758, 38.69: a prefix and one decimal from a million on, else four digits, whole from 1,000."""
    for prefix, divisor in PREFIXES:
        if abs(value) >= ROUNDED * divisor:
            return f"{value / divisor:,.1f} {prefix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def above(value: float, limit: float) -> str:
    """ "408.6 M > 400.0 M", with all digits where the two would read alike."""
    told, most = amount(value), amount(limit)
    return f"{told} > {most}" if told != most else f"{value:,.10g} > {limit:,.10g}"
