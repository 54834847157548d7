"""Which blocks of a network to remove, and which to copy: by what quality each is worth for what it costs.

SnapFusion's architecture evolution (Li et al. 2023, arXiv 2306.00980, section 4.1). The value of a block is the quality that is
lost without it over the latency that is saved. While the network is too slow, the blocks of least value are removed, several
at once; then the block of most value is copied. Where we fill in or differ:
- A block whose removal loses nothing has the value 0, however much quality seems to rise: the ratio of a gain would prefer
  what saves least.
- Of equal values the greater saving goes first.
- No more is removed at once than the target asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Removal:
    """A network with one decision made smaller."""

    axis: str
    loss: float
    """Of quality, negative where it rises."""
    saved: float
    """Of the cost; more than 0."""

    @property
    def value(self) -> float:
        """Quality lost per unit of cost."""
        return max(self.loss, 0.0) / self.saved


def ranked(removals: Iterable[Removal]) -> list[Removal]:
    """The least valuable first, of equals the greater saving."""
    return sorted(removals, key=lambda one: (one.value, -one.saved, one.axis))


def group(removals: Iterable[Removal], most: int, wanted: float) -> list[Removal]:
    """What is removed at once: the first of the ranking, at most `most`, until so much of the cost is saved.

    Savings of different decisions are taken to add up, which they do but for what hangs on both.
    """
    chosen: list[Removal] = []
    for one in ranked(removals):
        if len(chosen) == most or sum(each.saved for each in chosen) >= wanted:
            break
        chosen.append(one)
    return chosen


def copied(removals: Sequence[Removal], added: Mapping[str, float], room: float) -> str | None:
    """The axis whose block is copied: of those that add no more cost than there is room for, the one of most value, of equals
    the one that adds less. None where none fits, or none is worth anything.

    `added` is the cost of a copy, by axis. A copy changes nothing before it is trained, so its value is that of the block
    that it is a copy of.
    """
    fitting = [one for one in removals if one.value > 0 and added.get(one.axis, float("inf")) <= room]
    return min(fitting, key=lambda one: (-one.value, added[one.axis], one.axis)).axis if fitting else None
