"""How a number is spelled wherever a person reads one: in terminals, pages and messages."""

from __future__ import annotations

from collections.abc import Sequence

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


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def number_of(count: int, noun: str) -> str:
    """ "1 training", "2 trainings"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def trained(seen: int, total: int, per_s: float) -> str:
    """How far a training is: "1,600/3,000 images  10 images/s  2 min 20 s left"."""
    left = duration(max(0, total - seen) / per_s) if per_s > 0 else "unknown"
    return f"{seen:,}/{total:,} images  {per_s:.4g} images/s  {left} left"


def duration(seconds: float) -> str:
    """ "45 s", "3 min 20 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
