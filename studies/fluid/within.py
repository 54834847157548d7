"""Sizes and orders within a kind of token, paired by repeat: python studies/fluid/within.py

A difference is the mean over the other factor; its interval is Student's t of three repeats, its p is Holm's over all of a score.
Held-out losses compare within an order alone, so orders are not compared by them.
"""

from pathlib import Path

import pandas as pd
from scipy import stats

from nas.analysis.statistics.contrasts import holm

SCORES = ("denoising_loss", "colour_accuracy", "prompt_accuracy", "mind_efficientnet_lite0")
PAIRS = (("size", "middle", "small"), ("size", "large", "small"), ("order", "raster", "random"))


def main() -> None:
    results = pd.read_csv(Path(__file__).with_name("results.csv"))
    for score in SCORES:
        rows = [
            (kind, level, against, paired(part, f"factor.{factor}", level, against, score))
            for kind, part in results.groupby("factor.tokens")
            for factor, level, against in PAIRS
            if (factor, score) != ("order", "denoising_loss")
        ]
        p = holm(pd.Series([stats.ttest_1samp(gaps, 0.0).pvalue for *_, gaps in rows]).to_numpy())
        print(score)
        for (kind, level, against, gaps), chance in zip(rows, p, strict=True):
            low, high = stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
            print(
                f"  {kind:<11} {level:>6} - {against:<7} {gaps.mean():9.3f} [{low:.3f}, {high:.3f}], Holm {chance:.3f}"
            )


def paired(part: pd.DataFrame, factor: str, level: str, against: str, score: str) -> pd.Series:
    """The difference of two levels in each repeat."""
    means = part.groupby(["repeat", factor])[score].mean().unstack()
    return means[level] - means[against]


if __name__ == "__main__":
    main()
