"""What is left of a study, and how long its trials take by the pace of networks that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nas.networks.backbones import Backbone
from nas.settings import design
from nas.settings.study import Study
from nas.trial.clock.pace import Pace


@dataclass(frozen=True)
class Variant:
    """A network, and the settings that it is trained with in place of the study's, by path."""

    architecture: Backbone
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """Trials that are left, and the variants that are timed for all of them."""

    typical: Sequence[Variant] = ()
    trials: Sequence[int | None] = ()
    """Every trial that is left, in the order of training: its place in `typical`, or None where it is none of those."""
    looks: int = 0
    """Networks that are still to be looked at."""
    side_by_side: bool = True
    """Whether trials wait for none of the others."""

    def seconds(self, study: Study, paces: Sequence[Pace | None]) -> list[float]:
        """Of every trial that is left, from the paces of what is typical, one of which is known at least.

        A trial whose own pace is unknown takes the mean of the others, or of what was timed where no trial is typical.
        """
        timed = [
            None if pace is None else pace.trial_s(design.changed(study, variant.settings))
            for variant, pace in zip(self.typical, paces, strict=True)
        ]
        own = [None if place is None else timed[place] for place in self.trials]
        known = [each for each in own if each is not None] or [each for each in timed if each is not None]
        mean = sum(known) / len(known)
        return [mean if each is None else each for each in own]
