"""How far answers of a person go: judges with a known taste, on the trials of the quickstart, and what is said of the metric.

    python benchmarks/judge.py

What docs/how-to/judge.md tells.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from nas.analysis import results
from nas.analysis.people import judged
from nas.judging import questions
from nas.judging.questions import Asked
from nas.runs.judgements import Judgement

STUDY = Path(__file__).parents[1] / "studies" / "quickstart"
METRIC = "prompt_accuracy"
ANSWERS, JUDGES, CAPTIONS, TIES = 200, 20, 32, 0.1
SLOPES = (0.0, 4.0, 8.0, 20.0)  # log odds of being preferred for having all prompts right


def answered(accuracy: dict[str, float], slope: float, judge: str, rng: np.random.Generator) -> list[Judgement]:
    """What a judge says who prefers by Bradley-Terry the trial that gets more prompts right."""
    asked, given = Asked(tuple(accuracy), CAPTIONS), list[Judgement]()
    while len(given) < ANSWERS and (shown := questions.following(asked, given, judge)) is not None:
        gap = accuracy[shown.left] - accuracy[shown.right]
        choice = "left" if rng.random() < 1 / (1 + np.exp(-slope * gap)) else "right"
        answer = "tie" if rng.random() < TIES else choice
        given.append(Judgement(judge, "", shown.caption, shown.left, shown.right, answer, 3.0))
    return given


if __name__ == "__main__":
    table = results.load_committed(STUDY)
    trials = table[table["state"] == "complete"]
    accuracy = dict(zip(map(str, trials["trial"]), trials[METRIC], strict=True))
    print(f"{len(accuracy)} trials, {min(accuracy.values()):.2f} to {max(accuracy.values()):.2f} of prompts right")
    for slope in SLOPES:
        said: Counter[str] = Counter()
        taus = []
        for seed in range(JUDGES):
            given = answered(accuracy, slope, f"judge {seed}", np.random.default_rng(seed))
            found = judged.of(given, table, table.attrs["objectives"])
            metric = next(one for one in found.metrics if one.signal == METRIC)
            said[found.verdict(metric)] += 1
            taus.append(metric.tau)
        odds = 1 / (1 + np.exp(-slope / 10))
        print(f"10 points more are preferred in {odds:.0%}: {dict(said)}, mean tau {np.mean(taus):.2f}")
