"""How long a study will take on this machine, from the pace of its workers (`nas.trial.clock.timing`)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from nas.numbers import duration, number_of

if TYPE_CHECKING:
    from nas.settings.study import Study

STOPPED = 0.2  # share of the trials that is taken to be stopped at each look, of those that may be (assumption)


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a trial take in one worker."""

    load_s: float
    """The network with its weights, once a rung."""
    update_s: float
    call_s: float
    """The denoiser, of one image."""
    decode_s: float
    """The autoencoder, of one image."""
    judge_s: float
    """All metrics, of one image."""
    compute_s: float
    """All metrics, once a rung."""
    passes: float
    """Calls of the denoiser that its loss takes, once a rung."""

    def rung_s(self, study: Study, rung: int) -> float:
        """Seconds of a trial from one rung to the next, drawing and scoring included."""
        loop, rungs, images = study.training, study.stopping.rungs, study.evaluation.images
        before = rungs[rung - 1] if rung else 0.0
        updates = loop.updates(round(rungs[rung] * loop.images_seen)) - loop.updates(round(before * loop.images_seen))
        drawn = images * (study.sampling.calls * self.call_s + self.decode_s + self.judge_s)
        return self.load_s + updates * self.update_s + drawn + self.passes * self.call_s + self.compute_s

    def trial_s(self, study: Study) -> float:
        """Seconds of a trial, where some of those at each rung but the last go no further (`stopped`)."""
        return sum((1 - stopped(study)) ** rung * self.rung_s(study, rung) for rung in range(len(study.stopping.rungs)))

    def look_s(self, study: Study) -> float:
        """Seconds of a look at a candidate (nas.trial.look)."""
        drawn = study.look_images * (study.sampling.calls * self.call_s + self.decode_s + self.judge_s)
        losses = self.passes * self.call_s if "denoising_loss" in study.objectives else 0.0
        return self.load_s + drawn + losses + self.compute_s

    def lines_s(self, study: Study, trained: bool) -> float:
        """Seconds of the lines of reference, unless they were scored before."""
        pictures = 3 * study.evaluation.images * (self.decode_s + self.judge_s) + 3 * self.compute_s
        last = sum(self.rung_s(study, rung) for rung in range(len(study.stopping.rungs))) if trained else 0.0
        return pictures + self.rung_s(study, 0) + last


def stopped(study: Study) -> float:
    """Share of a study's trials that is taken to be stopped at each rung but the last: `STOPPED` of those that come after the
    first `stopping.min_peers`. Cells of an ablation and rounds of an evolution all go on to the end."""
    rule, search = study.stopping, study.search
    if search is None or search.sampler == "evolution" or rule.rule == "none" or len(rule.rungs) == 1:
        return 0.0
    trials = search.trials
    return STOPPED * max(0, trials - rule.min_peers) / trials


@dataclass(frozen=True)
class Estimate:
    """How long what is left of a study will take."""

    seconds: float
    trials: int
    """That are to be trained yet."""
    each_s: float
    """A trial, in the mean."""
    workers: int
    timed: int
    """Networks."""
    stopped: float
    """Share of the trials that is taken to be stopped at each look."""

    def told(self) -> str:
        """In words, with how it was estimated."""

        less = f"; {self.stopped:.0%} of trials taken to be stopped" if self.stopped else ""
        return (
            f"about {duration(self.seconds)} to go: {number_of(self.trials, 'trial')} of {duration(self.each_s)} each on "
            f"{number_of(self.workers, 'worker')}\n"
            f"(from updates and pictures of {number_of(self.timed, 'network')} timed here just now{less})"
        )


def estimate(
    paces: Sequence[Pace], trials: Sequence[float], lines_s: float, workers: int, stopped: float, looks_s: float = 0.0
) -> Estimate:
    """What trials of these lengths take, begun in this order on equal workers, with the lines of reference before them, and
    looks of `looks_s` in all shared by the workers."""
    free = [looks_s / workers] * workers
    for seconds in chain([lines_s], trials):
        heapq.heappush(free, heapq.heappop(free) + seconds)
    mean = sum(trials) / len(trials)
    return Estimate(max(free), len(trials), mean, workers, len(paces), stopped)
